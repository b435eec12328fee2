"""`python -m harness.run`: compose a cell with Hydra, run its tasks and print their tables."""

import contextlib
import json
import os
import sys
import types
from collections.abc import Iterator

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from harness.common.command import parsers_answer_in_a_sentence
from harness.common.errors import EXIT_FAILED, EXIT_INVALID, EXIT_OK, EXIT_RETRY, STATUSES, UserError, report_mistake
from harness.common.paths import CONF
from harness.common.preflight import refuse_foreign_kernels
from harness.common.ranks import Team
from harness.common.secrets import learn
from harness.common.signals import Stopped, StopRequest, ignore_signals
from harness.common.streams import steady_streams
from harness.experiment.config import register_schema
from harness.experiment.mistakes import explain, refuse_unknown_flags
from harness.experiment.overrides import normalize_arguments, parse_override
from harness.tracking.tracker import Tracker
from kernels.common.malloc import disable_malloc_trim


def main() -> int:
    """Run the command in sys.argv.

    Returns:
        The exit code: 0 done, 1 a task failed, 2 a mistake of the user's, 75 stopped (run again).
    """
    steady_streams()
    # pass exceptions on to us instead of printing Hydra's report
    os.environ["HYDRA_FULL_ERROR"] = "1"
    register_schema()
    codes: list[int] = []
    began = False  # whether a configuration was composed
    cell_ids: list[str | None] = []

    @hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
    def job(cfg: DictConfig) -> None:
        nonlocal began
        document: dict = {}
        began = True
        team.next_job()
        from harness.experiment.plan import plan
        from harness.experiment.run_plan import run_plan

        try:
            with stop.interrupts():
                planned = plan(cfg)
            code, document = run_plan(planned, stop, tracker, team)
        except Stopped:
            code = _report_stop()
        except UserError as error:
            code = report_mistake(str(error))
        finally:
            team.end_job()
        codes.append(code)
        cell_ids.append(document.get("cell_id"))

    try:
        # one context for all cells of a multirun, because a signal stops the remaining ones
        with contextlib.ExitStack() as stack:
            team = stack.enter_context(Team())
            if not team.leads:  # rank 0 prints for all
                sys.stdout = stack.enter_context(open(os.devnull, "w"))
            stop = stack.enter_context(StopRequest())
            try:
                learn(sys.argv[1:])
                refuse_unknown_flags(sys.argv[1:])
                sys.argv[1:] = normalize_arguments(sys.argv[1:])
                refuse_foreign_kernels()
                disable_malloc_trim()
                with Tracker(stop) as tracker, parsers_answer_in_a_sentence(), _no_file_of_the_sweep():
                    job()
            except UserError as error:
                return report_mistake(str(error))
            except Exception as error:
                if began and not isinstance(error, HydraException | OmegaConfBaseException):
                    raise
                # whatever Hydra and its libraries raise while they compose comes of the words
                return report_mistake(explain(error, sys.argv[1:]))
            code = next((c for c in (EXIT_INVALID, EXIT_RETRY, EXIT_FAILED) if c in codes), EXIT_OK)
            if _is_multirun():
                # a launcher has run the cells in other processes
                status = STATUSES[code] if codes else "unknown"
                print(json.dumps({"status": status, "cells": cell_ids, "exit_codes": codes}), flush=True)
            return code
    except UserError as error:  # raised while the ranks joined
        return report_mistake(str(error))
    except KeyboardInterrupt:  # a second Ctrl-C
        return _report_stop()


@contextlib.contextmanager
def _no_file_of_the_sweep() -> Iterator[None]:
    """In the `with` block: Hydra leaves no multirun.yaml in the results folder, which would hold all
    words of the command line."""

    before = OmegaConf.save
    OmegaConf.save = staticmethod(lambda *_, **__: None)  # type: ignore[method-assign]
    try:
        yield
    finally:
        OmegaConf.save = staticmethod(before)  # type: ignore[method-assign]


def _report_stop() -> int:
    """Print the JSON line of a stopped run, and return the exit code."""
    if not sys.stdout.closed:  # it is on ranks other than 0 once they have left the team
        print(json.dumps({"status": STATUSES[EXIT_RETRY]}), flush=True)
    return EXIT_RETRY


def _is_multirun() -> bool:
    modes = [parse_override(a).value() for a in sys.argv[1:] if a.lstrip("+").startswith("hydra.mode=")]
    return modes[-1] == "MULTIRUN" if modes else any(a in ("-m", "--multirun") for a in sys.argv[1:])


class _Callable(types.ModuleType):
    """This module as `from harness import run` imports it: a call runs `harness.api.run`."""

    def __call__(self, *words: str, **options: object):
        from harness.api import run

        return run(*words, **options)


sys.modules[__name__].__class__ = _Callable

if __name__ == "__main__":
    exit_code = main()
    ignore_signals()  # a signal during shutdown would change the exit code that was just printed
    sys.exit(exit_code)
