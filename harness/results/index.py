"""An index of the store: what is known of each task and how its folder looked then, so that asking
again costs one `stat` for a finished task and reads no rows.

A cache and never the truth: an entry counts only while the folder still looks the same, and
results/index/ may be removed at any time. A file for each two digits that a cell's id begins with,
one in memory at a time. Each is replaced whole by an atomic rename; of two writers the last one
wins, and what the other knew is found again.
"""

import contextlib
import json
import os
from array import array
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from harness.common.files import write_whole
from harness.results.store import TaskStore

FOLDER = "index"
Key = tuple[str, str]  # cell id, name of the task's folder


@dataclass(frozen=True, slots=True)
class Entry:
    """What the store has of one task of one cell.

    status: ok, unsupported, error, oom, stopped or missing. samples: rows that task.json is made
        of, None without one.
    exhausted: there are no more samples. rows: about how many there are. why: the last failure in a
        line.
    mark, trace: how the folder looked (see TaskStore).
    """

    status: str
    samples: int | None = None
    exhausted: bool = False
    rows: int = 0
    why: str | None = None
    mark: list | None = None
    trace: list | None = None

    def suffices(self, samples: int) -> bool:
        """Whether so many samples are there, or as many as there can be."""
        return self.samples is not None and (self.samples >= samples or self.exhausted)


MISSING = Entry("missing")


class Index:
    """One look at a store."""

    def __init__(self, results: Path):
        self._results = results
        self._present: dict[str, array] = {}  # by their start the cells that have a folder, ids as numbers
        with contextlib.suppress(FileNotFoundError), os.scandir(results) as entries:
            for entry in entries:
                with contextlib.suppress(ValueError, OverflowError):
                    self._present.setdefault(entry.name[:2], array("Q")).append(int(entry.name, 16))

    def look(self, start: str, wanted: Mapping[Key, int]) -> dict[Key, Entry]:
        """What the store has of each task. wanted: tasks of cells whose id begins with these two
        digits, and how many samples of each would do."""
        shard = self._results / FOLDER / f"{start}.jsonl"
        known, present = _read(shard), set(self._present.get(start, ()))
        changed, found = False, {}
        for key, samples in wanted.items():
            name = "/".join(key)
            found[key] = MISSING
            if int(key[0], 16) in present:
                before = known.get(name)
                store = TaskStore(self._results, key[0], *key[1].rsplit("-", 1))
                known[name] = found[key] = _current(store, before, samples)
                changed |= found[key] is not before
            elif name in known:
                changed = True
                del known[name]
        if changed:
            with contextlib.suppress(OSError):  # a full disk or a store that may only be read: next time is slower
                _write(shard, known)
        return found


def _current(store: TaskStore, before: Entry | None, samples: int) -> Entry:
    """The entry from before if it still holds, else a new one."""
    if before and before.mark and before.suffices(samples) and before.mark == store.mark():
        return before
    trace = store.trace()  # before reading: what comes while we read is seen next time
    if before and before.trace == trace:
        return before
    finished, attempts = store.finished() or {}, store.attempts()
    last = attempts[-1] if attempts else finished
    why = f"{last['error']}: {last.get('message', '')}".splitlines()[0][:300] if last.get("error") else None
    return Entry(
        status=store.status(),
        samples=finished.get("samples"),
        exhausted=bool(finished.get("exhausted")),
        rows=store.lines(),
        why=why,
        mark=trace[0],
        trace=trace,
    )


def _read(shard: Path) -> dict[str, Entry]:
    known = {}
    with contextlib.suppress(OSError), shard.open("rb") as lines:
        for line in lines:
            with contextlib.suppress(ValueError, TypeError):
                name, fields = json.loads(line)
                known[name] = Entry(**fields)
    return known


def _write(shard: Path, known: dict[str, Entry]) -> None:
    lines = (json.dumps([name, asdict(known[name])], separators=(",", ":")) + "\n" for name in sorted(known))
    write_whole(shard, "".join(lines))
