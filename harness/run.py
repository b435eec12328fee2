"""`python -m harness.run`: compose one cell with Hydra, run its tasks, print the table and one JSON line."""

import json
import os
import sys
from collections.abc import Callable

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from harness.config import CONF, register
from harness.errors import UserError
from harness.mistakes import explain, refuse_unknown_flags
from harness.preflight import refuse_foreign_kernels

DONE, FAILED, MISTAKE, AGAIN = 0, 1, 2, 75


def main() -> int:
    """Run from sys.argv. Returns the exit code: 0 done, 1 a task failed, 2 a mistake, 75 stopped (run again)."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # let exceptions through to us instead of Hydra's own report
    register()
    codes: list[int] = []
    cell_ids: list[str] = []

    @hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
    def job(cfg: DictConfig) -> None:
        document = {}
        try:
            code, document = run_cell(cfg)
        except UserError as error:
            code = _mistake(str(error))
        codes.append(code)
        cell_ids.append(document.get("cell_id"))

    try:
        refuse_unknown_flags(sys.argv[1:])
        refuse_foreign_kernels()
        job()
    except UserError as error:
        return _mistake(str(error))
    except (HydraException, OmegaConfBaseException) as error:
        return _mistake(explain(error, sys.argv[1:]))
    code = next((c for c in (MISTAKE, AGAIN, FAILED) if c in codes), DONE)
    if _multirun():
        status = {DONE: "ok", FAILED: "failed", MISTAKE: "invalid", AGAIN: "stopped"}[code]
        print(json.dumps({"status": status, "cells": cell_ids, "exit_codes": codes}), flush=True)
    return code


def run_cell(cfg: DictConfig) -> tuple[int, dict]:
    """Run one composed configuration: (exit code, the JSON document that was printed)."""
    from harness.execute import StopRequest, run_task
    from harness.models.load import load_model
    from harness.plan import plan
    from harness.progress import Progress

    planned = plan(cfg)
    progress = Progress()
    progress.say(planned.memory)
    model = _lazily(lambda: load_model(planned.cell.model, device=planned.device, kernel=planned.cell.kernel))
    statuses: dict[str, dict[str, str]] = {}
    with StopRequest() as stop:
        for cell in planned.cells:
            for task in planned.tasks:
                if stop.requested:
                    status = "stopped"
                else:
                    status = run_task(
                        cell,
                        task,
                        samples=planned.samples,
                        batch=planned.batch,
                        results=planned.results,
                        device=planned.device,
                        model=model,
                        stop=stop,
                        progress=progress,
                    )
                statuses.setdefault(cell.cell_id, {})[task.task.name] = status
    ends = {status for tasks in statuses.values() for status in tasks.values()}
    code = AGAIN if "stopped" in ends else FAILED if ends & {"error", "oom"} else DONE
    return code, _report(planned, statuses, code)


def _report(planned, statuses: dict, code: int) -> dict:
    """Print the tables and the JSON line, from the store alone."""
    from harness import reader, table

    cells = {"this cell": planned.cell, **planned.references}
    order = ["exact", "this cell", "window fused", "window passes"]
    ids = list(dict.fromkeys(cells[role].cell_id for role in order if role in cells))
    found = reader.records(planned.results, ids)
    for task in planned.tasks:
        wanted = {c.cell_id: c.task_id(task.task.name, _options(task)) for c in cells.values()}
        shown = [r for r in found if r.task == task.task.name and wanted[r.cell_id] == r.store.task_id]
        if not shown:
            continue
        name = planned.cell.model.name
        table.comparison(shown, title=f"{task.task.name} · {name} · {planned.cell.context} tokens").print()
        if depths := table.by_depth(shown):
            depths.print()
    for note in table.NOTES:
        print(note)
    missing = [role for role, cell in planned.references.items() if not (planned.results / cell.cell_id).exists()]
    if missing:
        print(f"Not in {planned.results}: {', '.join(missing)}. Add references=compute to compute what is missing.")
    print(f"Results: {planned.results / planned.cell.cell_id}")
    own = [r for r in found if r.cell_id == planned.cell.cell_id]
    document = {
        "status": {DONE: "ok", FAILED: "failed", AGAIN: "stopped"}[code],
        "cell_id": planned.cell.cell_id,
        "results": str(planned.results / planned.cell.cell_id),
        "tasks": statuses[planned.cell.cell_id],
        "references": {role: cell.cell_id for role, cell in planned.references.items() if role not in missing},
        "metrics": {name: metric for r in own for name, metric in r.metrics.items()},
    }
    print(json.dumps(document), flush=True)
    return document


def _options(planned_task) -> dict:
    from harness.tasks.base import options_dict

    return options_dict(planned_task.options)


def _lazily(make: Callable):
    made = []
    return lambda: made[0] if made else (made.append(make()), made[0])[1]


def _mistake(sentence: str) -> int:
    print(sentence, file=sys.stderr)
    print(json.dumps({"status": "invalid", "message": sentence}), flush=True)
    return MISTAKE


def _multirun() -> bool:
    return any(a in ("-m", "--multirun") for a in sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
