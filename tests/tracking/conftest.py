"""A store made once, a loopback server, and users with and without a key."""

import json
import os
import shutil
import sys
from pathlib import Path

import pytest

from tests.tracking.server import Server

KEY = "0123456789abcdef0123456789abcdef01234567"
FAST = ("context=160", "samples=8", "draws=4", "masks=4", "references=none")


@pytest.fixture(scope="session")
def made(tmp_path_factory) -> Path:
    """Results of one real cell, made without tracking. Not to be written to: take `results`."""
    from harness.run import main

    folder = tmp_path_factory.mktemp("made") / "results"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["harness.run", *FAST, "tracking=disabled", f"results={folder}"])
        assert main() == 0
    return folder


@pytest.fixture
def results(made, tmp_path) -> Path:
    """A copy of the store with one finished cell of 8 samples."""
    return shutil.copytree(made, tmp_path / "results")


@pytest.fixture
def server():
    server = Server()
    yield server
    server.close()


@pytest.fixture
def nobody(monkeypatch, tmp_path) -> None:
    """A user without key or settings, and with no other wish than the default."""
    for name in [n for n in os.environ if n.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))


@pytest.fixture
def account(nobody, monkeypatch, server) -> Server:
    """A user whose key and server are set: the server."""
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_BASE_URL", server.url)
    return server


def cell_of(results: Path) -> str:
    (cell,) = results.glob("*/cell.json")
    return cell.parent.name


def task_json(results: Path) -> Path:
    (path,) = results.glob("*/retrieval-*/task.json")
    return path


def stop_after(results: Path, samples: int) -> str:
    """Turn the store into that of a run which was stopped after so many samples. Returns what
    task.json was."""
    path = task_json(results)
    finished = path.read_text()
    path.unlink()
    (part,) = path.parent.glob("parts/*.jsonl")
    part.with_suffix(".whole").write_bytes(part.read_bytes())
    part.write_bytes(b"".join(part.read_bytes().splitlines(keepends=True)[:samples]))
    return finished


def finish_again(results: Path, finished: str) -> None:
    """What the requeued run leaves: all rows, and task.json."""
    (whole,) = results.glob("*/retrieval-*/parts/*.whole")
    whole.rename(whole.with_suffix(".jsonl"))
    record = json.loads(finished)
    record["environment"]["start"] = "2030-01-01T00:00:00Z"
    next(results.glob("*/retrieval-*")).joinpath("task.json").write_text(json.dumps(record))


def every_byte(folder: Path) -> bytes:
    return b"\n".join(p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file())
