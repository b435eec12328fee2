"""The store: plain files in results/<cell_id>/<task>-<task_id>/, safe against kills, torn lines and
concurrent writers.

Rows go to parts/<attempt>.jsonl, one file and so one writer per attempt. A reader merges them by
sample key and drops torn lines. task.json is put in place by an atomic rename and is the only mark
of a finished task, as long as its rows are still there. Nothing is locked or rewritten.
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
OTHER_TASK = "it is of the task"  # begins the reason for leaving out an exchanged task.json
TROUBLES = ("conflict", "damaged", "refused")
CELL_FOLDER = re.compile(r"[0-9a-f]{16}", re.ASCII)
TASK_FOLDER = re.compile(r"(.+)-([0-9a-f]{16})", re.ASCII)
KINDS: dict[str, type] = {"status": str, "attempt": str, "error": str, "message": str, "task": str, "task_id": str}
KINDS |= {"samples": int, "order": int, "after": int, "checksums": str}


class State(NamedTuple):
    """The state of a task.

    Attributes:
        status: ok, unsupported, error, oom, stopped or missing; for records that cannot be trusted,
            conflict (rows of one sample disagree), damaged (rows have other checksums than
            task.json) or refused (records of another task or of a later version).
        finished: the content of task.json, if its rows are there.
        why: the reason why records cannot be trusted.
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
        """Return all whole rows, compared with the content of task.json."""
        return read_rows(self._parts(), finished)

    def rows(self) -> dict[int, dict]:
        """Return the rows by sample key. If two attempts wrote a sample, the row that task.json was
        made of counts, otherwise that of the first attempt by name."""
        return self.found(self.finished()).rows

    def _parts(self) -> Iterator[tuple[Path, bytes]]:
        for part in listed(self.folder / "parts", ".jsonl"):
            try:
                yield part, read_file(part) or b""
            except OSError as error:
                say_odd(part, error)

    def mark_of(self) -> tuple[dict | None, str | None]:
        """Return the content of task.json if the task is finished, and the reason why it cannot be
        trusted, whatever the rows are."""
        record, why = self._outcome(self.folder / "task.json")
        return (record, why) if record and record["status"] in FINISHED else (None, why)

    def finished(self) -> dict | None:
        """Return the content of task.json, if the task is finished."""
        record, why = self.mark_of()
        return None if why else record

    def _outcome(self, path: Path) -> tuple[dict | None, str | None]:
        """Return the outcome in a file, and the reason why it is not this task's. A file that holds
        no outcome counts as absent."""
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
        """Write task.json, with `after`: the number of attempts recorded before it."""
        after = max((a["order"] for a in self.attempts()), default=0)
        write_atomic(self.folder / "task.json", {**record, "after": after})

    def attempts(self) -> list[dict]:
        """Return attempts that ended in error or oom, and attempts that were begun after such an
        end, oldest first."""
        found = {path.stem: self._outcome(path) for path in listed(self.folder / "attempts", ".json")}
        records = [{"attempt": n, "order": 0, **record} for n, (record, why) in found.items() if record and not why]
        return sorted(records, key=lambda record: (record["order"], record["attempt"]))

    def try_again(self, attempt: str, about: Mapping) -> None:
        """Record that an attempt begins after a failed one. The task is `stopped` until the new
        attempt has an outcome."""
        if self.attempts():
            self.record_attempt(attempt, {**about, "status": "stopped"})

    def record_attempt(self, attempt: str, record: dict) -> None:
        """Write the outcome of an attempt, with `order`: its place among the recorded attempts.
        Times would not do, because clocks jump and differ between machines."""
        known = {a["attempt"]: a["order"] for a in self.attempts()}
        order = known.get(attempt, max(known.values(), default=0) + 1)
        write_atomic(self.folder / "attempts" / f"{attempt}.json", {**record, "order": order})

    def lines(self) -> int:
        """Return the number of lines in all parts, an upper bound of the number of rows. Nothing is
        parsed."""
        texts = (text for _, text in self._parts() if text)
        return sum(text.count(b"\n") + (not text.endswith(b"\n")) for text in texts)

    def state(self, *, verify: bool = False) -> State:
        """Return the state of the task; see `state_of`."""
        return state_of(self.mark_of(), self.attempts, self.lines, self.found, verify=verify)

    def status(self) -> str:
        """Return the status of `state`."""
        return self.state().status

    def cell_trouble(self) -> str | None:
        """Return the reason why the cell.json beside the task is not this cell's; None if it is, or
        if there is none."""
        file = self.cell_folder / "cell.json"
        raw = read_json(file)
        why = raw and cell_trouble(raw, self.cell_folder.name)
        return f"{file}: {why}" if why else None

    def finished_stat(self) -> list[int] | None:
        """Return a fingerprint of task.json from its `stat`; None if there is none."""
        return _stat(f"{self.folder}/task.json")

    def folder_fingerprint(self) -> list:
        """Return a fingerprint of the folder and of the cell's description that changes with their
        content. No file is read."""
        try:
            with os.scandir(f"{self.folder}/parts") as parts:
                sizes = sorted([part.name, part.stat().st_size] for part in parts)
        except OSError:  # there are none, or not all can be read
            sizes = []
        cell = _stat(f"{self.cell_folder}/cell.json")
        return [self.finished_stat(), _stat(f"{self.folder}/attempts"), sizes, cell]

    def open_part(self, attempt: str) -> "Part":
        """Return the file for the rows of an attempt."""
        return Part(self.folder / "parts" / f"{attempt}.jsonl")


