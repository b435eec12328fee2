"""The optional lease: two runs of one cell compute each row once, and no lease of the dead or of
anybody's making holds a run for long or changes a row."""

import json
import signal
import threading
import time
from pathlib import Path

import pytest

from harness.results.lease import FILE, Lease
from tests.faults.stores import Harm, counted, harm

RUN = ("attn=plsh", "masks=2", "draws=2", "context=96", "samples=24", "batch=2", "references=none", "kernel=sdpa")


@pytest.fixture(scope="module")
def undisturbed(zygote, tmp_path_factory):
    results = tmp_path_factory.mktemp("undisturbed")
    assert zygote.start([*RUN, f"results={results}"]).wait(timeout=120) == 0
    return counted(results)


def begun(results) -> bool:
    return any(p.stat().st_size for p in results.glob("*/*/parts/*.jsonl"))


def test_two_writers_compute_each_row_once(start, tmp_path, undisturbed):
    writers = [start(*RUN, "lease=30", f"results={tmp_path}") for _ in range(2)]
    assert [w.wait(timeout=120) for w in writers] == [0, 0]
    assert harm(tmp_path, undisturbed, {}) == Harm() and not list(tmp_path.glob(f"*/*/{FILE}"))
    assert len(list(tmp_path.glob("*/*/parts/*.jsonl"))) == 1


def test_the_lease_of_a_killed_run_is_taken_over_at_once(start, tmp_path, undisturbed):
    process = start(*RUN, "lease=1000", f"results={tmp_path}")
    while not begun(tmp_path):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(list(tmp_path.glob(f"*/*/{FILE}"))) == 1
    assert start(*RUN, "lease=1000", f"results={tmp_path}").wait(timeout=120) == 0
    assert harm(tmp_path, undisturbed, {}) == Harm()


def test_who_waits_can_be_stopped(start, tmp_path, undisturbed):
    (cell, task) = next(iter(undisturbed))
    (tmp_path / cell / task).mkdir(parents=True)
    (tmp_path / cell / task / FILE).write_text(json.dumps({"attempt": "theirs", "host": "elsewhere", "pid": 1}))
    process = start(*RUN, "lease=1000", f"results={tmp_path}")
    while not process.listens():
        time.sleep(0.01)
    time.sleep(1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 75 and not begun(tmp_path)


def test_a_folder_in_place_of_the_lease_keeps_nobody(start, tmp_path, undisturbed):
    (cell, task) = next(iter(undisturbed))
    (tmp_path / cell / task / FILE).mkdir(parents=True)
    assert start(*RUN, "lease=1", f"results={tmp_path}").wait(timeout=120) == 0
    assert harm(tmp_path, undisturbed, {}) == Harm()


@pytest.mark.parametrize("content", [{"attempt": "theirs", "host": "elsewhere", "pid": 1}, None])
def test_a_silent_holder_is_taken_for_dead_and_one_that_touches_the_file_is_not(tmp_path, content):
    path = tmp_path / FILE
    path.write_text(json.dumps(content) if content else "{torn")
    gone = threading.Event()

    def touch() -> None:
        for _ in range(20):
            path.touch()
            time.sleep(0.05)
        gone.set()

    threading.Thread(target=touch).start()
    mine = Lease(tmp_path, "mine", 0.8)
    mine.take(lambda: False)
    assert gone.is_set() and json.loads(path.read_text())["attempt"] == "mine"
    mine.release()
    assert not path.exists()


def test_a_lease_that_cannot_be_written_keeps_nobody(tmp_path):
    (tmp_path / "file").write_text("")
    lease = Lease(tmp_path / "file" / "task", "mine", 1000)
    lease.take(lambda: False)
    lease.release()


def test_a_lease_that_cannot_be_removed_is_no_error(tmp_path, monkeypatch):
    """The folder may become read-only while the task runs. (Root may remove a file all the same, so
    that the refusal is made here.)"""

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    lease = Lease(tmp_path, "mine", 1000)
    lease.take(lambda: False)
    monkeypatch.setattr(Path, "unlink", refuse)
    lease.release()
    assert (tmp_path / FILE).exists()


def test_a_lease_is_a_number_of_seconds(run, tmp_path):
    code, document, _, _ = run(*RUN, "lease=-1", f"results={tmp_path}")
    assert code == 2 and "lease" in document["message"]
