"""Run a plan: every task of a cell and its references, then the tables and the JSON line."""

import contextlib
import functools
import json
import sys
from typing import Any

from harness.analysis import reader, table
from harness.cell import Cell
from harness.common.errors import EXIT_FAILED, EXIT_INVALID, EXIT_OK, EXIT_RETRY, STATUSES, CannotLoad, UserError
from harness.common.files import remove_drafts
from harness.common.progress import Progress
from harness.common.ranks import Team
from harness.common.signals import StopRequest
from harness.common.streams import printable
from harness.common.table import say
from harness.experiment.execute import run_task, share_task
from harness.experiment.plan import Plan
from harness.models.load import LoadedModel, load_model
from harness.results import index
from harness.results.store import TROUBLES
from harness.tracking.tracker import Tracker

FAILURES = {"error", "oom", *TROUBLES}


def run_plan(plan: Plan, stop: StopRequest, tracker: Tracker, team: Team) -> tuple[int, dict]:
    """Run the planned tasks of a cell and its references, and print the tables and the JSON line.

    Of several ranks only rank 0 records, reports and prints.

    Args:
        plan: the plan.
        stop: checked between tasks and batches.
        tracker: gets each cell once its tasks have ended.
        team: the ranks that share the work.

    Returns:
        The exit code, and the JSON document that was printed.

    Raises:
        UserError: if none of the tasks could run.
    """
    progress = Progress(quiet=not team.leads)
    if plan.memory:
        progress.say(plan.memory)

    @functools.cache
    def model() -> LoadedModel:
        with stop.interrupts():
            return load_model(plan.cell.model, device=plan.device, kernel=plan.cell.kernel)

    statuses: dict[str, dict[str, str]] = {}
    arguments: dict[str, Any] = {
        "samples": plan.samples,
        "batch": plan.batch,
        "results": plan.results,
        "device": plan.device,
    }
    arguments |= {"lease": plan.lease, "model": model, "stop": stop, "progress": progress, "team": team}
    run = run_task if team.leads else share_task
    mistakes: list[UserError] = []
    if team.leads:
        _remove_drafts(plan)
    for cell in plan.cells:
        tracker.catch_up()
        for task in plan.tasks:
            team.next_turn()
            if stop.requested:
                status = "stopped"
            elif any(isinstance(mistake, CannotLoad) for mistake in mistakes):
                status = "invalid"
            else:
                try:
                    status = run(cell, task, **arguments)
                except UserError as mistake:  # the other tasks may still run
                    status = "invalid"
                    mistakes.append(mistake)
            team.decide(status)
            statuses.setdefault(cell.cell_id, {})[task.task.name] = status
        if not team.leads:
            continue
        # a full disk: the view can be rebuilt later, the run goes on
        with contextlib.suppress(OSError):
            reader.write_view(plan.results, cell.cell_id)
        tracker.add(plan.results, cell.cell_id, plan.tracking, requested=cell is plan.cell)
    outcomes = {status for tasks in statuses.values() for status in tasks.values()}
    if not team.leads:
        return _exit_code(outcomes), {}
    if outcomes == {"invalid"}:
        raise mistakes[0]
    for sentence in dict.fromkeys(map(str, mistakes)):
        print(printable(sentence), file=sys.stderr)
    code = EXIT_INVALID if mistakes else _exit_code(outcomes)
    return code, _report(plan, statuses, code, rows_written=progress.written)


def _exit_code(outcomes: set[str]) -> int:
    if "stopped" in outcomes:
        return EXIT_RETRY
    return EXIT_FAILED if outcomes & {*FAILURES, "invalid"} else EXIT_OK


def _remove_drafts(plan: Plan) -> None:
    """What runs that were killed have left where this one writes."""
    for cell in plan.cells:
        folder = plan.results / cell.cell_id
        for place in (folder, *folder.glob("*-*"), *folder.glob("*-*/attempts")):
            remove_drafts(place)
    for name in ("data", index.FOLDER):
        remove_drafts(plan.results / name)


def planned_records(plan: Plan, cell: Cell) -> list[reader.Record | None]:
    """Return the store's record of a cell for each planned task; None where there is none."""
    stored = {(record.task, record.store.task_id): record for record in reader.records(plan.results, [cell.cell_id])}
    keys = [(t.task.name, cell.task_id(t.task.name, t.identity(plan.cell))) for t in plan.tasks]
    return [stored.get(key) for key in keys]


def _report(plan: Plan, statuses: dict, code: int, *, rows_written: int) -> dict:
    """Print the tables and the JSON line, from the store alone."""
    main_cell = plan.cell
    references = dict(plan.references)
    cells = {"exact": references.pop("exact", None), "this cell": main_cell, **references}
    metrics: dict[str, dict] = {}
    present: set[str] = set()
    by_task: list[dict[str, reader.Record]] = []
    by_role = {role: planned_records(plan, cell) for role, cell in cells.items() if cell is not None}
    for place, task in enumerate(plan.tasks):
        records = {role: record for role, stored in by_role.items() if (record := stored[place]) is not None}
        if "this cell" in records:
            metrics |= {name: metric.as_dict() for name, metric in records["this cell"].metrics.items()}
        present |= set(records)
        if records:
            if task.task.rows_are == "samples":  # a time belongs beside its error, in its own table
                by_task.append(records)
            title = f"{task.task.name} · {main_cell.model.name} · {main_cell.context} tokens"
            table.comparison(list(records.values()), title=title).print()
            for breakdown in table.breakdowns(list(records.values())):
                breakdown.print()
    if len(by_task) > 1:
        table.across_tasks([list(records.values()) for records in by_task]).print()
    say(*table.notes({task.task.rows_are for task in plan.tasks}))
    missing = [name for name in plan.asked_references if name not in present]
    if missing:
        todo = "Run the command again" if plan.compute_references else "Add references=compute"
        print(f"Not in {plan.results}: {', '.join(missing)}. {todo} to compute what is missing.")
    print(f"Results: {plan.results / main_cell.cell_id}")
    document = {
        "status": STATUSES[code],
        "cell_id": main_cell.cell_id,
        "results": str(plan.results / main_cell.cell_id),
        "tasks": statuses[main_cell.cell_id],
        "rows_written": rows_written,
        "references": {role: cell.cell_id for role, cell in plan.references.items() if role in present},
        "metrics": metrics,
    }
    print(json.dumps(document), flush=True)
    return document
