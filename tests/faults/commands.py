"""Faults of the commands that read a store: they keep a cache in it, or write a file."""

import json
import random
import re
import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet

from tests.faults.bench import Case
from tests.faults.stores import Harm

OLD = b"what stood there before"
known: dict[tuple[Path, str], tuple[int, Any]] = {}  # by a run's folder and a program
lock = threading.Lock()  # of it


@dataclass(frozen=True)
class Command:
    """arguments: of a results folder and a folder for files. file: what it writes there. meaning:
    of what it wrote and printed, equal for equal stores."""

    program: str
    arguments: Callable[[Path, Path], list[str]]
    file: str | None
    meaning: Callable[[Path, str], Any]


def drawn(page: Path, _: str) -> str:
    """A page without the time and the place that its foot and its lead name."""
    text = page.read_text()
    assert text.startswith("<!doctype html>") and text.endswith("</html>\n"), "half a page"
    return re.sub(r"<(header|footer)>.*?</\1>", "", text, flags=re.DOTALL)


COMMANDS = (
    Command(
        "harness.collect",
        lambda results, out: [str(results), "--out", str(out / "all.parquet")],
        "all.parquet",
        lambda file, _: pyarrow.parquet.read_table(file).to_pylist(),
    ),
    Command("harness.report.__main__", lambda results, out: [str(results), "--out", str(out)], "index.html", drawn),
    Command(
        "harness.sweep.__main__",
        lambda results, out: [str(out / "sweep.yaml"), "--status", "--results", str(results)],
        None,
        lambda _, said: json.loads(said.splitlines()[-1]),
    ),
)


def kill_of_a_command(case: Case, rng: random.Random) -> list[int] | None:
    """A kill while a command reads a whole store with a whole, an older or no cache, at a line of
    its writing code. The file it writes must be the old one or the new one, and whole."""
    command, out = rng.choice(COMMANDS), case.results.with_name(f"{case.results.name}-out")
    case.clean.append(lambda: shutil.rmtree(out, ignore_errors=True))
    with lock:
        lines, meaning = _undisturbed(case, command)
    out.mkdir()
    _sweep_file(case, out)
    shutil.copytree(case.run.results, case.results, dirs_exist_ok=True)
    case.program, case.arguments = command.program, tuple(command.arguments(case.results, out))
    if (cache := rng.choice(["none", "whole", "older"])) != "none":
        held = [case.results / "held" for _ in range(cache == "older")]
        moved = min(case.results.glob("*/*/task.json"))
        for place in held:
            moved.rename(place)
        assert case.end(case.start()) in (0, 75)
        for place in held:
            place.rename(moved)
    file = out / command.file if command.file else None
    if file:
        file.write_bytes(OLD)
    code = case.end(case.start({"line": rng.randint(1, lines), "act": "SIGKILL"}))
    if code != -9:
        return None
    if file and file.read_bytes() != OLD:
        assert command.meaning(file, "") == meaning, f"{file.name} is neither the old nor the new one"

    case.beside = lambda: Harm(changed=command.meaning(file, case.out) != meaning)
    return [code]


def _undisturbed(case: Case, command: Command) -> tuple[int, Any]:
    """Lines of writing code, and what the command makes of the store of the case's run."""
    key = (case.run.results, command.program)
    if key not in known:
        work = case.run.results.with_name(f"{case.run.results.name}-{command.program}")
        results, out, lines = work / "results", work / "out", work / "lines"
        shutil.copytree(case.run.results, results)
        out.mkdir()
        _sweep_file(case, out)
        process = case.zygote.start(
            command.arguments(results, out), env=case.env, hook={"count": str(lines)}, program=command.program
        )
        said, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
        meaning = command.meaning(out / command.file if command.file else None, said)
        known[key] = case.lines_of(lines), meaning
    return known[key]


def _sweep_file(case: Case, out: Path) -> None:
    """A sweep of one row: the run of the case."""
    options = dict(argument.split("=", 1) for argument in case.run.arguments)
    parameters = {name: {"values": [value]} for name, value in options.items()}
    (out / "sweep.yaml").write_text(json.dumps({"name": "one", "method": "grid", "parameters": parameters}))
