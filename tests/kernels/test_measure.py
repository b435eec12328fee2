"""`python -m kernels.gpu`: a dry run on the CPU, and what is kept of steps that hang, die or are
not installed."""

import json
import os
import time
from pathlib import Path

import pytest

from kernels.check.calls import COUNT_32_HEADS
from kernels.gpu import __main__ as command
from kernels.gpu import session as measure
from kernels.gpu.session import Step
from tests.kernels.test_isolation import FOREIGN

# writes what it reaches; told to, it starts another process, and hangs or dies
MODULE = """
import os, subprocess, sys, time
from pathlib import Path
Path("found.json").write_text('{"left": ["a part"]}')
print("a word of", *sys.argv[1:], os.environ["PYTHONUNBUFFERED"])
tries = Path("tries.txt")
tries.write_text(tries.read_text() + "x" if tries.exists() else "x")
if sys.argv[1] == "hang":
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    Path("child.txt").write_text(str(child.pid))
    time.sleep(60)
if sys.argv[1] == "die" and len(tries.read_text()) < 3:
    sys.exit(1)
Path("found.json").write_text('{"left": []}')
print("x" * int(sys.argv[2]) if len(sys.argv) > 2 and sys.argv[2].isdecimal() else "", file=sys.stderr)
"""


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "step.py").write_text(MODULE)
    return tmp_path


def arguments(folder: Path, minutes: float = 1.0) -> list[str]:
    return ["--device", "cpu", "--minutes", str(minutes), "--out", str(folder)]


def state(folder: Path) -> dict:
    return json.loads((folder / measure.STATE).read_text())["steps"]


