"""One odd file spoils one record, not the store: every command names it once on stderr and goes
on."""

import json
import os
import shutil
import sys

import pytest

from harness import collect, show
from harness.common.streams import say_once
from harness.report import __main__ as report
from harness.sweep import __main__ as sweep
from harness.tracking.content import content_of

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


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Two real cells, PLSH and exact ALiBi. Not to be written to."""
    from harness.run import main

    folder = tmp_path_factory.mktemp("made") / "results"
    with pytest.MonkeyPatch.context() as patch:
        for attn in ("plsh", "alibi"):
            patch.setattr(sys, "argv", ["harness.run", f"attn={attn}", *CELL, f"results={folder}"])
            assert main() == 0
    return folder


@pytest.fixture
def results(made, tmp_path):
    say_once.cache_clear()
    return shutil.copytree(made, tmp_path / "results")


def plsh_task(results):
    """The task's folder of the PLSH cell."""
    (cell,) = [p.parent for p in results.glob("*/cell.json") if '"plsh"' in p.read_text()]
    return next(cell.glob("retrieval-*"))


def replaced(path, by):
    """Put something else in a file's place: text, or a function that makes it."""
    path.unlink(missing_ok=True)
    path.write_text(by) if isinstance(by, str) else by(path)


def edited(path, change):
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def dangling(path):
    path.symlink_to(path.parent / "nowhere")


ODD = {"folder": os.mkdir, "dangling": dangling, "fifo": os.mkfifo, "list": "[1]", "deep": "[" * 100_000}
ODD |= {"nested": '{"a":' * 500 + "1" + "}" * 500, "nan": '{"status": NaN}', "large": '{"samples": 1e999}'}
ROWS = {
    "key": '{"key": 1e999}',
    "no key": '{"score": 1}',
    "deep": "[" * 100_000,
    "list": "[]",
    "text": "é\\x",
    "nan": "NaN",
}
CHANGES = {
    "metric name": lambda r: r["metrics"].update({"retrieval/accuracy_depth_0>75": r["metrics"]["retrieval/accuracy"]}),
    "no slash": lambda r: r["metrics"].update({"accuracy": r["metrics"]["retrieval/accuracy"]}),
    "no unit": lambda r: r["metrics"]["retrieval/accuracy"].pop("unit"),
    "no high": lambda r: r["metrics"]["retrieval/accuracy"].pop("high"),
    "metrics of numbers": lambda r: r.update(metrics={f"t/{i}": i for i in range(60)}),
    "quote": lambda r: r["environment"].update(command="python -m harness.run 'masks=4"),
    "samples": lambda r: r.update(samples="x"),
    "status": lambda r: r.update(status=["ok"]),
    "environment": lambda r: r.update(environment=7),
}


def every_reader(results, tmp_path, capsys):
    """Every command that only reads; what was said on stderr."""
    capsys.readouterr()
    assert show.main(["--results", str(results)]) == 0
    assert collect.main([str(results), "--out", str(tmp_path / "o.csv")]) == 0
    assert report.main([str(results), "--out", str(tmp_path / "page")]) == 0
    (tmp_path / "s.yaml").write_text(SWEEP)
    assert sweep.main([str(tmp_path / "s.yaml"), "--results", str(results), "--status"]) in (0, 75)
    for cell in results.glob("*/cell.json"):
        content_of(results, cell.parent.name)
    return capsys.readouterr().err


def said_once(err, name):
    lines = [line for line in err.splitlines() if "left out" in line]
    assert len(lines) == len(set(lines)) and any(name in line for line in lines), err


@pytest.mark.parametrize("odd", ODD)
def test_an_outcome_that_is_none(results, tmp_path, capsys, odd):
    replaced(plsh_task(results) / "task.json", ODD[odd])
    said_once(every_reader(results, tmp_path, capsys), "task.json")


@pytest.mark.parametrize("odd", ["fifo", "list", "nested"])
def test_a_cell_that_is_none(results, tmp_path, capsys, odd):
    replaced(plsh_task(results).parent / "cell.json", ODD[odd])
    said_once(every_reader(results, tmp_path, capsys), "cell.json")


def test_attempts_that_are_none(results, tmp_path, capsys):
    for odd, made in ODD.items():
        path = plsh_task(results) / "attempts" / f"{odd}.json"
        path.parent.mkdir(exist_ok=True)
        replaced(path, made)
    err = every_reader(results, tmp_path, capsys)
    for odd in ODD:
        said_once(err, f"{odd}.json")


@pytest.mark.parametrize("odd", ["folder", "dangling", "fifo"])
def test_a_part_that_is_no_file_costs_its_rows(results, run, tmp_path, capsys, odd):
    parts = plsh_task(results) / "parts"
    ODD[odd](parts / "x.jsonl")
    said_once(every_reader(results, tmp_path, capsys), "x.jsonl")
    code, document, _, _ = run(*CELL, f"results={results}")
    assert code == 0 and document["rows_written"] == 0 and document["metrics"]


def test_lines_that_are_no_rows(results, tmp_path, capsys):
    (part,) = plsh_task(results).glob("parts/*.jsonl")
    lines = part.read_text().splitlines()
    part.write_text("\n".join([lines[0], *ROWS.values(), *lines[1:]]) + "\n")
    err = every_reader(results, tmp_path, capsys)
    said_once(err, part.name)
    assert f"{len(ROWS)} of its lines" in err


@pytest.mark.parametrize("change", CHANGES)
def test_a_field_that_is_none(results, tmp_path, capsys, change):
    edited(plsh_task(results) / "task.json", CHANGES[change])
    err = every_reader(results, tmp_path, capsys)
    assert change == "quote" or "left aside" in err or "left out" in err


@pytest.mark.skipif(os.getuid() == 0, reason="root may read everything")
def test_a_file_of_another_user(results, tmp_path, capsys):
    path = plsh_task(results) / "task.json"
    path.chmod(0)
    said_once(every_reader(results, tmp_path, capsys), path.name)


@pytest.mark.parametrize("content", ["[1]", '{"written": [[]], "wish": 7}', "[" * 100_000])
def test_an_odd_note_of_the_mirror_does_not_end_a_run(results, run, content):
    (plsh_task(results).parent / "wandb.json").write_text(content)
    code, document, _, _ = run(*CELL, "tracking=offline", f"results={results}")
    assert code == 0 and document["status"] == "ok"
