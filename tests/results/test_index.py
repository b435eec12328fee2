"""The index knows what the store holds, and is believed only where the store still looks the
same."""

import json
import os

import pytest

from harness.common.files import write_atomic
from harness.results import index
from harness.results.store import TaskStore
from harness.sweep.grid import Grid
from harness.sweep.rows import Rows
from harness.sweep.status import states

CELL, TASK = "0123456789abcdef", "fedcba9876543210"


def store(results, task="retrieval", cell=CELL) -> TaskStore:
    return TaskStore(results, cell, task, TASK)


def add(to: TaskStore, attempt: str, keys) -> None:
    part = to.open_part(attempt)
    part.write([{"key": k} for k in keys])
    part.close()


def finish(of: TaskStore, samples: int, **more) -> None:
    if not of.lines():
        add(of, "b", range(samples))
    of.finish({"status": "ok", "samples": samples, "attempt": "b", **more})


def fail(of: TaskStore, attempt: str) -> None:
    record = {"status": "oom", "error": "MemoryError", "message": "too much\nmore", "attempt": attempt}
    of.record_attempt(attempt, record)


def look(results, samples=8, cell=CELL) -> index.Entry:
    key = (cell, f"retrieval-{TASK}")
    return index.Index(results).look(cell[:2], {key: samples})[key]


def state(results, samples=8, tasks=("retrieval",)) -> str:
    rows = Rows(Grid("g", {}))
    rows.add(1, (), [(CELL, f"{task}-{TASK}") for task in tasks], [samples] * len(tasks))
    return states(rows, results)[0].name


def test_states_follow_the_store_step_by_step(tmp_path):
    s = store(tmp_path)
    assert state(tmp_path / "absent") == "missing" == state(tmp_path)
    add(s, "a", range(3))
    assert state(tmp_path) == "stopped" and look(tmp_path).rows == 3
    add(s, "a", range(3, 5))
    assert look(tmp_path).rows == 5  # the same file, grown
    fail(s, "a")
    assert state(tmp_path) == "failed" and look(tmp_path).why == "MemoryError: too much"
    add(s, "b", range(5, 8))
    finish(s, 8)
    assert state(tmp_path) == "done" and state(tmp_path, samples=9) == "stopped"
    add(s, "c", [8])
    assert look(tmp_path, samples=9).status == "stopped" and state(tmp_path) == "done"
    fail(s, "c")
    assert state(tmp_path, samples=9) == "failed" and state(tmp_path) == "done"
    finish(s, 9, exhausted=True)
    assert state(tmp_path, samples=100) == "done"


def test_a_row_of_several_tasks_is_done_with_the_last(tmp_path):
    finish(store(tmp_path), 8)
    both = ("retrieval", "ruler")
    assert state(tmp_path, tasks=both) == "stopped"
    fail(store(tmp_path, "ruler"), "a")
    assert state(tmp_path, tasks=both) == "failed"
    finish(store(tmp_path, "ruler"), 8)
    assert state(tmp_path, tasks=both) == "done"


def test_a_second_look_reads_no_file_of_the_task(tmp_path, monkeypatch):
    add(store(tmp_path), "a", range(8))
    finish(store(tmp_path), 8)
    add(store(tmp_path, cell="01" * 8), "a", range(3))
    before = look(tmp_path), look(tmp_path, cell="01" * 8)
    for name in ("rows", "finished", "attempts", "lines"):
        monkeypatch.setattr(TaskStore, name, lambda _: pytest.fail("a file was read"))
    assert (look(tmp_path), look(tmp_path, cell="01" * 8)) == before


def test_what_was_removed_or_replaced_is_not_believed(tmp_path):
    finish(store(tmp_path), 8)
    assert state(tmp_path) == "done"
    (store(tmp_path).folder / "task.json").unlink()
    assert state(tmp_path) == "stopped"
    finish(store(tmp_path), 8)
    assert state(tmp_path) == "done"
    finish(store(tmp_path), 5)  # of the same size on disk
    assert state(tmp_path) == "stopped"
    (tmp_path / CELL).rename(tmp_path / "elsewhere")
    assert state(tmp_path) == "missing"
    assert CELL not in (tmp_path / "index" / "01.jsonl").read_text()


def test_a_broken_lost_or_foreign_index_only_costs_time(tmp_path):
    finish(store(tmp_path), 8)
    assert state(tmp_path) == "done"
    shard = tmp_path / "index" / "01.jsonl"
    whole = shard.read_text()
    for content in (
        "",
        whole[: len(whole) // 2],
        "\xff\n[]\n3\n",
        whole.replace(f"{index.VERSION} ", f"{index.VERSION - 1} ", 1),
        whole.replace('"ok",8', '"ok",9'),
        whole.partition("\n")[2],
        json.dumps([f"{CELL}/retrieval-{TASK}", {"x": 1}]) + "\n",
    ):
        assert content != whole
        shard.write_text(content)
        assert state(tmp_path) == "done"
    assert shard.read_text() == whole


@pytest.mark.parametrize(
    "entry",
    [
        [7, 8, False, 8, None],
        ["ok", "x", False, 8, None],
        ["ok", 8, "no", 8, None],
        ["ok", 8, False, None, None],
        ["ok", 8, False, 8, None, 1],
        {"status": "ok"},
    ],
)
def test_entries_of_the_wrong_kind_only_cost_time(tmp_path, entry):
    """Even where the hash of the file is right."""
    finish(store(tmp_path), 8)
    assert state(tmp_path) == "done"
    shard = tmp_path / "index" / "01.jsonl"
    whole = shard.read_bytes()
    name, trace, _, row = json.loads(whole.splitlines()[1])
    body = json.dumps([name, trace, entry, row]).encode() + b"\n"
    shard.write_bytes(index._head(body) + b"\n" + body)
    assert state(tmp_path) == "done" and state(tmp_path, samples=9) == "stopped"
    for body in (b"[]\n", b"7\n", b"[" * 100_000 + b"\n", b"\xff\n"):
        shard.write_bytes(index._head(body) + b"\n" + body)
        assert state(tmp_path) == "done" and shard.read_bytes() == whole


@pytest.mark.parametrize("odd", [os.mkdir, os.mkfifo, lambda path: path.symlink_to("nowhere")])
def test_an_index_that_is_no_file_only_costs_time(tmp_path, odd):
    finish(store(tmp_path), 8)
    (tmp_path / "index").mkdir()
    odd(tmp_path / "index" / "01.jsonl")
    assert state(tmp_path) == "done" == state(tmp_path)


def test_a_store_that_cannot_be_written_can_be_looked_at(tmp_path, monkeypatch):
    finish(store(tmp_path), 8)

    def full(*_, **__):
        raise OSError("no space left")

    monkeypatch.setattr(index, "write_whole", full)
    assert state(tmp_path) == "done"


def test_the_loser_of_two_writers_is_found_again(tmp_path):
    for cell in (CELL, "01" * 8):
        finish(store(tmp_path, cell=cell), 8)
    look(tmp_path)
    mine = (tmp_path / "index" / "01.jsonl").read_text()
    look(tmp_path, cell="01" * 8)
    (tmp_path / "index" / "01.jsonl").write_text(mine)  # the other's rename came first
    assert look(tmp_path, cell="01" * 8).samples == 8 and look(tmp_path).samples == 8


def test_a_cell_without_a_record_does_not_stop_the_look(tmp_path):
    write_atomic(tmp_path / CELL / f"retrieval-{TASK}" / "task.json", {"status": "half"})
    assert state(tmp_path) == "missing"