def test_a_dry_run_takes_every_step_and_a_second_one_takes_none(tmp_path, monkeypatch, capsys):
    """With torch, triton and numpy alone: importing anything else ends with the error of a package
    that is not installed."""
    folder = tmp_path / "gpu"
    (tmp_path / "sitecustomize.py").write_text(f"import sys\nsys.modules |= dict.fromkeys({FOREIGN})\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert command.main(arguments(folder, 3)) == 0
    assert list(state(folder)) == ["first", "check", "forward", "attend", "decode"]
    assert {x["status"] for x in state(folder).values()} == {"finished"}
    files = {file.name for file in folder.iterdir()}
    assert files == {"first.json", "check.json", "bench.json", "attend.json", "log.txt", "measure.json"}
    calls = [run["call"] for run in json.loads((folder / "bench.json").read_text())["runs"]]
    assert calls == ["forward", "forward", "decode-1", "decode-1"]
    rows = json.loads((folder / "attend.json").read_text())["rows"]
    assert [(row["tokens"], row["queries"]) for row in rows] == [
        (n, m) for n in (64, 128) for _ in "abc" for m in (n, 1)
    ]
    assert all(row["status"] == "ok" and 0 < row["host_ms"] <= row["ms"] for row in rows)
    assert "plsh rb, S=4" in (folder / "log.txt").read_text()
    monkeypatch.setattr(measure, "run", None)
    assert command.main(arguments(folder)) == 0
    kept = json.loads((folder / measure.STATE).read_text())
    (folder / measure.STATE).write_text(json.dumps(kept | {"environment": kept["environment"] | {"code": "other"}}))
    with pytest.raises(SystemExit):
        command.main(arguments(folder))
    assert "measured under another code: name another folder" in capsys.readouterr().err


def test_on_a_gpu_the_steps_are_those_of_the_page():
    steps = {step.name: step.command(100.0) for step in measure.steps("cuda", "abc") if not step.profiled}
    assert list(steps) == ["first", "check", "forward", "attend", "decode", "backward"]
    assert all(command[3:7] == ["--device", "cuda", "--commit", "abc"] for command in steps.values())
    assert steps["forward"][-4:] == ["--calls", "forward", "--minutes", "1.250"]  # none begun in its last quarter
    assert "--part" not in steps["check"]
    assert steps["first"][steps["first"].index("--part") + 1] == COUNT_32_HEADS
    assert len({step.file for step in measure.steps("cuda", None)} | {measure.STATE, measure.LOG}) <= 8


def test_a_step_that_hangs_is_stopped_with_all_it_started_and_keeps_its_file(folder, monkeypatch):
    some = [
        Step("hangs", 0.03, "found.json", "step", ("hang",), "left"),
        Step("next", 0.5, "found.json", "step", ("go",)),
    ]
    monkeypatch.setattr(measure, "steps", lambda *_: some)
    begin = time.monotonic()
    assert command.main(arguments(folder)) == 75 and time.monotonic() - begin < 20
    child = int((folder / "child.txt").read_text())
    assert not Path(f"/proc/{child}").exists() or "zombie" in Path(f"/proc/{child}/status").read_text()
    assert state(folder)["hangs"]["code"] is None and state(folder)["next"]["status"] == "finished"
    assert "a word of hang 1" in (folder / "log.txt").read_text()
    for file in folder.iterdir():
        file.chmod(0o444)  # as brought back from another machine
    assert command.main(arguments(folder)) == 1  # a second stop, and the other is not run again
    assert state(folder)["hangs"] | {"seconds": 0} == {
        "status": "failed",
        "seconds": 0,
        "tries": 2,
        "stops": 2,
        "code": None,
    }
    assert (folder / "tries.txt").read_text() == "xxx"


def test_a_bench_goes_on_after_a_row_that_took_it_down(folder, monkeypatch):
    monkeypatch.setattr(measure, "steps", lambda *_: [Step("dies", 0.5, "found.json", "step", ("die",), "left", True)])
    assert command.main(arguments(folder)) == 0
    assert state(folder)["dies"]["tries"] == 3 and state(folder)["dies"]["status"] == "finished"


def test_what_is_left_is_said_when_the_minutes_end(folder, monkeypatch, capsys):
    some = [
        Step("long", 1.0, "found.json", "step", ("hang",), "left", True),
        Step("next", 0.5, "found.json", "step", ()),
    ]
    monkeypatch.setattr(measure, "steps", lambda *_: some)
    assert command.main(arguments(folder, 0.05)) == 75
    assert "long: left, " in capsys.readouterr().out and state(folder)["next"]["tries"] == 0
    assert json.loads((folder / "found.json").read_text()) == {"left": ["a part"]}


def test_a_profile_is_the_words_of_ncu_and_no_failure_without_it(folder, monkeypatch):
    monkeypatch.setattr(measure, "steps", lambda *_: [Step("p", 0.5, "profile.txt", "step", ("go",), profiled=True)])
    monkeypatch.setattr(measure.shutil, "which", lambda *_, **__: None)
    assert command.main(arguments(folder)) == 0 and state(folder)["p"]["status"] == "absent"
    ncu = folder / "ncu"
    ncu.write_text('#!/bin/sh\necho "$@"\n')
    ncu.chmod(0o755)
    monkeypatch.setattr(measure.shutil, "which", lambda *_, **__: str(ncu))
    assert command.main(arguments(folder)) == 0 and state(folder)["p"]["status"] == "finished"
    told = (folder / "profile.txt").read_text()
    assert (
        "--section WarpStateStats" in told and "--clock-control none" in told and told.rstrip().endswith("-m step go")
    )
    assert "WarpStateStats" not in (folder / "log.txt").read_text()


def test_a_file_of_words_stays_small(folder, monkeypatch):
    monkeypatch.setattr(measure, "MAX_TEXT_BYTES", 4096)
    monkeypatch.setattr(measure, "steps", lambda *_: [Step("w", 0.5, "found.json", "step", ("go", "100000"))] * 3)
    assert command.main(arguments(folder)) == 0
    assert os.path.getsize(folder / "log.txt") < 2 * 4096


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--minutes", "0"], "a number above 0"),
        (["--device", "cuda"], "no CUDA GPU"),
        (["--minutes", "nan"], "above 0"),
    ],
)
def test_what_makes_no_sense_is_refused(given, said, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command.torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as stopped:
        command.main(["--out", str(tmp_path), "--device", "cpu", *given])
    assert stopped.value.code == 2 and said in capsys.readouterr().err
