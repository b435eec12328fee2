"""The store: results/<cell_id>/<task>-<task_id>/, plain files, safe against kills, torn lines and
two writers.

Rows go to parts/<attempt>.jsonl, one file per attempt and so one writer each; a reader merges them
by sample key and drops what is torn. task.json, put in place by an atomic rename, is the only mark
of "finished", as long as the rows are those that it was made of. Nothing is locked or rewritten.
"""

import os
import re
import socket
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, NamedTuple

from harness.common.files import listed, read_file, read_json, say_odd, short_hash, write_atomic
from harness.common.secrets import without_secrets_in
from harness.results.rows import Found, line_of, read_rows
from harness.results.schema import CellDescription, CellIdentity, TaskOutcome, later

FINISHED = ("ok", "unsupported")
OTHER_TASK = "it is of the task"  # begins the reason why an exchanged task.json is left out
TROUBLES = ("conflict", "damaged", "refused")
CELL_FOLDER = re.compile(r"[0-9a-f]{16}", re.ASCII)
TASK_FOLDER = re.compile(r"(.+)-([0-9a-f]{16})", re.ASCII)
KINDS: dict[str, type] = {"status": str, "attempt": str, "error": str, "message": str, "task": str, "task_id": str}
KINDS |= {"samples": int, "order": int, "after": int, "checksums": str}


class State(NamedTuple):
    """What a task has come to.

    status: ok, unsupported, error, oom, stopped or missing; of what cannot be believed: conflict
        (rows of one sample disagree), damaged (rows are not those that were finished) or refused
        (the records of another task, or of a later version). finished: task.json, if the rows that
        it was made of are there. why: what cannot be believed, in words.
    """

    status: str
    finished: dict | None = None
    why: str | None = None


class TaskStore:
    """One task of one cell."""

    def __init__(self, results: Path, cell_id: str, task: str, task_id: str):
        self.name, self.task_id = task, task_id
        self.cell_folder = results / cell_id
        self.folder = self.cell_folder / f"{task}-{task_id}"

    def found(self, finished: Mapping | None = None) -> Found:
        """All whole rows, held to what task.json says of them."""
        return read_rows(self._parts(), finished)

    def rows(self) -> dict[int, dict]:
        """The rows by sample key. Where two attempts wrote one sample, the one counts that task.json
        was made of, else the first attempt's by name."""
        return self.found(self.finished()).rows

    def _parts(self) -> Iterator[tuple[Path, bytes]]:
        for part in listed(self.folder / "parts", ".jsonl"):
            try:
                yield part, read_file(part) or b""
            except OSError as error:
                say_odd(part, error)

    def mark_of(self) -> tuple[dict | None, str | None]:
        """The content of task.json, if the task is finished; why it cannot be believed whatever the
        rows are."""
        record, why = self._outcome(self.folder / "task.json")
        return (record, why) if record and record["status"] in FINISHED else (None, why)

    def finished(self) -> dict | None:
        """The content of task.json, if the task is finished."""
        record, why = self.mark_of()
        return None if why else record

    def _outcome(self, path: Path) -> tuple[dict | None, str | None]:
        """The record of an end, and why it is none of this task's. A file that can be no such record
        is as if it were not there."""
        record = read_json(path)
        if record is None:
            return None, None
        wrong = [name for name, kind in KINDS.items() if not isinstance(record.get(name, kind()), (kind, type(None)))]
        wrong += ["status"] * (not record.get("status"))
        wrong += ["samples"] * (record.get("status") in FINISHED and record.get("samples") is None)
        if wrong:
            say_odd(path, f"it has no proper {wrong[0]}")
            return None, None
        own, why = (self.name, self.task_id), later(record, TaskOutcome)
        if not why and (its := (record.get("task") or own[0], record.get("task_id") or own[1])) != own:
            why = f"{OTHER_TASK} {its[0]}-{its[1]}"
        if why:
            say_odd(path, why)
        return record, why

    def finish(self, record: dict) -> None:
        """after: how many attempts had been recorded by then."""
        after = max((a["order"] for a in self.attempts()), default=0)
        write_atomic(self.folder / "task.json", {**record, "after": after})

    def attempts(self) -> list[dict]:
        """Attempts that ended with an outcome of their own (error, oom), oldest first, and those
        that try again."""
        found = {path.stem: self._outcome(path) for path in listed(self.folder / "attempts", ".json")}
        records = [{"attempt": n, "order": 0, **record} for n, (record, why) in found.items() if record and not why]
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

    def state(self, *, verify: bool = False) -> State:
        """See `state_of`."""
        return state_of(self.mark_of(), self.attempts, self.lines, self.found, verify=verify)

    def status(self) -> str:
        """That of `state`."""
        return self.state().status

    def cell_trouble(self) -> str | None:
        """Why the cell.json beside the task is not this cell's; None if it is, or if there is
        none."""
        file = self.cell_folder / "cell.json"
        raw = read_json(file)
        why = raw and cell_trouble(raw, self.cell_folder.name)
        return f"{file}: {why}" if why else None

    def finished_stat(self) -> list[int] | None:
        """What tells one task.json from another without reading it; None if there is none."""
        return _stat(self.folder / "task.json")

    def folder_fingerprint(self) -> list:
        """What changes whenever anything in the folder does, without reading a file."""
        try:
            with os.scandir(self.folder / "parts") as parts:
                sizes = sorted([part.name, part.stat().st_size] for part in parts)
        except OSError:  # there are none, or not all can be read
            sizes = []
        return [self.finished_stat(), _stat(self.folder / "attempts"), sizes]

    def open_part(self, attempt: str) -> "Part":
        return Part(self.folder / "parts" / f"{attempt}.jsonl")


def state_of(
    mark: tuple[dict | None, str | None],
    attempts: Callable[[], list[dict]],
    lines: Callable[[], int],
    found: Callable[[dict | None], Found],
    *,
    verify: bool,
) -> State:
    """What a task has come to. A finished task with rows beyond it was being extended, one that
    lacks rows is stopped.

    verify: hold a finished task to all its rows; without it they are read only where their number
        leaves it open.
    """
    finished, why = mark
    if why:
        return State("refused", why=why)
    rows, after = None, (finished or {}).get("after", 0)
    if finished and (verify or lines() != finished["samples"]):
        rows = found(finished)
        if rows.trouble:
            return State(*rows.trouble)
        if rows.missing:
            finished = None
    if finished and (rows is None or len(rows.rows) <= finished["samples"]):
        return State(finished["status"], finished)
    if tried := [a for a in attempts() if a["order"] > after or not mark[0]]:
        return State(tried[-1]["status"], finished)
    if rows is None and lines():
        rows = found(None)
        if rows.trouble:
            return State(*rows.trouble)
    return State("stopped" if rows and rows.rows else "missing", finished)


def cell_trouble(raw: Mapping, name: str) -> str | None:
    """Why this content of a cell.json is no record of the folder of this name."""
    if not isinstance(identity := raw.get("identity"), dict):
        return "it has no proper identity"
    if why := later(raw, CellDescription) or later(identity, CellIdentity):
        return why
    if raw.get("cell_id") != name:
        return f"it is of the cell {str(raw.get('cell_id'))[:40]}"
    return None if short_hash(identity) == name else "its identity is not the one that the cell's id is a hash of"


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
        self._file.write(b"".join(line_of(without_secrets_in(row)) + b"\n" for row in rows))
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
    return f"{stamp}-{socket.gethostname().split('.')[0]}-{os.getpid()}-{uuid.uuid4().hex[:12]}"
