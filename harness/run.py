"""`python -m harness.run`: compose one cell with Hydra, run its tasks, print the table and one JSON
line."""

import contextlib
import functools
import json
import os
import sys
import types
from typing import TYPE_CHECKING

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from harness.common.errors import AGAIN, DONE, FAILED, MISTAKE, STATUSES, CannotLoad, UserError, refused
from harness.common.paths import CONF
from harness.common.preflight import refuse_foreign_kernels
from harness.common.ranks import Team
from harness.common.signals import StopRequest, ignore_signals
from harness.common.streams import print_in_any_encoding
from harness.experiment.config import register
from harness.experiment.mistakes import explain, refuse_unknown_flags
from harness.experiment.overrides import parsed, settled
from harness.tracking.tracker import Tracker
from kernels.common.malloc import keep_freed_memory

if TYPE_CHECKING:
    from harness.experiment.plan import Plan


def main() -> int:
    """Run from sys.argv. Returns the exit code: 0 done, 1 a task failed, 2 a mistake, 75 stopped
    (run again)."""
    print_in_any_encoding()
    os.environ["HYDRA_FULL_ERROR"] = "1"  # let exceptions through to us instead of Hydra's own report
    register()
    codes: list[int] = []
    cell_ids: list[str] = []

    @hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
    def job(cfg: DictConfig) -> None:
        document = {}
        team.next_job()
        try:
            code, document = (AGAIN, {}) if stop.requested else run_cell(cfg, stop, tracker, team)
        except UserError as error:
            code = refused(str(error))
        finally:
            team.end_job()
        codes.append(code)
        cell_ids.append(document.get("cell_id"))

    try:
        # around all cells of a multirun: a signal stops the rest
        with contextlib.ExitStack() as around:
            team = around.enter_context(Team())
            if not team.leads:  # rank 0 prints for all
                sys.stdout = around.enter_context(open(os.devnull, "w"))
            stop = around.enter_context(StopRequest())
            try:
                refuse_unknown_flags(sys.argv[1:])
                sys.argv[1:] = settled(sys.argv[1:])
                refuse_foreign_kernels()
                keep_freed_memory()
                with Tracker(stop) as tracker:
                    job()
            except UserError as error:
                return refused(str(error))
            except (HydraException, OmegaConfBaseException) as error:
                return refused(explain(error, sys.argv[1:]))
            code = next((c for c in (MISTAKE, AGAIN, FAILED) if c in codes), DONE)
            if _multirun():
                status = STATUSES[code] if codes else "unknown"  # a launcher has run the cells in other processes
                print(json.dumps({"status": status, "cells": cell_ids, "exit_codes": codes}), flush=True)
            return code
    except UserError as error:  # of the ranks
        return refused(str(error))


def run_cell(cfg: DictConfig, stop: StopRequest, tracker: Tracker, team: Team) -> tuple[int, dict]:
    """Run one composed configuration: (exit code, the JSON document that was printed). UserError
    where no task of it could run. Of several ranks the first records, reports and prints."""
    from harness.experiment.plan import plan

    return run_plan(plan(cfg), stop, tracker, team)


def run_plan(planned: "Plan", stop: StopRequest, tracker: Tracker, team: Team) -> tuple[int, dict]:
    """As `run_cell`, of what was planned."""
    from harness.analysis import reader
    from harness.common.progress import Progress
    from harness.experiment.execute import run_task, share_task
    from harness.models.load import load_model

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
    from harness.analysis import reader, table
    from harness.common.table import say

    own = planned.cell
    beside = dict(planned.references)
    cells = {"exact": beside.pop("exact", None), "this cell": own, **beside}
    metrics, present = {}, set()
    by_task: list[dict] = []
    for task in planned.tasks:
        name, options = task.task.name, task.identity(own)
        shown = {}
        for role, cell in cells.items():
            if cell is not None:
                wanted = cell.task_id(name, options)
                for record in reader.records(planned.results, [cell.cell_id]):
                    if (record.task, record.store.task_id) == (name, wanted):
                        shown[role] = record
        if "this cell" in shown:
            metrics |= shown["this cell"].metrics
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


def _multirun() -> bool:
    modes = [parsed(a).value() for a in sys.argv[1:] if a.lstrip("+").startswith("hydra.mode=")]
    return modes[-1] == "MULTIRUN" if modes else any(a in ("-m", "--multirun") for a in sys.argv[1:])


class _Callable(types.ModuleType):
    """This module, which `from harness import run` gets: called, it is `harness.api.run`."""

    def __call__(self, *words: str, **options: object):
        from harness.api import run

        return run(*words, **options)


sys.modules[__name__].__class__ = _Callable

if __name__ == "__main__":
    ended = main()
    ignore_signals()  # while Python closes: what was printed and what is returned stay true
    sys.exit(ended)
