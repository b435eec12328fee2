"""The store: results/<cell_id>/<task>-<task_id>/, plain files, safe against kills, torn lines and
two writers.

Rows go to parts/<attempt>.jsonl, one file per attempt and so one writer each; a reader merges them
by sample key and drops what is torn. task.json, put in place by an atomic rename, is the only mark
of "finished". Nothing is locked or rewritten.
"""

import contextlib
import json
import os
import socket
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

from harness.common.files import listed, parse_json, read_file, read_json, say_odd, write_atomic

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
        for part, text in self._parts():
            lines, strange = text.split(b"\n"), 0
            for place, line in enumerate(lines):
                row = _row(line) if line.strip() else None
                if row is not None:
                    found.setdefault(row["key"], row)
                else:
                    strange += bool(line.strip()) and place < len(lines) - 1  # the last may be torn by a kill
            if strange:
                say_odd(part, f"{strange} of its lines are no rows")
        return dict(sorted(found.items()))

    def _parts(self) -> Iterator[tuple[Path, bytes]]:
        for part in listed(self.folder / "parts", ".jsonl"):
            try:
                yield part, read_file(part) or b""
            except OSError as error:
                say_odd(part, error)

    def finished(self) -> dict | None:
        """The content of task.json, if the task is finished."""
        record = _outcome(self.folder / "task.json")
        return record if record and record["status"] in FINISHED else None

    def finish(self, record: dict) -> None:
        """after: how many attempts had been recorded by then."""
        after = max((a["order"] for a in self.attempts()), default=0)
        write_atomic(self.folder / "task.json", {**record, "after": after})

    def attempts(self) -> list[dict]:
        """Attempts that ended with an outcome of their own (error, oom), oldest first, and those
        that try again."""
        files = {path.stem: _outcome(path) for path in listed(self.folder / "attempts", ".json")}
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
        texts = (text for _, text in self._parts() if text)
        return sum(text.count(b"\n") + (not text.endswith(b"\n")) for text in texts)

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
        except OSError:  # there are none, or not all can be read
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


def _row(line: bytes) -> dict | None:
    """A line of a part; None if it is no row."""
    with contextlib.suppress(ValueError):
        row = parse_json(line)
        if isinstance(row, dict) and type(key := row.get("key")) is int and key >= 0:
            return row
    return None


KINDS = {"status": str, "attempt": str, "error": str, "message": str, "samples": int, "order": int, "after": int}


def _outcome(path: Path) -> dict | None:
    """The record of an end; None, with a note, where it cannot be one."""
    record = read_json(path)
    if record is None:
        return None
    wrong = [name for name, kind in KINDS.items() if not isinstance(record.get(name, kind()), (kind, type(None)))]
    wrong += ["status"] * (not record.get("status"))
    wrong += ["samples"] * (record.get("status") in FINISHED and record.get("samples") is None)
    if wrong:
        say_odd(path, f"it has no proper {wrong[0]}")
        return None
    return record


def _stat(path: Path) -> list[int] | None:
    try:
        found = os.stat(path)
    except OSError:
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
