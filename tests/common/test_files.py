"""A file is replaced whole or stays as it was, and no draft is left."""

import hashlib
import multiprocessing
import os

import pytest

from harness.common.files import (
    DRAFT,
    draft_of,
    read_json,
    remove_drafts,
    replacing,
    short_hash,
    write_atomic,
    write_whole,
)


def test_text_bytes_and_json_replace_what_stood_there(tmp_path):
    path = tmp_path / "new" / "file"
    for content, stands in (("ä\n", "ä\n".encode()), (b"\x00\xff", b"\x00\xff")):
        write_whole(path, content)
        assert path.read_bytes() == stands
    write_atomic(path, {"b": [1, 2.5], "a": None})
    assert read_json(path) == {"b": [1, 2.5], "a": None}
    assert path.read_text() == '{\n "b": [\n  1,\n  2.5\n ],\n "a": null\n}\n'
    assert os.listdir(path.parent) == ["file"]


def test_a_writer_that_fails_leaves_the_file_and_no_draft(tmp_path):
    path = tmp_path / "file"
    path.write_text("before")
    with pytest.raises(ValueError, match="Out of range"):
        write_atomic(path, float("nan"))
    with pytest.raises(OSError, match="full"), replacing(path) as draft:
        draft.write_text("half")
        raise OSError("the disk is full")
    with draft_of(path) as draft:
        (draft / "inner").mkdir(parents=True)
    assert path.read_text() == "before" and os.listdir(tmp_path) == ["file"]


def test_the_new_file_is_on_the_disk_before_it_takes_the_place(tmp_path, monkeypatch):
    calls = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, name=name, real=real: calls.append(name) or real(*a))
    write_whole(tmp_path / "file", "text")
    assert calls == ["fsync", "replace"]


def test_drafts_of_processes_that_are_gone_are_removed_and_nothing_else(tmp_path):
    child = multiprocessing.get_context("fork").Process(target=_leave_drafts, args=(tmp_path,))
    child.start()
    child.join()
    left = set(os.listdir(tmp_path))
    assert len(left) == 2 and all(DRAFT.fullmatch(name) for name in left)
    foreign = {".config.facade", ".x.json", "file.0123456789ab", ".zshrc.0123456789AB", ".y.1-2-3"}
    for name in (*foreign, ".old.json.0123456789ab", ".new.json.0123456789ab"):
        (tmp_path / name).write_text("x")
    for name in (*foreign, ".old.json.0123456789ab"):
        os.utime(tmp_path / name, (0, 0))
    elsewhere = ".theirs.json.ffffff-1-0123ab"  # of another machine, and written just now
    (tmp_path / elsewhere).write_text("x")
    with draft_of(tmp_path / "mine") as draft:
        draft.mkdir()
        os.utime(draft, (0, 0))  # however long this takes
        remove_drafts(tmp_path)
        assert set(os.listdir(tmp_path)) == foreign | {".new.json.0123456789ab", elsewhere, draft.name}
    remove_drafts(tmp_path / "absent")


def _leave_drafts(folder):
    with draft_of(folder / "file") as draft, draft_of(folder / "folder") as other:
        draft.write_text("half")
        (other / "inner").mkdir(parents=True)
        os._exit(9)


def test_what_is_missing_or_torn_reads_as_nothing(tmp_path):
    (tmp_path / "torn").write_text('{"a": ')
    assert [read_json(tmp_path / name) for name in ("torn", "absent", "torn/below")] == [None] * 3


def test_a_hash_is_that_of_the_value_with_its_keys_in_order():
    digest = hashlib.sha256(b'{"a":1,"b":[1.5]}').hexdigest()[:16]
    assert short_hash({"b": [1.5], "a": 1}) == short_hash({"a": 1, "b": [1.5]}) == digest
