"""The command as a user types it: real cells, a failure among them, a signal, a second call."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from harness.analysis import reader
from harness.common.signals import StopRequest
from harness.results.store import TaskStore
from harness.sweep import run
from harness.sweep.__main__ import main
from harness.sweep.cells import expand
from harness.sweep.grid import read_grid
from tests.conftest import ROOT
from tests.measure.scale import counts_of_mix, growth, markdown, measure
from tests.models.random_models import lose_a_weight

FAST = {"context": 160, "samples": 8, "draws": 4, "references": "none", "kernel": "sdpa", "dtype": "float32"}


@pytest.fixture
def sweep(tmp_path):
    """Write a sweep file: sweep(masks=[2, 4], ...) -> its path. Options not given are those of
    FAST."""

    def write(**axes):
        parameters = {k: {"value": v} for k, v in FAST.items()}
        parameters |= {k: {"values": v} if isinstance(v, list) else {"value": v} for k, v in axes.items()}
        file = tmp_path / "s.yaml"
        content = {"program": "harness/run.py", "method": "grid", "parameters": parameters}
        file.write_text(yaml.safe_dump(content))
        return str(file)

    return write


@pytest.fixture
def call(capsys, tmp_path):
    """Call the command in this process: (exit code, last JSON line, stdout, stderr)."""

    def called(*arguments):
        code = main([*arguments, "--results", str(tmp_path / "results")])
        out, err = capsys.readouterr()
        return code, json.loads(out.splitlines()[-1]), out, err

    return called


def test_one_failing_cell_does_not_stop_the_others(sweep, call, checkpoint, tmp_path):
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in checkpoint.iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    lose_a_weight(broken)
    file = sweep(attn="plsh", masks=2, **{"model": "local", "model.path": [str(broken), str(checkpoint)]})
    code, document, out, err = call(file, "-j", "2")
    assert code == 1
    assert document["status"] == "failed"
    assert (document["done"], document["failed"]) == (1, 1)
    (failure,) = document["failures"]
    assert failure["row"] == 1
    assert "is not whole" in failure["why"]
    assert failure["why"] in out
    assert "row 1: failed" in err
    assert "row 2: done" in err
    logs = sorted((tmp_path / "results" / "logs" / "s").iterdir())
    assert [log.name[:4] for log in logs] == ["0001", "0002"]
    assert json.loads(logs[1].read_text().splitlines()[-1])["status"] == "ok"
    assert call(file, "--dry-run")[1]["to_run"] == []
    assert call(file, "--dry-run", "--retry", "failed")[1]["to_run"] == [1]
    code, document, _, err = call(file)  # nothing is started
    assert code == 1
    assert document["failed"] == 1
    assert "row" not in err
    assert call(file, "--status")[0] == 1
    assert call(file, "--dry-run", "samples=12")[1]["to_run"] == [2]  # more samples: the finished one goes on


def fail(file: str, results) -> None:
    """Give each row of a sweep a failure in the store."""
    record = {"status": "error", "error": "RuntimeError", "message": "made up", "attempt": "0"}
    for row in expand(read_grid(Path(file)), results=str(results)):
        TaskStore(results, row.cell_id, *row.work[0][1].rsplit("-", 1)).record_attempt("0", record)


@pytest.mark.parametrize("failed", [False, True], ids=["at first", "after a failure"])
def test_a_signal_is_passed_on_and_the_same_command_goes_on(sweep, call, tmp_path, failed):
    file = sweep(attn="alibi", masks=2, samples=400, batch=1, context=300, seed=[0])
    command = [sys.executable, "-m", "harness.sweep", file, "--results", str(tmp_path / "results")]
    if failed:
        fail(file, tmp_path / "results")
        command += ["--retry", "failed"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 120
    while not list(tmp_path.glob("results/*/retrieval-*/parts/*.jsonl")):
        assert time.monotonic() < until
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    document = json.loads(out.splitlines()[-1])
    assert process.returncode == 75 and document["status"] == "stopped" and document["stopped"] == 1, err
    (record,) = reader.records(tmp_path / "results")
    before = len(record.rows)
    assert 0 < before < 400
    assert call(file, "samples=8", "--status")[0] == 75
    assert call(file, "--dry-run")[1]["to_run"] == [1]


def test_failed_rows_that_a_stop_keeps_from_another_try_are_left_to_run(sweep, call, tmp_path, monkeypatch):
    file = sweep(attn="plsh", masks=[2, 4])
    fail(file, tmp_path / "results")
    assert call(file)[0] == 1
    for ended in ({}, {1: (75, None)}):  # before the first, and before the first has begun its task
        monkeypatch.setattr("harness.sweep.__main__.run_rows", lambda *_, ended=ended, **__: ended)
        code, document, _, _ = call(file, "--retry", "failed")
        assert code == 75
        assert document["status"] == "stopped"
        assert document["failed"] == 2


def test_logs_that_cannot_be_written_are_the_rows_complaint(sweep, call, tmp_path):
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "logs").write_text("")
    code, document, _, err = call(sweep(attn="plsh", masks=[2, 4]), "-j", "2")
    assert code == 1
    assert [failure["row"] for failure in document["failures"]] == [1, 2]
    assert all("could not be started" in failure["why"] for failure in document["failures"])
    assert "row 2: failed" in err


def processes(monkeypatch) -> list[subprocess.Popen]:
    """Let rows be processes that wait to be ended: they are in this list."""
    started = []

    def start(*_):
        started.append(subprocess.Popen(["sleep", "60"]))
        return started[-1]

    monkeypatch.setattr(run, "_start", start)
    return started


def test_a_fault_of_ours_leaves_no_process_behind(sweep, tmp_path, monkeypatch):
    started = processes(monkeypatch)

    def report(row, code):
        if row.number == 2:
            raise BrokenPipeError

    options = {"results": str(tmp_path), "name": "s", "jobs": 2, "stop": StopRequest(), "report": report}
    with pytest.raises(BrokenPipeError):
        run.run_rows(expand(read_grid(Path(sweep(attn="plsh", masks=[2, 4])))), **options)
    assert [process.wait(timeout=20) for process in started] == [-signal.SIGTERM]


def test_a_row_that_a_stop_ends_before_it_listens_is_stopped_and_not_failed(sweep, tmp_path, monkeypatch):
    started, stop = processes(monkeypatch), StopRequest()

    def report(row, code):
        stop._handle()

    options = {"results": str(tmp_path), "name": "s", "jobs": 1, "stop": stop, "report": report}
    ended = run.run_rows(expand(read_grid(Path(sweep(attn="plsh", masks=[2, 4])))), **options)
    assert ended == {1: (75, None)}
    assert len(started) == 1


def test_looking_at_a_sweep_makes_nothing_and_asks_nothing_of_this_machine(sweep, call, tmp_path):
    file = sweep(attn="plsh", masks=2, context=60000, kernel="exact", device="cuda:7")
    for mode in ("--dry-run", "--status"):
        assert call(file, mode)[1]["missing"] == 1
    assert main([file, "--missing", "--results", str(tmp_path / "results")]) == 0
    assert not (tmp_path / "results").exists()
    code, document, _, _ = call(file)
    assert code == 2
    assert "CUDA devices" in document["message"]


@pytest.mark.parametrize("mode", ["--dry-run", "--status"])
def test_a_store_that_may_only_be_read_can_be_looked_at(sweep, call, tmp_path, monkeypatch, mode):
    file = sweep(attn="plsh", masks=2)
    fail(file, tmp_path / "results")

    def refused(*_, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr("tempfile.TemporaryFile", refused)  # permissions would not hold root back
    monkeypatch.setattr("harness.results.index.write_whole", refused)
    assert call(file, mode)[1]["failed"] == 1
    assert "cannot be written" in call(file)[1]["message"]


def test_missing_rows_are_printed_for_a_shell(sweep, tmp_path, capsys):
    file = sweep(attn="plsh", masks=[2, 4], task=["[retrieval, ruler]"], samples=8)
    assert main([file, "--missing", "--results", str(tmp_path / "a folder"), "seed=3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["1", "2"]
    read = subprocess.run(
        ["bash", "-c", f"printf '%s\\n' {lines[1]}"], capture_output=True, text=True
    ).stdout.splitlines()
    assert "task=[retrieval, ruler]" in read
    assert f"results={tmp_path / 'a folder'}" in read
    assert "seed=3" in read
    assert "masks=4" in read


MISTAKES = [
    (("--jobs", "0"), "-j must be at least 1"),
    (("seed",), "is not KEY=VALUE"),
    (("results=x",), "--results"),
    (("masks=1,2",), "several values"),
    (("--retry", "all"), "invalid choice"),
    (("maks=3",), "Did you mean masks?"),
    (("--status", "--missing"), "not allowed with"),
    (("--prepare", "--retry", "failed"), "leave out --retry and -j"),
]


@pytest.mark.parametrize(("arguments", "says"), MISTAKES, ids=[" ".join(m[0]) for m in MISTAKES])
def test_mistakes_are_answered_before_anything_runs(sweep, call, tmp_path, arguments, says):
    code, document, _, err = call(sweep(masks=2), *arguments)
    assert code == 2
    assert document["status"] == "invalid"
    assert says in document["message"]
    assert says in err
    assert not list(tmp_path.glob("results/*"))


def test_figures_of_scale_are_measured_on_a_store_that_is_what_it_says(tmp_path):
    record = measure(1440, tmp_path)
    there = 1440 - counts_of_mix(1440)["missing"]
    assert [f["count"] for f in record["figures"]] == [720] * 3 + [1440] * 3 + [there] * 2
    assert "| cells expanded and checked | 1,440 |" in markdown(record)
    figures = [{"what": "x", "count": 10, "peak_mib": 5}, {"what": "x", "count": 522, "peak_mib": 6}]
    assert growth(figures) == {"x": 2.0}
