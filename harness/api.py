"""`run` and `load`: the commands `harness.run` and `harness.collect` for notebooks and programs."""

import contextlib
import io
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd

from harness.analysis.reader import Record
from harness.cell import Cell
from harness.collect import collect, row_of
from harness.common.errors import STATUSES, UserError
from harness.common.preflight import refuse_foreign_kernels
from harness.common.ranks import Team
from harness.common.signals import StopRequest
from harness.common.stats import Metric
from harness.experiment.compose import compose_config, option_words
from harness.experiment.plan import Plan, plan
from harness.experiment.run_plan import planned_records, run_plan
from harness.tracking.tracker import Tracker
from kernels.common.malloc import disable_malloc_trim


@dataclass(frozen=True)
class CellRecord:
    """A cell and its references in the store. Its text is the tables that the command prints.

    status: ok, failed or invalid; the record of a failed task holds the reason.
    cell_id: id of the cell.
    folder: folder of the cell in the store.
    tasks: name of a task -> its record.
    references: name ("exact", "window", "sliding" or "passes") -> records of its tasks.
    text: the tables.
    """

    status: str
    cell_id: str
    folder: Path
    tasks: dict[str, Record]
    references: dict[str, dict[str, Record]]
    text: str

    @cached_property
    def metrics(self) -> dict[str, Metric]:
        """Metrics by name, such as retrieval/accuracy, with value, low, high, n and unit."""
        return {name: metric for record in self.tasks.values() for name, metric in record.metrics.items()}

    def frame(self) -> pd.DataFrame:
        """Return the cell and its references, a row for each task, with the columns of `load`."""
        records = [*self.tasks.values(), *(r for tasks in self.references.values() for r in tasks.values())]
        return pd.DataFrame([row_of(record) for record in records])

    def __str__(self) -> str:
        return self.text


def run(*words: str, **options: object) -> CellRecord:
    """Run one cell as `python -m harness.run` does, or return it from the store.

    Args:
        words: options as on the command line: "attn.weights=rb".
        options: options as Python values: model="tiny", masks=16. A mapping stands for the options
            of a group, attn={"name": "plsh", "weights": "rb"}, or for several tasks with their
            options, task={"ruler": {"names": ["ruler_vt"]}}.

    Returns:
        The record of the cell. A failed task is a status, not an exception, as on the command line.

    Raises:
        UserError: for a mistake that the command answers with exit code 2.
        KeyboardInterrupt: if a signal stopped the run. Computed rows are kept, and the same call
            resumes the run.
    """
    arguments = [*words, *option_words(options)]
    refuse_foreign_kernels()
    planned = plan(compose_config(arguments))
    disable_malloc_trim()
    with contextlib.ExitStack() as stack:
        team = stack.enter_context(Team())
        stop = StopRequest()
        # only this thread may set signal handlers
        if threading.current_thread() is threading.main_thread():
            stack.enter_context(stop)
        stack.enter_context(_command_line(arguments))
        stdout = stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        with Tracker(stop) as tracker:
            team.next_job()
            try:
                code, document = run_plan(planned, stop, tracker, team)
            finally:
                team.end_job()
    if stop.requested:
        raise KeyboardInterrupt("The run was stopped: the same call resumes it.")
    text = "".join(stdout.getvalue().splitlines(keepends=True)[:-1])  # without the JSON line
    return _record(planned, STATUSES[code], document, text)


def load(results: str | Path = "results") -> pd.DataFrame:
    """Return all records of a results folder, a row for each task of a cell.

    The columns are those of `python -m harness.collect`.

    Raises:
        UserError: if there is no such folder.
    """
    folder = Path(os.path.expanduser(results))
    if not os.path.isdir(folder):
        raise UserError(f"There is no folder {results}: call run() first, or name another folder.")
    return collect(folder)[0].to_pandas()


def _record(planned: Plan, status: str, document: dict, text: str) -> CellRecord:
    references = {role: _tasks_of(planned, planned.references[role]) for role in document.get("references", {})}
    tasks = _tasks_of(planned, planned.cell)
    folder = planned.results / planned.cell.cell_id
    return CellRecord(status, planned.cell.cell_id, folder, tasks, references, text)


def _tasks_of(planned: Plan, cell: Cell) -> dict[str, Record]:
    """The store's records of a cell for the planned tasks."""
    stored = zip(planned.tasks, planned_records(planned, cell), strict=True)
    return {task.task.name: record for task, record in stored if record is not None}


@contextlib.contextmanager
def _command_line(arguments: Sequence[str]) -> Iterator[None]:
    """Set sys.argv, which records name as the command that made them."""
    argv = sys.argv
    sys.argv = ["harness.run", *arguments]
    try:
        yield
    finally:
        sys.argv = argv
