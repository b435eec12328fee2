"""The sessions: what is drawn, and what is called with it. Each has a name, and a share of all
examples."""

import collections
import contextlib
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from harness.common.errors import UserError, report_mistake
from harness.common.paths import EMBEDDED
from harness.experiment.compose import compose_config
from harness.experiment.plan import Planner, to_run_config
from harness.models.load import load_model
from tests.fuzz import bench, documents, words

CELL = ("masks=4", "context=160", "samples=4", "draws=4", "references=none", "tracking=disabled")
SWEEP = """
program: harness.run
method: grid
parameters:
  masks: {values: [4]}
  attn: {values: [plsh, alibi]}
  context: {value: 160}
  references: {value: none}
  draws: {value: 4}
  samples: {value: 4}
  tracking: {value: disabled}
"""


@dataclass
class Report:
    """What a session has found. codes: how often each exit code came. broken: promises, in words."""

    name: str
    examples: int = 0
    codes: collections.Counter = field(default_factory=collections.Counter)
    broken: list[bench.Broken] = field(default_factory=list)
    seconds: float = 0.0

    def as_dict(self) -> dict:
        kinds = collections.Counter(broken.kind for broken in self.broken)
        return {
            "session": self.name,
            "examples": self.examples,
            "codes": {str(code): self.codes[code] for code in sorted(self.codes)},
            "broken": dict(sorted(kinds.items())),
            "seconds": round(self.seconds),
        }


@dataclass(frozen=True)
class Session:
    """share: of all examples. opened: in a `with` block, the strategy, and what is done with what it
    draws, which returns the exit code."""

    name: str
    share: float
    opened: Callable[[Path], contextlib.AbstractContextManager]


