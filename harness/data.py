"""`python -m harness.data task=... [the options of harness.run]`: make or fetch the tasks' data
where there is a network, and hash it. It lies in the results folder; copied with it, nodes without
a network read the same samples. For all rows of a sweep, the models too: python -m harness.sweep
FILE --prepare."""

import json
import sys
from collections.abc import Callable, Hashable, Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from harness.common.errors import AGAIN, DONE, FAILED, UserError, refused
from harness.common.preflight import refuse_foreign_kernels
from harness.common.streams import print_in_any_encoding
from harness.common.table import Table
from harness.experiment.compose import composed

if TYPE_CHECKING:
    from harness.experiment.plan import Plan

COLUMNS = ("what", "model", "context", "status", "samples", "sha256", "place")
DIGITS = 16  # of a hash that the table shows


def main(arguments: list[str] | None = None) -> int:
    """Returns 0; 1 if data of a task could not be had, 2 for a mistake in the command."""
    print_in_any_encoding()
    arguments = sys.argv[1:] if arguments is None else arguments
    if {"-h", "--help"} & set(arguments):
        print(__doc__)
        return 0
    try:
        refuse_foreign_kernels()
        from harness.experiment.plan import Planner, typed

        plan = Planner(here=False).plan(typed(composed(arguments)))
        return prepare([plan], results=str(plan.results), models=False)
    except UserError as error:
        return refused(str(error))


def prepare(plans: Iterable["Plan"], *, results: str, models: bool) -> int:
    """Have on this machine what runs of these plans read, each distinct piece once, and print what
    and where: the data of their tasks, and with models=True the files of the models that come from
    the Hub.

    Returns 0, 1 if something could not be had, or 75 if it was interrupted. Raises UserError before
    anything is made.
    """
    from harness.experiment.machine import writable

    wanted = _wanted(plans, models=models)
    writable(results)
    try:
        had = [(row, _made(make)) for row, make in wanted.values()]
    except KeyboardInterrupt:
        print("Stopped. What was made stays, and the same command goes on.", file=sys.stderr, flush=True)
        return AGAIN
    found = [{**row, **rest} for row, rest in had if rest]
    shown = [[str(row.get(c, ""))[: DIGITS if c == "sha256" else None] for c in COLUMNS] for row in found]
    Table("", list(COLUMNS), shown, [], words=2).print()
    failed = any(row["status"] == "error" for row in found)
    print(json.dumps({"status": "failed" if failed else "ok", "data": found}), flush=True)
    return FAILED if failed else DONE


def _wanted(plans: Iterable["Plan"], *, models: bool) -> dict[Hashable, tuple[dict, Callable]]:
    """What is to be had, each piece by what it depends on: the beginning of its row, and what makes
    it."""
    from harness.models.load import download

    found: dict[Hashable, tuple[dict, Callable]] = {}
    for plan in plans:
        cell, model = plan.cell, plan.cell.model
        if models and model.repo and not model.random:
            row = {"what": "model", "model": model.name}
            found.setdefault((model.repo, model.revision), (row, partial(download, model)))
        for task in plan.tasks:
            samples, _ = task.task.amount(task.options, cell, plan.samples, plan.batch)
            row = {"what": task.task.name, "model": model.name, "context": cell.context}
            key = (task.task.name, str(task.asked), model.tokenizer, cell.context, cell.data_seed, samples)
            found.setdefault(key, (row, partial(task.prepare, cell, samples, plan.results)))
    return found


def _made(make: Callable) -> dict:
    """What became of a piece: the rest of its row, empty for a task without data."""
    try:
        found = make()
    except (UserError, OSError, NotImplementedError) as error:
        print(error, file=sys.stderr, flush=True)
        status = "unsupported" if isinstance(error, NotImplementedError) else "error"
        return {"status": status, "message": str(error)}
    if found is None:
        return {}
    if isinstance(found, Path):
        return {"status": "ok", "place": str(found)}
    return {"status": "ok", "samples": found.count, "sha256": found.sha256, "place": str(found.place)}


if __name__ == "__main__":
    sys.exit(main())
