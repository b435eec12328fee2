"""Have on a machine with a network what runs elsewhere will read: data of tasks, and models."""

import json
import sys
from collections.abc import Callable, Hashable, Iterable
from functools import partial
from pathlib import Path

from harness.common.errors import AGAIN, DONE, FAILED, UserError
from harness.common.table import Table
from harness.experiment.machine import writable
from harness.experiment.plan import Plan
from harness.models.load import download

COLUMNS = ("what", "model", "context", "status", "samples", "sha256", "place")
DIGITS = 16  # of a hash that the table shows


def prepare(plans: Iterable[Plan], *, results: str, models: bool) -> int:
    """Have on this machine what runs of these plans read, each distinct piece once, and print what
    and where: the data of their tasks, and with models=True the files of the models that come from
    the Hub.

    Returns 0, 1 if something could not be had, or 75 if it was interrupted. Raises UserError before
    anything is made.
    """
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


def _wanted(plans: Iterable[Plan], *, models: bool) -> dict[Hashable, tuple[dict, Callable]]:
    """What is to be had, each piece by what it depends on: the beginning of its row, and what makes
    it."""
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
