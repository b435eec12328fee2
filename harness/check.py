"""`python -m harness.check [RESULTS] [--fix]`: hold a results folder to what it says of itself.

Names, ids, versions, checksums and numbers of rows, manifests of data, drafts left behind. --fix
moves what is wrong to RESULTS/aside/, where nothing reads it, and the next run computes what is
then missing; not while a run writes to the folder.
"""

import json
import os
import shutil
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from harness.analysis import reader, versions
from harness.common.command import Parser, command
from harness.common.errors import UserError
from harness.common.files import DRAFT, listed, odd_files, read_file, short_hash, write_whole
from harness.common.table import Table, say
from harness.results import aside, index
from harness.results.rows import Found
from harness.results.schema import LATER
from harness.results.store import CELL_FOLDER, OTHER_TASK, TASK_FOLDER, TaskStore
from harness.tasks.prepared import data_mismatch


@dataclass(frozen=True)
class Problem:
    """kind: cell, task, rows, data or draft. path: what --fix sets aside; where there is `found`,
    a task's folder or a part, of which the rows that can be believed stay."""

    kind: str
    path: Path
    why: str
    found: Found | None = None


@dataclass
class Checked:
    """How much there is, and what is wrong. notes: what need not be wrong."""

    cells: int = 0
    tasks: int = 0
    rows: int = 0
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@command
def main(arguments: Sequence[str]) -> int:
    """Returns 0 if nothing is wrong, or all of it was set aside; 1 if something is; 2 after a
    UserError, for invalid arguments."""
    parser = Parser(prog="python -m harness.check", description=__doc__.split("\n\n", 1)[1])
    parser.add_argument("results", nargs="?", type=Path, default=Path("results"), help="results folder (results)")
    parser.add_argument("--fix", action="store_true", help="set aside what is wrong")
    given = parser.parse_args(arguments)
    if not os.path.isdir(given.results):
        raise UserError(f"There is no folder {given.results}: run python -m harness.run first, or name another folder.")
    checked = check(given.results)
    done = fix(given.results, checked.problems) if given.fix else {}
    _tell(given.results, checked, done)
    return 1 if any(p.path not in done for p in checked.problems) else 0


def _tell(results: Path, checked: Checked, done: dict[Path, str]) -> None:
    problems = [
        {"what": p.kind, "where": str(p.path.relative_to(results)), "why": p.why, "aside": done.get(p.path)}
        for p in checked.problems
    ]
    if problems:
        rows = [[str(value or "") for value in problem.values()] for problem in problems]
        Table("", ["what", "where", "why", "set aside in"], rows, [], words=4).print()
    told = f"{len(problems)} problem{'s' * (len(problems) != 1)}" if problems else "nothing is wrong"
    say(f"{checked.cells} cells, {checked.tasks} tasks, {checked.rows} rows: {told}.", *checked.notes)
    status = "ok" if len(done) == len(problems) else "failed"
    counts = {"cells": checked.cells, "tasks": checked.tasks, "rows": checked.rows}
    print(json.dumps({"status": status, **counts, "problems": problems, "notes": checked.notes}), flush=True)


def check(results: Path) -> Checked:
    """Read all of a store, and write nothing."""
    checked = Checked()
    with odd_files(quiet=True) as odd:
        found = reader.records(results)
        for record in found:
            checked.problems += _of_task(record)
            checked.rows += record.count
    checked.cells, checked.tasks = len({r.cell_id for r in found}), len(found)
    checked.notes += _mixed(found)
    known = {p.path for p in checked.problems}
    checked.problems += [p for path, why in odd.items() if (p := _of_odd(path, why)).path not in known]
    for place in listed(results / "data"):
        if TASK_FOLDER.fullmatch(place.name) and (why := data_mismatch(place)):
            checked.problems.append(Problem("data", place, why))
    checked.problems += [Problem("draft", path, "a draft that a run left behind") for path in _drafts(results)]
    checked.problems = list({p.path: p for p in reversed(checked.problems)}.values())[::-1]
    return checked


