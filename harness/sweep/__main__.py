"""Run a sweep file: every cell that is not in the results folder yet, or show what is there.

Only what is to run here is held to this machine's devices and memory: --dry-run, --status,
--missing and --prepare ask whether the rows are right for any machine.

The file is in W&B's format (docs/sweeps.md). KEY=VALUE sets an option for all rows. stdout ends
with one JSON line. Exit codes: 0 all cells are done, 1 some failed, 2 a mistake, 75 stopped or not
complete.
"""

import argparse
import json
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.live import Live

from harness.common.errors import EXIT_RETRY, UserError, report_mistake
from harness.common.preflight import refuse_foreign_kernels
from harness.common.ranks import ranks
from harness.common.signals import StopRequest
from harness.common.streams import print_in_any_encoding
from harness.experiment.prepare import prepare
from harness.sweep.cells import Mistakes, expand, plans
from harness.sweep.grid import checked, read
from harness.sweep.progress import Progress
from harness.sweep.rows import Rows
from harness.sweep.run import command, run_rows
from harness.sweep.status import DONE, FAILED, MISSING, STOPPED, State, document, overview, states

REFRESH = 2.0  # seconds


class _Parser(argparse.ArgumentParser):
    def error(self, message: str):
        raise UserError(f"{message}. See python -m harness.sweep --help.")


def parser() -> argparse.ArgumentParser:
    made = _Parser(prog="python -m harness.sweep", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    made.add_argument("file", type=Path, help="sweep file, for example sweeps/tiny.yaml")
    made.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="options of harness.run for all rows")
    made.add_argument("--results", default="results", metavar="DIR", help="results folder (results)")
    made.add_argument("-j", "--jobs", type=int, default=1, metavar="N", help="cells at once (1)")
    made.add_argument("--retry", choices=["failed"], help="run the cells that failed, too")
    modes = made.add_mutually_exclusive_group()
    modes.add_argument("--dry-run", action="store_true", help="check all rows and show what would run")
    modes.add_argument("--status", action="store_true", help="show what is done; on a terminal until all is")
    modes.add_argument("--missing", action="store_true", help="print what is to be run: row number, then arguments")
    modes.add_argument("--prepare", action="store_true", help="fetch and make all that nodes without a network need")
    return made


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code."""
    print_in_any_encoding()
    try:
        given = parser().parse_intermixed_args(arguments)
        if given.jobs < 1:
            raise UserError(f"-j must be at least 1, not {given.jobs}.")
        refuse_foreign_kernels()
        if ranks() > 1:
            raise UserError("A sweep runs one process for each cell: start it without torchrun and accelerate launch.")
        grid = read(given.file).fixed(_overrides(given.overrides))
        if given.prepare and (given.retry or given.jobs > 1):
            raise UserError("--prepare makes each piece once, whatever is done: leave out --retry and -j.")
        if given.prepare:
            planned = (plan for _, plan in plans(grid, results=given.results, here=False))
            return prepare(planned, results=given.results, models=True)
        elsewhere = given.dry_run or given.status or given.missing
        rows = expand(grid, results=given.results, here=not elsewhere)
    except UserError as error:
        return _invalid(error)
    results = Path(given.results).expanduser()
    if given.missing:
        for row in to_run(rows, states(rows, results), retry=given.retry):
            print(row.number, shlex.join(command(row, given.results)))
        return 0
    if given.status:
        return _status(rows, results, title=given.file.name)
    found = states(rows, results)
    chosen = to_run(rows, found, retry=given.retry)
    if given.dry_run:
        overview(rows, found, title=f"{given.file.name} in {results}").print()
        print(f"{len(chosen)} cells would run.")
        _say(document(rows, found, status="ok", to_run=[row.number for row in chosen]))
        return 0
    with StopRequest() as stop, Progress(len(chosen)) as tell:
        options = {"results": given.results, "name": grid.name, "jobs": given.jobs}
        ended = run_rows(chosen, **options, stop=stop, tell=tell)
    after = zip(rows, states(rows, results), strict=True)
    found = [_after(state, *ended.get(row.number, (0, None))) for row, state in after]
    overview(rows, found, title=f"{given.file.name} in {results}").print()
    # a row to be tried again that a stop kept from it is still what it was: failed
    left = any(ended.get(row.number, (EXIT_RETRY, None))[0] == EXIT_RETRY for row in chosen)
    return _end(rows, found, left=left)


def to_run(rows: Rows, found: Sequence[State], *, retry: str | None = None) -> Rows:
    """The rows that are missing or stopped, and with retry="failed" those that failed."""
    wanted = {MISSING, STOPPED} | ({FAILED} if retry else set())
    return rows.only([place for place, state in enumerate(found) if state.name in wanted])


def _after(state: State, code: int, why: str | None) -> State:
    """The state of a row that ended just now: the store's, and where that knows of no failure, the
    exit code's."""
    if state.name in (MISSING, STOPPED) and code not in (0, EXIT_RETRY):
        return State(FAILED, why)
    return state


def _end(rows: Rows, found: Sequence[State], *, left: bool = False) -> int:
    """left: a row that was to run was not brought to an end."""
    names = {state.name for state in found}
    code = 0 if names == {DONE} else EXIT_RETRY if left or names & {MISSING, STOPPED} else 1
    _say(document(rows, found, status={0: "ok", 1: "failed", EXIT_RETRY: "stopped"}[code]))
    return code


def _status(rows: Rows, results: Path, *, title: str) -> int:
    """Show the states once; on a terminal until nothing is missing or somebody interrupts."""
    console = Console()
    with StopRequest() as stop:
        found = states(rows, results)
        if console.is_terminal:
            with Live(console=console, auto_refresh=False) as live:
                while True:
                    live.update(overview(rows, found, title=f"{title} in {results}").renderable(), refresh=True)
                    if stop.requested or all(state.name in (DONE, FAILED) for state in found):
                        break
                    time.sleep(REFRESH)
                    found = states(rows, results)
        else:
            overview(rows, found, title=f"{title} in {results}").print()
    return _end(rows, found)


def _overrides(given: Sequence[str]) -> dict[str, str]:
    found = {}
    for override in given:
        name, equals, text = override.partition("=")
        if not equals or not name:
            raise UserError(f"{override!r} is not KEY=VALUE.")
        if name == "results":
            raise UserError("Name the results folder with --results.")
        checked(name, text)
        found[name] = text
    return found


def _invalid(error: UserError) -> int:
    rows = error.rows if isinstance(error, Mistakes) else {}
    mistakes = [{"message": sentence, "rows": list(numbers)} for sentence, numbers in rows.items()]
    return report_mistake(str(error), **({"mistakes": mistakes} if mistakes else {}))


def _say(content: dict) -> None:
    print(json.dumps(content), flush=True)


if __name__ == "__main__":
    sys.exit(main())
