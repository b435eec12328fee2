"""`python -m harness.run`: compose one cell with Hydra, run its tasks, print the table and one JSON
line."""

import contextlib
import json
import os
import sys
import types
from typing import TYPE_CHECKING

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from harness.common.errors import EXIT_FAILED, EXIT_INVALID, EXIT_OK, EXIT_RETRY, STATUSES, UserError, report_mistake
from harness.common.paths import CONF
from harness.common.preflight import refuse_foreign_kernels
from harness.common.ranks import Team
from harness.common.signals import StopRequest, ignore_signals
from harness.common.streams import print_in_any_encoding
from harness.experiment.config import register_schema
from harness.experiment.mistakes import explain, refuse_unknown_flags
from harness.experiment.overrides import normalize_arguments, parse_override
from harness.tracking.tracker import Tracker
from kernels.common.malloc import keep_freed_memory

if TYPE_CHECKING:
    pass


def main() -> int:
    """Run from sys.argv. Returns the exit code: 0 done, 1 a task failed, 2 a mistake, 75 stopped
    (run again)."""
    print_in_any_encoding()
    os.environ["HYDRA_FULL_ERROR"] = "1"  # let exceptions through to us instead of Hydra's own report
    register_schema()
    codes: list[int] = []
    cell_ids: list[str | None] = []

    @hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
    def job(cfg: DictConfig) -> None:
        document: dict = {}
        team.next_job()
        from harness.experiment.plan import plan
        from harness.experiment.run_plan import run_plan

        try:
            code, document = (EXIT_RETRY, {}) if stop.requested else run_plan(plan(cfg), stop, tracker, team)
        except UserError as error:
            code = report_mistake(str(error))
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
                sys.argv[1:] = normalize_arguments(sys.argv[1:])
                refuse_foreign_kernels()
                keep_freed_memory()
                with Tracker(stop) as tracker:
                    job()
            except UserError as error:
                return report_mistake(str(error))
            except (HydraException, OmegaConfBaseException) as error:
                return report_mistake(explain(error, sys.argv[1:]))
            code = next((c for c in (EXIT_INVALID, EXIT_RETRY, EXIT_FAILED) if c in codes), EXIT_OK)
            if _multirun():
                status = STATUSES[code] if codes else "unknown"  # a launcher has run the cells in other processes
                print(json.dumps({"status": status, "cells": cell_ids, "exit_codes": codes}), flush=True)
            return code
    except UserError as error:  # of the ranks
        return report_mistake(str(error))


def _multirun() -> bool:
    modes = [parse_override(a).value() for a in sys.argv[1:] if a.lstrip("+").startswith("hydra.mode=")]
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
