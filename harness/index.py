"""An index of the store: what is known of each task and how its folder looked then, so that asking again costs one
`stat` for a finished task and reads no rows.

A cache and never the truth: an entry counts only while the folder still looks the same, and results/index/ may be
removed at any time. Sixteen files by the first digit of the cell's id, one in memory at a time. Each is replaced whole
by an atomic rename; of two writers the last one wins, and what the other knew is found again.
"""

import contextlib
import itertools
import json
import os
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from harness.store import TaskStore

FOLDER = "index"
Key = tuple[str, str]  # cell id, name of the task's folder


@dataclass(frozen=True, slots=True)
class Entry:
    """What the store has of one task of one cell.

    status: ok, unsupported, error, oom, stopped or missing. samples: rows that task.json is made of, None without one.
    exhausted: there are no more samples. rows: about how many there are. why: the last failure in a line.
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


def look(results: Path, wanted: Iterable[tuple[Key, int]]) -> Iterator[tuple[Key, Entry]]:
    """What the store has of each task, by shard. wanted: the tasks, and how many samples of each would do."""
    try:
        present = set(os.listdir(results))
    except FileNotFoundError:
        present = set()
    for digit, keys in itertools.groupby(sorted(wanted), key=lambda item: item[0][0][:1]):
        shard = results / FOLDER / f"{digit}.jsonl"
        known = _read(shard)
        changed = False
        for key, samples in keys:
            name = "/".join(key)
            entry = MISSING
            if key[0] in present:
                before = known.get(name)
                entry = _current(TaskStore(results, key[0], *key[1].rsplit("-", 1)), before, samples)
                changed |= entry is not before
                known[name] = entry
            elif name in known:
                changed = True
                del known[name]
            yield key, entry
        if changed:
            with contextlib.suppress(OSError):  # a full disk or a store that may only be read: next time is slower
                _write(shard, known)


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
    shard.parent.mkdir(parents=True, exist_ok=True)
    draft = shard.with_name(f".{shard.name}.{uuid.uuid4().hex[:12]}")
    with draft.open("w") as file:
        for name in sorted(known):
            file.write(json.dumps([name, asdict(known[name])], separators=(",", ":")) + "\n")
    os.replace(draft, shard)
