"""A cache of the store in results/index/. It holds the state of each task beside a fingerprint of
its folder and its cell, so that a second look costs one `stat` for a finished task and reads no
rows.

The cache is never the truth: an entry counts only while the fingerprint matches, and results/index/
may be removed at any time. There is one file for each two digits that cell ids begin with, and one
file is in memory at a time. Files are replaced by an atomic rename. If two processes write, the last
one wins and the other's entries are computed again, as are broken files and those of other
versions.
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
VERSION = 4  # raise it when an entry or the content of a table row changes
_compact = json.JSONEncoder(separators=(",", ":")).encode
Key = tuple[str, str]  # cell id, name of the task's folder


@dataclass(frozen=True, slots=True)
class Entry:
    """The state of one task of one cell.

    Attributes:
        status: as in `State`.
        samples: number of rows that task.json was made of; None without task.json.
        exhausted: the data hold no more samples.
        rows: approximate number of rows.
        why: the last failure in one line.
    """

    status: str
    samples: int | None = None
    exhausted: bool = False
    rows: int = 0
    why: str | None = None

    def suffices(self, samples: int) -> bool:
        """Return whether the task has this many samples, or all that the data hold."""
        return self.samples is not None and (self.samples >= samples or self.exhausted)


MISSING = Entry("missing")


@dataclass(slots=True)
class Known:
    """The cached content of one task.

    Attributes:
        trace: `TaskStore.folder_fingerprint` at that time.
        entry: the task's entry, if it was computed.
        row: the task's row in the table of all tasks as JSON, if it was computed.
    """

    trace: list
    entry: Entry | None = None
    row: str | None = None


class Index:
    """The cache of one store, as of its creation."""

    def __init__(self, results: Path):
        self._results = results
        self._present: dict[str, set[str]] = {}  # folders of cells by their first two characters
        with contextlib.suppress(FileNotFoundError):
            for name in os.listdir(results):
                self._present.setdefault(name[:2], set()).add(name)

    def look(self, start: str, wanted: Mapping[Key, int]) -> dict[Key, Entry]:
        """Return the entry of each task.

        Args:
            start: the first two digits of the cells' ids.
            wanted: tasks of such cells, with the number of samples that is needed of each.
        """
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

    def rows(
        self, stores: Iterable[TaskStore], make: Callable[[TaskStore], dict | None]
    ) -> Iterator[tuple[dict, bool]]:
        """Yield each task's row in the table of all tasks, and whether it had to be computed.

        Args:
            stores: tasks, in the order of their cells' ids.
            make: computes the row of a task, or None if it has none.
        """
        for start, tasks in groupby(stores, key=lambda store: store.cell_folder.name[:2]):
            with self._open(start) as shard:
                for store in tasks:
                    known = shard.now((store.cell_folder.name, store.folder.name), store)
                    if known.row is not None:
                        yield json.loads(known.row), False
                        continue
                    row = make(store)
                    if row is None:
                        continue
                    known.row = _compact(row)
                    shard.changed = True
                    yield row, True

    @contextlib.contextmanager
    def _open(self, start: str) -> Iterator["_Shard"]:
        """Open the file of cells whose id begins with `start`, and write it at the end if it has
        changed."""
        shard = _Shard(self._results / FOLDER / f"{start}.jsonl")
        yield shard
        if shard.changed:
            with contextlib.suppress(OSError):  # full disk or read-only store: the next look is slower
                shard.write()


class _Shard:
    """One file of the cache."""

    def __init__(self, path: Path):
        self.path, self.known, self.changed = path, _read(path), False

    def now(self, key: Key, store: TaskStore) -> Known:
        """Return the cached content for the folder's present fingerprint. Call it before the folder
        is read, so that later changes are noticed at the next look."""
        name, trace = "/".join(key), store.folder_fingerprint()
        if name not in self.known or self.known[name].trace != trace:
            self.known[name] = Known(trace)
        return self.known[name]

    def forget(self, key: Key) -> None:
        self.changed |= self.known.pop("/".join(key), None) is not None

    def write(self) -> None:
        fields = attrgetter(*(field.name for field in dataclasses.fields(Entry)))
        found = ([name, k.trace, k.entry and fields(k.entry), k.row] for name, k in sorted(self.known.items()))
        body = "".join(_compact(line) + "\n" for line in found).encode()
        write_whole(self.path, _head(body) + b"\n" + body, durable=False)


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
    """Return the content of a file of the cache; empty if it is broken or of another version."""
    try:
        head, _, body = (read_file(path) or b"").partition(b"\n")
        if head != _head(body):
            return {}
        lines = [json.loads(line) for line in body.splitlines()]
        return {name: Known(trace, entry and _checked(entry), row) for name, trace, entry, row in lines}
    except (OSError, ValueError, TypeError, RecursionError):
        return {}


def _checked(values: list) -> Entry:
    """Return the entry with these values.

    Raises:
        TypeError: for values of the wrong type.
    """
    entry = Entry(*values)
    kinds = entry.status, entry.samples or 0, entry.exhausted, entry.rows, entry.why or ""
    if not isinstance(values, list) or tuple(map(type, kinds)) != (str, int, bool, int, str):
        raise TypeError("this is no entry")
    return entry


def _head(body: bytes) -> bytes:
    """Return the first line of a file: the version, and a checksum that shows it is whole, even after
    a power cut."""
    return f"{VERSION} {hashlib.sha256(body).hexdigest()}".encode()