def state_of(
    mark: tuple[dict | None, str | None],
    attempts: Callable[[], list[dict]],
    lines: Callable[[], int],
    found: Callable[[dict | None], Found],
    *,
    verify: bool,
) -> State:
    """Return the state of a task. A finished task with further rows was being extended; a finished
    task that lacks rows is `stopped`.

    Args:
        mark: as `TaskStore.mark_of` returns it.
        attempts: returns what `TaskStore.attempts` does.
        lines: returns what `TaskStore.lines` does.
        found: returns what `TaskStore.found` does, for the content of task.json.
        verify: compare all rows of a finished task with task.json. Otherwise rows are read only if
            their number does not fit.
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
    """Return the reason why this content of a cell.json does not belong to a folder of this name."""
    if not isinstance(identity := raw.get("identity"), dict):
        return "it has no proper identity"
    if why := later(raw, CellDescription) or later(identity, CellIdentity):
        return why
    if raw.get("cell_id") != name:
        return f"it is of the cell {str(raw.get('cell_id'))[:40]}"
    return None if short_hash(identity) == name else "its identity is not the one that the cell's id is a hash of"


def _stat(path: str) -> list[int] | None:  # a text: a look at a large store would make a Path for each
    try:
        found = os.stat(path)
    except OSError:
        return None
    return [found.st_mtime_ns, found.st_size, found.st_ino]


class Part:
    """The file to which an attempt appends its rows. When `write` returns the operating system has
    the rows, so that they survive a kill; within `SYNC_SECONDS` of writing they are on disk and
    survive a power cut."""

    SYNC_SECONDS = 1.0

    def __init__(self, path: Path):
        self.path = path
        self._file: BinaryIO | None = None
        self._synced = time.monotonic()

    def write(self, rows: list[Mapping]) -> None:
        """Append rows.

        Raises:
            ValueError: for NaN and infinity.
            OSError: if they cannot be written.
        """
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("ab")
        self._file.write(b"".join(line_of(without_secrets_in(row)) + b"\n" for row in rows))
        self._file.flush()
        if time.monotonic() - self._synced > self.SYNC_SECONDS:
            self._sync()

    def close(self) -> None:
        """Put the rows on disk and close the file."""
        if self._file is not None:
            self._sync()
            self._file.close()
            self._file = None

    def _sync(self) -> None:
        assert self._file is not None
        os.fsync(self._file.fileno())
        self._synced = time.monotonic()


def new_attempt() -> str:
    """Return a name for an attempt. Names are ordered by time and unique, even among machines that
    start in the same second."""
    stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime())
    return f"{stamp}-{socket.gethostname().split('.')[0]}-{os.getpid()}-{uuid.uuid4().hex[:12]}"