def run(session: Session, examples: int, *, start: int | None = None, tell: Callable = lambda broken: None) -> Report:
    """Draw so many examples. start: the seed; None for one that is the same at all times. tell: is
    called with each broken promise."""
    report, began = Report(session.name), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder, session.opened(Path(folder)) as (strategy, act):

        def example(drawn):
            report.examples += 1
            try:
                report.codes[act(drawn)] += 1
            except bench.Broken as broken:
                report.broken.append(broken)
                tell(broken)

        limits = settings(
            max_examples=examples,
            database=None,
            deadline=None,
            derandomize=start is None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        wanted = given(strategy)(example)
        limits(wanted if start is None else seed(start)(wanted))()
    report.seconds = time.monotonic() - began
    return report


def report_of(name: str, examples: int, start: int) -> dict:
    """Run a session of this name with its share of the examples, and tell on stderr what comes of
    it."""
    session = next(session for session in SESSIONS if session.name == name)

    def tell(broken: object) -> None:
        print(f"BROKEN {broken}\n", file=sys.stderr, flush=True)

    report = run(session, round(examples * session.share), start=start, tell=tell).as_dict()
    print(report, file=sys.stderr, flush=True)
    return report


@contextlib.contextmanager
def _run_lines(folder: Path) -> Iterator:
    with bench.inside(folder / "here"):
        yield words.run_words, lambda drawn: bench.call("harness.run", drawn)[0]


@contextlib.contextmanager
def _other_lines(folder: Path) -> Iterator:
    with bench.inside(folder / "here") as here:
        (here / "made" / "sweep.yaml").write_text(SWEEP)
        (here / "made" / "odd.yaml").write_text("{method: grid, parameters: {model: 7, context: ???}}")
        make_store(here / "made" / "store", here / "made" / "sweep.yaml")
        yield words.other_lines, lambda drawn: bench.call(f"harness.{drawn[0]}", drawn[1])[0]


@contextlib.contextmanager
def _checkpoints(folder: Path) -> Iterator:
    """One of a checkpoint's files is another one: the run is planned, and the model loaded."""
    place = folder / "checkpoint"
    shutil.copytree(EMBEDDED / "tiny", place)
    texts = {
        file.name: file.read_bytes()
        for name in ("config.json", "config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json")
        if (file := place / name).exists()
    }
    config = to_run_config(compose_config(["model=local", f"model.path={place}", *CELL]))

    def act(drawn: tuple[str, object]) -> int:
        name, content = drawn
        documents.put(place / name, content)
        try:
            return bench.held(lambda: _loaded(config, name), [name, str(content)[:300]])[0]
        finally:
            _clear(place / name)
            (place / name).write_bytes(texts[name])

    yield st.one_of([st.tuples(st.just(name), documents.contents(text)) for name, text in texts.items()]), act


def _loaded(config, name: str) -> int:
    try:
        plan = Planner().plan(config)  # which loads the tokenizer
        if name == "config.json":
            load_model(plan.cell.model, device=torch.device("cpu"), kernel="auto")
    except UserError as error:
        return report_mistake(str(error))
    return 0


@contextlib.contextmanager
def _stores(folder: Path) -> Iterator:
    """One of a store's files is another one, and a command reads the store; then harness.check sets
    aside what is wrong, and finds nothing more."""
    made, store, sweep = folder / "made", folder / "results", folder / "s.yaml"
    sweep.write_text(SWEEP)
    make_store(made, sweep)
    files = sorted(str(path.relative_to(made)) for path in made.rglob("*") if path.suffix in (".json", ".jsonl"))
    cells = [name.split("/")[0] for name in files if name.endswith("/cell.json")]
    calls = [
        ("harness.show", ["--results", str(store)]),
        ("harness.show", [cells[0], "--results", str(store)]),
        ("harness.collect", [str(store), "--out", str(folder / "out.csv")]),
        ("harness.collect", [str(store), "--out", str(folder / "out.parquet")]),
        ("harness.report.__main__", [str(store), "--out", str(folder / "page")]),
        ("harness.report.__main__", [str(store), "--markdown"]),
        ("harness.report.__main__", ["--compare", str(made), str(store)]),
        ("harness.pareto.__main__", [str(store)]),
        ("harness.pareto.__main__", [str(store), "--plan"]),
        ("harness.check", [str(store)]),
        ("harness.sweep.__main__", [str(sweep), "--results", str(store), "--status"]),
        ("harness.sweep.__main__", [str(sweep), "--results", str(store), "--missing"]),
        ("harness.sync", [str(store)]),
    ]

    def act(drawn: tuple[str, object, tuple[str, list[str]]]) -> int:
        name, content, (program, arguments) = drawn
        shutil.rmtree(store, ignore_errors=True)
        shutil.copytree(made, store, copy_function=os.link)  # nothing is written in place
        documents.put(store / name, content)
        told = f"[{name}: {str(content)[:300]}]"
        try:
            code = bench.call(program, arguments)[0]
            if program == "harness.check":
                bench.call(program, [str(store), "--fix"])
                if bench.call(program, [str(store)])[0] != 0:
                    raise bench.Broken("not mended", [program], "a second look finds more")
        except bench.Broken as broken:
            broken.args = (f"{told} {broken}",)
            raise
        return code

    texts = {name: (made / name).read_bytes() for name in files}
    drawn = st.one_of([st.tuples(st.just(name), documents.contents(text)) for name, text in texts.items()])
    yield st.tuples(drawn, st.sampled_from(calls)).map(lambda t: (*t[0], t[1])), act


def make_store(folder: Path, sweep: Path) -> None:
    """Two cells, with everything that a store may hold: attempts, prepared data, a lease, notes of
    W&B and an index."""
    for attn in ("plsh", "alibi"):
        bench.call("harness.run", [f"attn={attn}", *CELL, f"results={folder}"], stub_run=False)
    bench.call("harness.sweep.__main__", [str(sweep), "--results", str(folder), "--status"])
    bench.call("harness.collect", [str(folder), "--out", str(folder.parent / "out.csv")])
    for cell in folder.glob("*/cell.json"):
        upload = dict.fromkeys(("url", "server", "entity", "folder"))
        upload |= {
            "mode": "online",
            "hash": "x",
            "project": "p",
            "run_id": cell.parent.name,
            "at": "2026-01-01T00:00:00Z",
        }
        wish = {"project": "p", "entity": None, "group": None, "tags": ["draft"]}
        (cell.parent / "wandb.json").write_text(json.dumps({"wish": wish, "written": [upload]}))
        for task in cell.parent.glob("*/task.json"):
            record = json.loads(task.read_text())
            record = {k: v for k, v in record.items() if k not in ("metrics", "samples", "checksums", "after")}
            record |= {"status": "error", "error": "ValueError", "message": "x", "traceback": "y", "order": 1}
            (task.parent / "attempts").mkdir()
            (task.parent / "attempts" / f"{record['attempt']}.json").write_text(json.dumps(record))
            held = {"attempt": record["attempt"], "host": "here", "pid": 1}
            (task.parent / "lease.json").write_text(json.dumps(held))


def _clear(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        path.rmdir()
    else:
        path.unlink(missing_ok=True)


SESSIONS = (
    Session("words of harness.run", 0.08, _run_lines),
    Session("words of the other commands", 0.42, _other_lines),
    Session("files of a checkpoint", 0.25, _checkpoints),
    Session("files of a store", 0.25, _stores),
)
