"""`run` and `load`: what the commands `harness.run` and `harness.collect` do, for a notebook or a
program."""

import contextlib
import io
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd

from harness.analysis.reader import Record, records
from harness.cell import Cell
from harness.collect import collect, row_of
from harness.common.errors import STATUSES, UserError
from harness.common.preflight import refuse_foreign_kernels
from harness.common.ranks import Team
from harness.common.signals import StopRequest
from harness.common.stats import Metric
from harness.experiment.compose import compose_config, option_words
from harness.experiment.plan import Plan, plan
from harness.experiment.run_plan import run_plan
from harness.tracking.tracker import Tracker
from kernels.common.malloc import keep_freed_memory


@dataclass(frozen=True)
class CellRecord:
    """A cell as the store has it, with what stands beside it. Printed, it is the tables that the
    command prints.

    status: ok, failed (of a task that failed or ran out of memory the record says why) or invalid.
    tasks: the record of each task. references: the same of each reference that is there: "exact",
    "window fused", "window passes".
    """

    status: str
    cell_id: str
    folder: Path
    tasks: dict[str, Record]
    references: dict[str, dict[str, Record]]
    text: str

    @cached_property
    def metrics(self) -> dict[str, Metric]:
        """Every metric of the cell by its name, such as retrieval/accuracy: value, low, high, n,
        unit."""
        return {name: metric for record in self.tasks.values() for name, metric in record.metrics.items()}

    def frame(self) -> pd.DataFrame:
        """The cell and its references, a row for each task, with the columns of `load`."""
        found = [*self.tasks.values(), *(r for beside in self.references.values() for r in beside.values())]
        return pd.DataFrame([row_of(record) for record in found])

    def __str__(self) -> str:
        return self.text


def run(*words: str, **options: object) -> CellRecord:
    """Run one cell as `python -m harness.run` does, or find it in the store.

    Args:
        words: options as on the command line: "attn.weights=rb".
        options: options as Python values: model="tiny", masks=16. A mapping stands for the options
            of a group, attn={"name": "plsh", "weights": "rb"}, and for tasks with theirs,
            task={"ruler": {"names": ["ruler_vt"]}}.

    Returns:
        The record of the cell. A task that failed is a status and no exception, as it is on the
            command line.

    Raises:
        UserError: for what the command answers with exit code 2.
        KeyboardInterrupt: where a signal has stopped the run; what was computed is kept, and the
            same call goes on.
    """
    arguments = [*words, *option_words(options)]
    refuse_foreign_kernels()
    planned = plan(compose_config(arguments))
    keep_freed_memory()
    with contextlib.ExitStack() as around:
        team = around.enter_context(Team())
        stop = StopRequest()
        if threading.current_thread() is threading.main_thread():  # no other may set what a signal does
            around.enter_context(stop)
        around.enter_context(_recorded_as(arguments))
        printed = around.enter_context(contextlib.redirect_stdout(io.StringIO()))
        with Tracker(stop) as tracker:
            team.next_job()
            try:
                code, document = run_plan(planned, stop, tracker, team)
            finally:
                team.end_job()
    if stop.requested:
        raise KeyboardInterrupt("The run was stopped: the same call goes on where it was.")
    text = "".join(printed.getvalue().splitlines(keepends=True)[:-1])  # without the JSON line
    return _record(planned, STATUSES[code], document, text)


def load(results: str | Path = "results") -> pd.DataFrame:
    """All records of a results folder, a row for each task of a cell: the columns of `python -m
    harness.collect`. Raises UserError if there is no such folder."""
    folder = Path(results).expanduser()
    if not folder.is_dir():
        raise UserError(f"There is no folder {results}: call run() first, or name another folder.")
    return collect(folder)[0].to_pandas()


def _record(planned: Plan, status: str, document: dict, text: str) -> CellRecord:
    beside = {role: planned.references[role] for role in document.get("references", {})}
    own, *others = (_tasks_of(planned, cell) for cell in (planned.cell, *beside.values()))
    folder = planned.results / planned.cell.cell_id
    return CellRecord(status, planned.cell.cell_id, folder, own, dict(zip(beside, others, strict=True)), text)


def _tasks_of(planned: Plan, cell: Cell) -> dict[str, Record]:
    """What the store has of a cell and the planned tasks."""
    kept = {(record.task, record.store.task_id): record for record in records(planned.results, [cell.cell_id])}
    names = [(t.task.name, cell.task_id(t.task.name, t.identity(planned.cell))) for t in planned.tasks]
    return {name: kept[name, task_id] for name, task_id in names if (name, task_id) in kept}


@contextlib.contextmanager
def _recorded_as(arguments: Sequence[str]) -> Iterator[None]:
    """A record says by which command it was made."""
    before = sys.argv
    sys.argv = ["harness.run", *arguments]
    try:
        yield
    finally:
        sys.argv = before
