"""A file is replaced whole or stays as it was, and no draft is left."""

import hashlib
import os

import pytest

from harness.common.files import draft_of, read_json, replacing, short_hash, write_atomic, write_whole


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


def test_what_is_missing_or_torn_reads_as_nothing(tmp_path):
    (tmp_path / "torn").write_text('{"a": ')
    assert [read_json(tmp_path / name) for name in ("torn", "absent", "torn/below")] == [None] * 3


def test_a_hash_is_that_of_the_value_with_its_keys_in_order():
    digest = hashlib.sha256(b'{"a":1,"b":[1.5]}').hexdigest()[:16]
    assert short_hash({"b": [1.5], "a": 1}) == short_hash({"a": 1, "b": [1.5]}) == digest