def _of_task(record: reader.Record) -> Iterator[Problem]:
    """What is wrong with a task that is read as one."""
    folder, state, finished = record.store.folder, record.state, record.written
    _ = record.metrics, record.rows  # names those that cannot be read
    if state.why:
        yield Problem("rows", folder, state.why, record.found)
    elif finished and not state.finished:
        yield Problem("rows", folder / "task.json", f"of its {finished['samples']} rows some are not there")
    if not finished:
        return
    options = finished.get("options")
    own = {"cell": record.cell_id, "task": record.task, "options": options}
    if options is not None and short_hash(own) != record.store.task_id:
        yield Problem("task", folder / "task.json", "its options are not those that its id is a hash of")
    elif state.finished and record.outcome.as_json() != finished:
        yield Problem("task", folder / "task.json", "some of its fields cannot be read")


def _of_odd(path: Path, why: str) -> Problem:
    """What is to be done about a file or folder that no record is read from."""
    if path.name == "cell.json":
        return Problem("cell", path if CELL_FOLDER.fullmatch(path.parent.name) else path.parent, why)
    if path.name == "task.json" and OTHER_TASK in why:
        return Problem("task", path.parent, why)  # whose the rows are, nobody can say
    if path.parent.name == "parts" and path.is_file() and os.access(path, os.R_OK):
        return Problem("rows", path, why, Found())
    return Problem("task", path, why)


def _mixed(found: Sequence[reader.Record]) -> Iterator[str]:
    """Versions of files, and of libraries, that stand side by side."""
    written = Counter(r.outcome.version for r in found if r.outcome)
    if len(written) > 1:
        yield f"Outcomes of several versions: {', '.join(f'{n} of version {v}' for v, n in sorted(written.items()))}."
    if told := versions.differences((f"{r.cell.label}, {r.task}", r) for r in found):
        yield told


def _drafts(results: Path) -> Iterator[Path]:
    for place, folders, names in os.walk(results):
        if Path(place) == results:
            folders[:] = [name for name in folders if name not in (aside.FOLDER, "wandb", "logs")]
        yield from (Path(place) / name for name in (*folders, *names) if DRAFT.fullmatch(name))
        folders[:] = [name for name in folders if not DRAFT.fullmatch(name)]


def fix(results: Path, problems: Sequence[Problem]) -> dict[Path, str]:
    """Set aside what is wrong, but for what a later version wrote. Returns for each path that was
    where it is now."""
    place = aside.place_aside(results)
    done: dict[Path, str] = {}
    for problem in problems:
        if LATER in problem.why or problem.path == results:
            continue
        try:
            if problem.found is not None:
                _set_rows_aside(results, problem.path, problem.found, place)
            elif not done.keys() & set(problem.path.parents):
                aside.set_aside(results, problem.path, place)
        except OSError as error:
            print(f"{problem.path} cannot be set aside: {error}", file=sys.stderr)
        else:
            done[problem.path] = str(place)
    if done:  # what is remembered of the store
        shutil.rmtree(results / index.FOLDER, ignore_errors=True)
    return done


def _set_rows_aside(results: Path, path: Path, found: Found, place: Path) -> None:
    """Set aside the parts with lines that cannot be believed, and write those anew that can."""
    for part in [path] if path.suffix == ".jsonl" else listed(path / "parts", ".jsonl"):
        lines = [line for line in (read_file(part) or b"").split(b"\n") if line.strip()]
        believed = [line for line in lines if found.believed(line)]
        if len(believed) < len(lines):
            aside.set_aside(results, part, place)
            if believed:
                write_whole(part, b"".join(line + b"\n" for line in believed))
    name = TASK_FOLDER.fullmatch(path.name) if (path / "task.json").exists() else None
    if name and not TaskStore(results, path.parent.name, *name.groups()).state(verify=True).finished:
        aside.set_aside(results, path / "task.json", place)  # of rows that are no longer there


if __name__ == "__main__":
    sys.exit(main())
