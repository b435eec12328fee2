"""Prepare data of tasks and models on a machine with a network, for runs without one."""

import json
import sys
from collections.abc import Callable, Hashable, Iterable
from functools import partial
from pathlib import Path

from harness.common.errors import EXIT_FAILED, EXIT_OK, EXIT_RETRY, UserError
from harness.common.streams import printable
from harness.common.table import Table
from harness.experiment.machine import make_results_dir
from harness.experiment.plan import Plan
from harness.models.load import download

COLUMNS = ("what", "model", "context", "status", "samples", "sha256", "place")
HASH_DIGITS = 16  # digits of a hash that the table shows


def prepare(plans: Iterable[Plan], *, results: str, models: bool) -> int:
    """Make or fetch the inputs of these plans, each distinct input once, and print a table of them.

    Args:
        plans: plans of the runs.
        results: results folder, in which data of tasks are kept.
        models: whether to download models from the Hub, too.

    Returns:
        The exit code: 0, 1 if an input could not be made, or 75 if interrupted.

    Raises:
        UserError: for a mistake in a plan or an unwritable folder, before anything is made.
    """
    inputs = _inputs(plans, models=models)
    make_results_dir(results)
    try:
        outcomes = [(row, _make_input(make)) for row, make in inputs.values()]
    except KeyboardInterrupt:
        print("Stopped. What was made stays, and the same command goes on.", file=sys.stderr, flush=True)
        return EXIT_RETRY
    rows = [{**row, **outcome} for row, outcome in outcomes if outcome]
    cells = [[str(row.get(c, ""))[: HASH_DIGITS if c == "sha256" else None] for c in COLUMNS] for row in rows]
    Table("", list(COLUMNS), cells, [], words=2).print()
    failed = any(row["status"] == "error" for row in rows)
    print(json.dumps({"status": "failed" if failed else "ok", "data": rows}), flush=True)
    return EXIT_FAILED if failed else EXIT_OK


def _inputs(plans: Iterable[Plan], *, models: bool) -> dict[Hashable, tuple[dict, Callable]]:
    """Key of everything an input depends on -> the start of its row, and how to make it."""
    inputs: dict[Hashable, tuple[dict, Callable]] = {}
    for plan in plans:
        cell, model = plan.cell, plan.cell.model
        if models and model.repo and not model.random:
            row: dict[str, str | int] = {"what": "model", "model": model.name}
            inputs.setdefault((model.repo, model.revision), (row, partial(download, model)))
        for task in plan.tasks:
            samples, _ = task.task.amount(task.options, cell, plan.samples, plan.batch)
            row = {"what": task.task.name, "model": model.name, "context": cell.context}
            key = (task.task.name, str(task.asked), model.tokenizer, cell.context, cell.data_seed, samples)
            inputs.setdefault(key, (row, partial(task.prepare, cell, samples, plan.results)))
    return inputs


def _make_input(make: Callable) -> dict:
    """Make an input and return the other columns of its row; none for a task without data."""
    try:
        data = make()
    except (UserError, OSError, NotImplementedError) as error:
        print(printable(str(error)), file=sys.stderr, flush=True)
        status = "unsupported" if isinstance(error, NotImplementedError) else "error"
        return {"status": status, "message": str(error)}
    if data is None:
        return {}
    if isinstance(data, Path):
        return {"status": "ok", "place": str(data)}
    return {"status": "ok", "samples": data.count, "sha256": data.sha256, "place": str(data.place)}
