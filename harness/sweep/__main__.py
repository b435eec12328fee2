"""Run a sweep file: all cells that are not in the results folder yet, or show their states.

Devices and memory of this machine are checked only before a run: --dry-run, --status, --missing and
--prepare check rows for any machine.

The file is in W&B's format (docs/sweeps.md). KEY=VALUE sets an option for all rows. stdout ends
with one JSON line. Exit codes: 0 all cells are done, 1 some failed, 2 invalid arguments, 75 stopped
or incomplete.
"""

import argparse
import json
import os
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.live import Live

from harness.common.command import Parser, command
from harness.common.errors import EXIT_RETRY, STATUSES, UserError
from harness.common.preflight import refuse_foreign_kernels
from harness.common.ranks import ranks
from harness.common.signals import StopRequest
from harness.experiment.prepare import prepare
from harness.sweep.cells import expand, plans
from harness.sweep.grid import Grid, check_override, read_grid
from harness.sweep.progress import Progress
from harness.sweep.rows import Rows
from harness.sweep.run import run_arguments, run_rows
from harness.sweep.status import DONE, FAILED, MISSING, STOPPED, State, json_summary, overview, states

REFRESH_INTERVAL = 2.0  # seconds


def parser() -> Parser:
    """Return the parser of the command line."""
    result = Parser(prog="python -m harness.sweep", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    result.add_argument("file", type=Path, help="sweep file, for example sweeps/tiny.yaml")
    result.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="options of harness.run for all rows")
    result.add_argument("--results", default="results", metavar="DIR", help="results folder (results)")
    result.add_argument("-j", "--jobs", type=int, default=1, metavar="N", help="cells at once (1)")
    result.add_argument("--retry", choices=["failed"], help="run the cells that failed, too")
    modes = result.add_mutually_exclusive_group()
    modes.add_argument("--dry-run", action="store_true", help="check all rows and show what would run")
    modes.add_argument("--status", action="store_true", help="show what is done; on a terminal until all is")
    modes.add_argument("--missing", action="store_true", help="print what is to be run: row number, then arguments")
    modes.add_argument("--prepare", action="store_true", help="fetch and make all that nodes without a network need")
    return result


@command
def main(arguments: Sequence[str]) -> int:
    """Run the command and return its exit code: 0, 1 if rows failed, 75 if rows are left to run, 2
    after a UserError, for a mistake."""
    options = parser().parse_intermixed_args(arguments)
    if options.jobs < 1:
        raise UserError(f"-j must be at least 1, not {options.jobs}.")
    refuse_foreign_kernels()
    if ranks() > 1:
        raise UserError("A sweep runs one process for each cell: start it without torchrun and accelerate launch.")
    grid = read_grid(options.file).with_overrides(_overrides(options.overrides))
    if options.prepare and (options.retry or options.jobs > 1):
        raise UserError("--prepare makes each piece once, whatever is done: leave out --retry and -j.")
    if options.prepare:
        planned = (plan for _, _, plan in plans(grid, results=options.results, on_this_machine=False))
        return prepare(planned, results=options.results, models=True)
    inspect_only = options.dry_run or options.status or options.missing
    rows = expand(grid, results=options.results, on_this_machine=not inspect_only)
    try:
        return _work(options, grid, rows)
    except KeyboardInterrupt:  # a second Ctrl-C
        _print_json({"status": STATUSES[EXIT_RETRY]})
        return EXIT_RETRY


def _work(options: argparse.Namespace, grid: Grid, rows: Rows) -> int:
    """Inspect or run the rows as the options ask, and return the exit code."""
    results = Path(os.path.expanduser(options.results))
    if options.missing:
        for row in rows_to_run(rows, states(rows, results), retry=options.retry):
            print(row.number, shlex.join(run_arguments(row, options.results)))
        return 0
    if options.status:
        return _status(rows, results, title=options.file.name)
    row_states = states(rows, results)
    pending = rows_to_run(rows, row_states, retry=options.retry)
    if options.dry_run:
        overview(rows, row_states, title=f"{options.file.name} in {results}").print()
        print(f"{len(pending)} cells would run.")
        _print_json(json_summary(rows, row_states, status="ok", to_run=[row.number for row in pending]))
        return 0
    with StopRequest() as stop, Progress(len(pending)) as progress:
        run_options = {"results": options.results, "name": grid.name, "jobs": options.jobs}
        exits = run_rows(pending, **run_options, stop=stop, report=progress)
    pairs = zip(rows, states(rows, results), strict=True)
    row_states = [_final_state(state, *exits.get(row.number, (0, None))) for row, state in pairs]
    overview(rows, row_states, title=f"{options.file.name} in {results}").print()
    # a failed row whose retry was prevented by a stop is still failed, but unfinished
    unfinished = any(exits.get(row.number, (EXIT_RETRY, None))[0] == EXIT_RETRY for row in pending)
    return _end(rows, row_states, unfinished=unfinished)


def rows_to_run(rows: Rows, row_states: Sequence[State], *, retry: str | None = None) -> Rows:
    """Return the rows that are missing or stopped.

    Args:
        rows: all rows.
        row_states: their states.
        retry: "failed" adds the failed rows.
    """
    names = {MISSING, STOPPED} | ({FAILED} if retry else set())
    return rows.select([position for position, state in enumerate(row_states) if state.name in names])


def _final_state(state: State, code: int, message: str | None) -> State:
    """Return the state of a finished row: the store's, or failed by its exit code."""
    if state.name in (MISSING, STOPPED) and code not in (0, EXIT_RETRY):
        return State(FAILED, message)
    return state


def _end(rows: Rows, row_states: Sequence[State], *, unfinished: bool = False) -> int:
    """Print the summary and return the exit code; unfinished: whether a row was not finished."""
    names = {state.name for state in row_states}
    code = 0 if names == {DONE} else EXIT_RETRY if unfinished or names & {MISSING, STOPPED} else 1
    _print_json(json_summary(rows, row_states, status={0: "ok", 1: "failed", EXIT_RETRY: "stopped"}[code]))
    return code


def _status(rows: Rows, results: Path, *, title: str) -> int:
    """Show the states, on a terminal until all rows have ended or the user interrupts."""
    console = Console()
    with StopRequest() as stop:
        row_states = states(rows, results)
        if console.is_terminal:
            with Live(console=console, auto_refresh=False) as live:
                while True:
                    live.update(overview(rows, row_states, title=f"{title} in {results}").renderable(), refresh=True)
                    if stop.requested or all(state.name in (DONE, FAILED) for state in row_states):
                        break
                    time.sleep(REFRESH_INTERVAL)
                    row_states = states(rows, results)
        else:
            overview(rows, row_states, title=f"{title} in {results}").print()
    return _end(rows, row_states)


def _overrides(arguments: Sequence[str]) -> dict[str, str]:
    values = {}
    for override in arguments:
        name, equals, text = override.partition("=")
        if not equals or not name:
            raise UserError(f"{override!r} is not KEY=VALUE.")
        if name == "results":
            raise UserError("Name the results folder with --results.")
        check_override(name, text)
        values[name] = text
    return values


def _print_json(content: dict) -> None:
    print(json.dumps(content), flush=True)


if __name__ == "__main__":
    sys.exit(main())
