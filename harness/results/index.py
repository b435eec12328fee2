"""A cache of the store: what is known of each task and how its folder looked then, so that asking
again costs one `stat` for a finished task and reads no rows.

Never the truth: an entry counts only while the folder still looks the same, and results/index/ may
be removed at any time. A file for each two digits that a cell's id begins with, one in memory at a
time. Each is replaced whole by an atomic rename; of two writers the last one wins, and what the
other knew is found again. A file that is broken, or of another version, is made anew.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from pathlib import Path

from harness.common.files import read_file, write_whole
from harness.results.store import TaskStore

FOLDER = "index"
VERSION = 3  # raise it when an entry, or what a row of the table is made of, changes
Key = tuple[str, str]  # cell id, name of the task's folder


@dataclass(frozen=True, slots=True)
class Entry:
    """What the store has of one task of one cell.

    status: that of the task's `State`. samples: rows that task.json is made
        of, None without one.
    exhausted: there are no more samples. rows: about how many there are. why: the last failure in a
        line.
    """

    status: str
    samples: int | None = None
    exhausted: bool = False
    rows: int = 0
    why: str | None = None

    def suffices(self, samples: int) -> bool:
        """Whether so many samples are there, or as many as there can be."""
        return self.samples is not None and (self.samples >= samples or self.exhausted)


MISSING = Entry("missing")


@dataclass(slots=True)
class Known:
    """What the cache has of one task. trace: how its folder looked (see TaskStore). entry, row: what
    was asked for then; row is the task's row of the table of all tasks, as JSON."""

    trace: list
    entry: Entry | None = None
    row: str | None = None


class Index:
    """One look at a store."""

    def __init__(self, results: Path):
        self._results = results
        self._present: dict[str, set[str]] = {}  # by their start the cells that have a folder
        with contextlib.suppress(FileNotFoundError):
            for name in os.listdir(results):
                self._present.setdefault(name[:2], set()).add(name)

    def look(self, start: str, wanted: Mapping[Key, int]) -> dict[Key, Entry]:
        """What the store has of each task. wanted: tasks of cells whose id begins with these two
        digits, and how many samples of each would do."""
        with self._open(start) as shard:
            return {key: self._entry(shard, key, samples) for key, samples in wanted.items()}

    def _entry(self, shard: "_Shard", key: Key, samples: int) -> Entry:
        if key[0] not in self._present.get(key[0][:2], ()):
            shard.forget(key)
            return MISSING
        store = TaskStore(self._results, key[0], *key[1].rsplit("-", 1))
        before = shard.known.get("/".join(key))
        if (
            before
            and before.entry
            and (mark := before.trace[0])
            and before.entry.suffices(samples)
            and mark == store.finished_stat()
        ):
            return before.entry
        known = shard.now(key, store)
        if known.entry is None:
            known.entry = _entry_of(store)
            shard.changed = True
        return known.entry

    def rows(self, stores: Iterable[TaskStore], make: Callable[[TaskStore], dict]) -> Iterator[tuple[dict, bool]]:
        """For each task its row of the table of all tasks, and whether it had to be made. stores: in
        the order of their cells' ids."""
        for start, tasks in groupby(stores, key=lambda store: store.cell_folder.name[:2]):
            with self._open(start) as shard:
                for store in tasks:
                    known = shard.now((store.cell_folder.name, store.folder.name), store)
                    if known.row is not None:
                        yield json.loads(known.row), False
                        continue
                    row = make(store)
                    known.row = json.dumps(row, separators=(",", ":"))
                    shard.changed = True
                    yield row, True

    @contextlib.contextmanager
    def _open(self, start: str) -> Iterator["_Shard"]:
        """The tasks of cells whose id begins so, kept in the end if anything has changed."""
        shard = _Shard(self._results / FOLDER / f"{start}.jsonl")
        yield shard
        if shard.changed:
            with contextlib.suppress(OSError):  # a full disk or a store that may only be read: next time is slower
                shard.write()


class _Shard:
    """One file of the cache."""

    def __init__(self, path: Path):
        self.path, self.known, self.changed = path, _read(path), False

    def now(self, key: Key, store: TaskStore) -> Known:
        """What is known of a task as its folder looks now. To be called before the folder is read:
        what comes while it is read is seen next time."""
        name, trace = "/".join(key), store.folder_fingerprint()
        if name not in self.known or self.known[name].trace != trace:
            self.known[name] = Known(trace)
        return self.known[name]

    def forget(self, key: Key) -> None:
        self.changed |= self.known.pop("/".join(key), None) is not None

    def write(self) -> None:
        fields = attrgetter(*(field.name for field in dataclasses.fields(Entry)))
        found = ([name, k.trace, k.entry and fields(k.entry), k.row] for name, k in sorted(self.known.items()))
        body = "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in found).encode()
        write_whole(self.path, _head(body) + b"\n" + body)


def _entry_of(store: TaskStore) -> Entry:
    state, attempts = store.state(), store.attempts()
    finished = state.finished or {}
    last = attempts[-1] if attempts else finished
    why = f"{last['error']}: {last.get('message', '')}".splitlines()[0][:300] if last.get("error") else None
    return Entry(
        status=state.status,
        samples=finished.get("samples"),
        exhausted=bool(finished.get("exhausted")),
        rows=store.lines(),
        why=state.why or why,
    )


def _read(path: Path) -> dict[str, Known]:
    """What a file of the cache knows; nothing if it is none of this version."""
    try:
        head, _, body = (read_file(path) or b"").partition(b"\n")
        if head != _head(body):
            return {}
        lines = [json.loads(line) for line in body.splitlines()]
        return {name: Known(trace, entry and _checked(entry), row) for name, trace, entry, row in lines}
    except (OSError, ValueError, TypeError, RecursionError):
        return {}


def _checked(values: list) -> Entry:
    """Return the entry with these values. Raises TypeError for values of the wrong kind."""
    entry = Entry(*values)
    kinds = entry.status, entry.samples or 0, entry.exhausted, entry.rows, entry.why or ""
    if not isinstance(values, list) or tuple(map(type, kinds)) != (str, int, bool, int, str):
        raise TypeError("this is no entry")
    return entry


def _head(body: bytes) -> bytes:
    """The first line of a file, by which it is known to be whole and of this version."""
    return f"{VERSION} {hashlib.sha256(body).hexdigest()}".encode()
