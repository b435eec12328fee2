"""Run what was planned: every task of a cell and its references, then the tables and the JSON line."""

import contextlib
import functools
import json
import os
import sys

from harness.analysis import reader, table
from harness.common.errors import AGAIN, DONE, FAILED, MISTAKE, STATUSES, CannotLoad, UserError
from harness.common.progress import Progress
from harness.common.ranks import Team
from harness.common.signals import StopRequest
from harness.common.table import say
from harness.experiment.execute import run_task, share_task
from harness.experiment.plan import Plan
from harness.models.load import load_model
from harness.tracking.tracker import Tracker


def run_plan(planned: Plan, stop: StopRequest, tracker: Tracker, team: Team) -> tuple[int, dict]:
    """Run the planned tasks of a cell and its references: (exit code, the JSON document that was
    printed). UserError where no task of it could run. Of several ranks the first records, reports
    and prints."""
    progress = Progress(quiet=not team.leads)
    if planned.memory:
        progress.say(planned.memory)
    model = functools.cache(lambda: load_model(planned.cell.model, device=planned.device, kernel=planned.cell.kernel))
    statuses: dict[str, dict[str, str]] = {}
    work = {"samples": planned.samples, "batch": planned.batch, "results": planned.results, "device": planned.device}
    work |= {"lease": planned.lease, "model": model, "stop": stop, "progress": progress, "team": team}
    do = run_task if team.leads else share_task
    mistakes: list[UserError] = []
    for cell in planned.cells:
        tracker.catch_up()
        for task in planned.tasks:
            team.next_turn()
            if stop.requested:
                status = "stopped"
            elif any(isinstance(mistake, CannotLoad) for mistake in mistakes):
                status = "invalid"
            else:
                try:
                    status = do(cell, task, **work)
                except UserError as mistake:  # the other tasks may still run
                    status = "invalid"
                    mistakes.append(mistake)
            team.decide(status)
            statuses.setdefault(cell.cell_id, {})[task.task.name] = status
        if not team.leads:
            continue
        with contextlib.suppress(OSError):  # a full disk: the view can be made again, the run goes on
            reader.write_view(planned.results, cell.cell_id)
        tracker.add(planned.results, cell.cell_id, planned.tracking, own=cell is planned.cell)
    ends = {status for tasks in statuses.values() for status in tasks.values()}
    if not team.leads:
        return AGAIN if "stopped" in ends else FAILED if ends & {"error", "oom", "invalid"} else DONE, {}
    if ends == {"invalid"}:
        raise mistakes[0]
    for sentence in dict.fromkeys(map(str, mistakes)):
        print(sentence, file=sys.stderr)
    code = MISTAKE if mistakes else AGAIN if "stopped" in ends else FAILED if ends & {"error", "oom"} else DONE
    try:
        return code, _report(planned, statuses, code, rows_written=progress.written)
    except (BrokenPipeError, SystemExit):  # whoever read stdout left (rich exits then); the results are in the store
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return code, {}


def _report(planned, statuses: dict, code: int, *, rows_written: int) -> dict:
    """Print the tables and the JSON line, from the store alone."""
    own = planned.cell
    beside = dict(planned.references)
    cells = {"exact": beside.pop("exact", None), "this cell": own, **beside}
    metrics: dict[str, dict] = {}
    present: set[str] = set()
    by_task: list[dict[str, reader.Record]] = []
    for task in planned.tasks:
        name, options = task.task.name, task.identity(own)
        shown: dict[str, reader.Record] = {}
        for role, cell in cells.items():
            if cell is not None:
                wanted = cell.task_id(name, options)
                for record in reader.records(planned.results, [cell.cell_id]):
                    if (record.task, record.store.task_id) == (name, wanted):
                        shown[role] = record
        if "this cell" in shown:
            metrics |= {name: metric.as_dict() for name, metric in shown["this cell"].metrics.items()}
        present |= set(shown)
        if shown:
            if task.task.rows_are == "samples":  # a time belongs beside its error, in its own table
                by_task.append(shown)
            title = f"{name} · {own.model.name} · {own.context} tokens"
            table.comparison(list(shown.values()), title=title).print()
            if depths := table.by_depth(list(shown.values())):
                depths.print()
    if len(by_task) > 1:
        table.across_tasks([list(shown.values()) for shown in by_task]).print()
    say(*table.notes({task.task.rows_are for task in planned.tasks}))
    missing = [role for role in planned.references if role not in present]
    if missing:
        print(f"Not in {planned.results}: {', '.join(missing)}. Add references=compute to compute what is missing.")
    print(f"Results: {planned.results / own.cell_id}")
    document = {
        "status": STATUSES[code],
        "cell_id": own.cell_id,
        "results": str(planned.results / own.cell_id),
        "tasks": statuses[own.cell_id],
        "rows_written": rows_written,
        "references": {role: cell.cell_id for role, cell in planned.references.items() if role in present},
        "metrics": metrics,
    }
    print(json.dumps(document), flush=True)
    return document
