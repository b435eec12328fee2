"""The store: what is written survives kills, torn lines and two writers."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest

from harness.common.files import read_json, write_atomic
from harness.results.store import TaskStore, new_attempt

WRITER = """
import sys
from pathlib import Path
from harness.results.store import TaskStore, new_attempt
store = TaskStore(Path(sys.argv[1]), "cell", "task", "id")
part = store.open_part(new_attempt())
done = store.rows()
print("ready", flush=True)
for key in range(4000):
    if key not in done:
        part.write([{"key": key, "score": (key * 7919) % 13}])
        print(key, flush=True)
part.close()
store.finish({"status": "ok", "samples": 4000})
"""


def store(tmp_path) -> TaskStore:
    return TaskStore(tmp_path, "cell", "task", "id")


def test_fifty_kills_lose_nothing_and_change_nothing(tmp_path):
    rng = random.Random(0)
    reported: set[int] = set()
    for _ in range(50):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        assert writer.stdout.readline() == "ready\n"
        time.sleep(rng.uniform(0.0, 0.01))
        os.kill(writer.pid, signal.SIGKILL)
        lines = writer.stdout.read().splitlines(keepends=True)
        writer.wait()
        reported |= {int(line) for line in lines if line.endswith("\n")}
        rows = store(tmp_path).rows()
        assert reported <= set(rows)  # whatever was reported as written is there
        assert all(row == {"key": key, "score": (key * 7919) % 13} for key, row in rows.items())
    assert len(reported) > 50  # the kills fell into the writing
    subprocess.run([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.DEVNULL, check=True)
    assert list(store(tmp_path).rows()) == list(range(4000))
    assert store(tmp_path).status() == "ok"


def test_torn_line_is_dropped_and_the_rest_kept(tmp_path):
    s = store(tmp_path)
    part = s.open_part("a")
    part.write([{"key": 0}, {"key": 1}])
    part.close()
    with part.path.open("ab") as file:
        file.write(b'{"key": 2, "sco')
    assert list(s.rows()) == [0, 1]
    with part.path.open("ab") as file:
        file.write(b"\xff\xfe garbage\n[]\n3\n" + b'{"key": 4}\n')
    assert list(s.rows()) == [0, 1, 4]


def test_two_writers_of_one_sample_leave_one_row(tmp_path):
    s = store(tmp_path)
    for attempt, score in (("b", 2), ("a", 1)):
        part = s.open_part(attempt)
        part.write([{"key": 7, "score": score}])
        part.close()
    assert s.rows() == {7: {"key": 7, "score": 1}}


def test_attempt_names_never_repeat():
    assert len({new_attempt() for _ in range(1000)}) == 1000


def test_status_follows_what_is_there(tmp_path):
    s = store(tmp_path)
    assert s.status() == "missing"
    part = s.open_part("a")
    part.write([{"key": 0}])
    part.close()
    assert s.status() == "stopped"
    s.record_attempt("a", {"status": "oom"})
    assert s.status() == "oom"
    s.finish({"status": "ok", "samples": 1, "attempt": "b"})
    assert s.status() == "ok"


def test_attempts_follow_one_another_whatever_their_clocks_say(tmp_path):
    """Their names begin with the time, by which a clock that is behind would put the later one
    first."""
    s = store(tmp_path)
    s.record_attempt("20260102T000000-a", {"status": "error", "error": "E"})
    s.try_again("20260101T000000-b", {})
    assert [a["status"] for a in s.attempts()] == ["error", "stopped"] and s.status() == "stopped"
    s.record_attempt("20260101T000000-b", {"status": "oom", "error": "E"})
    assert s.status() == "oom" and len(s.attempts()) == 2
    s.finish({"status": "ok", "samples": 1, "attempt": "20260103T000000-c"})
    part = s.open_part("d")
    part.write([{"key": 0}, {"key": 1}])  # it is being extended
    part.close()
    assert s.status() == "stopped"
    s.record_attempt("20251231T000000-d", {"status": "error", "error": "E"})
    assert s.status() == "error"


def test_half_a_mark_is_no_mark(tmp_path):
    s = store(tmp_path)
    s.folder.mkdir(parents=True)
    (s.folder / "task.json").write_text('{"status": "o')
    assert s.finished() is None and s.status() == "missing"


def test_atomic_write_keeps_the_old_content_when_it_fails(tmp_path):
    file = tmp_path / "x.json"
    write_atomic(file, {"a": 1})
    with pytest.raises(ValueError):
        write_atomic(file, {"a": float("nan")})
    assert read_json(file) == {"a": 1}


def test_rows_that_are_not_json_numbers_are_refused(tmp_path):
    with pytest.raises(ValueError):
        store(tmp_path).open_part("a").write([{"key": 0, "nll": float("inf")}])


def test_rows_are_one_json_object_a_line(tmp_path):
    part = store(tmp_path).open_part("a")
    part.write([{"key": 0, "text": "two\nlines"}])
    part.close()
    assert [json.loads(line) for line in part.path.read_text().splitlines()] == [{"key": 0, "text": "two\nlines"}]
