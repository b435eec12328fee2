"""The store: results/<cell_id>/<task>-<task_id>/, plain files, safe against kills, torn lines and
two writers.

Rows go to parts/<attempt>.jsonl, one file per attempt and so one writer each; a reader merges them
by sample key and drops what is torn. task.json, put in place by an atomic rename, is the only mark
of "finished". Nothing is locked or rewritten.
"""

import json
import os
import socket
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import BinaryIO

from harness.common.files import read_json, write_atomic

FINISHED = ("ok", "unsupported")


class TaskStore:
    """One task of one cell."""

    def __init__(self, results: Path, cell_id: str, task: str, task_id: str):
        self.name, self.task_id = task, task_id
        self.cell_folder = results / cell_id
        self.folder = self.cell_folder / f"{task}-{task_id}"

    def rows(self) -> dict[int, dict]:
        """All whole rows by sample key. Where two attempts wrote one sample, the first attempt by
        name counts."""
        found: dict[int, dict] = {}
        for part in sorted((self.folder / "parts").glob("*.jsonl")):
            for line in part.read_bytes().split(b"\n"):
                try:
                    row = json.loads(line)
                    found.setdefault(int(row["key"]), row)
                except (ValueError, KeyError, TypeError):
                    continue  # torn by a kill in the middle of a write
        return dict(sorted(found.items()))

    def finished(self) -> dict | None:
        """The content of task.json, if the task is finished."""
        record = read_json(self.folder / "task.json")
        return record if record and record.get("status") in FINISHED else None

    def finish(self, record: dict) -> None:
        """after: how many attempts had been recorded by then."""
        after = max((a["order"] for a in self.attempts()), default=0)
        write_atomic(self.folder / "task.json", {**record, "after": after})

    def attempts(self) -> list[dict]:
        """Attempts that ended with an outcome of their own (error, oom), oldest first, and those
        that try again."""
        files = {path.stem: read_json(path) for path in (self.folder / "attempts").glob("*.json")}
        records = [{"attempt": name, "order": 0, **record} for name, record in files.items() if record]
        return sorted(records, key=lambda record: (record["order"], record["attempt"]))

    def try_again(self, attempt: str, about: Mapping) -> None:
        """Where an attempt has failed, record that another begins: the task is stopped until that
        has its outcome."""
        if self.attempts():
            self.record_attempt(attempt, {**about, "status": "stopped"})

    def record_attempt(self, attempt: str, record: dict) -> None:
        """order: behind those that are known where it is first recorded, since clocks jump, and
        differ by machine."""
        known = {a["attempt"]: a["order"] for a in self.attempts()}
        order = known.get(attempt, max(known.values(), default=0) + 1)
        write_atomic(self.folder / "attempts" / f"{attempt}.json", {**record, "order": order})

    def lines(self) -> int:
        """How many lines the parts hold, counted without reading them as JSON: there are no more
        rows than that."""
        texts = (part.read_bytes() for part in (self.folder / "parts").glob("*.jsonl"))
        return sum(text.count(b"\n") + (not text.endswith(b"\n")) for text in texts if text)

    def status(self) -> str:
        """ok, unsupported, error, oom, stopped or missing."""
        return status_of(self.finished(), self.attempts(), self.lines, self.rows)

    def mark(self) -> list[int] | None:
        """What tells one task.json from another without reading it; None if there is none."""
        return _stat(self.folder / "task.json")

    def trace(self) -> list:
        """What changes whenever anything in the folder does, without reading a file."""
        try:
            with os.scandir(self.folder / "parts") as parts:
                sizes = sorted([part.name, part.stat().st_size] for part in parts)
        except (FileNotFoundError, NotADirectoryError):
            sizes = []
        return [self.mark(), _stat(self.folder / "attempts"), sizes]

    def open_part(self, attempt: str) -> "Part":
        return Part(self.folder / "parts" / f"{attempt}.jsonl")


def status_of(
    finished: dict | None, attempts: list[dict], lines: Callable[[], int], rows: Callable[[], Mapping]
) -> str:
    """ok, unsupported, error, oom, stopped or missing. A finished task with rows beyond it was
    being extended. Rows are asked for only where the number of lines leaves it open."""
    if finished:
        if lines() <= finished["samples"] or len(rows()) <= finished["samples"]:
            return finished["status"]
        attempts = [a for a in attempts if a["order"] > finished.get("after", 0)]
    if attempts:
        return attempts[-1]["status"]
    return "stopped" if lines() and rows() else "missing"


def _stat(path: Path) -> list[int] | None:
    try:
        found = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return [found.st_mtime_ns, found.st_size, found.st_ino]


class Part:
    """Rows of one attempt, appended. A row is with the operating system as soon as `write` returns
    (it survives a kill), and on the disk within `SYNC` seconds of writing (it survives a power
    cut)."""

    SYNC = 1.0

    def __init__(self, path: Path):
        self.path = path
        self._file: BinaryIO | None = None
        self._synced = time.monotonic()

    def write(self, rows: list[Mapping]) -> None:
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("ab")
        self._file.write(b"".join(json.dumps(row, allow_nan=False).encode() + b"\n" for row in rows))
        self._file.flush()
        if time.monotonic() - self._synced > self.SYNC:
            self._sync()

    def close(self) -> None:
        if self._file is not None:
            self._sync()
            self._file.close()
            self._file = None

    def _sync(self) -> None:
        assert self._file is not None
        os.fsync(self._file.fileno())
        self._synced = time.monotonic()


def new_attempt() -> str:
    """A name for an attempt: time-ordered, never used twice, even by two machines in the same
    second."""
    stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime())
    return f"{stamp}-{socket.gethostname().split('.')[0]}-{os.getpid()}-{uuid.uuid4().hex[:6]}"
