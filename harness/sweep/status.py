"""What the store has of the rows of a sweep, and the tables that say so."""

import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.common.table import Table
from harness.results.index import Entry, Index, Key
from harness.results.store import FINISHED
from harness.sweep.rows import Row, Rows

DONE, FAILED, STOPPED, MISSING = "done", "failed", "stopped", "missing"
STATES = (DONE, FAILED, STOPPED, MISSING)
SHOWN = 40  # rows that a table lists one by one


@dataclass(frozen=True, slots=True)
class State:
    """done, failed, stopped (begun, to be continued) or missing; why: of a failure."""

    name: str
    why: str | None = None


PLAIN = {name: State(name) for name in (DONE, STOPPED, MISSING)}  # one for all rows


def states(rows: Rows, results: Path) -> list[State]:
    """The state of each row, from the index of the store."""
    index = Index(results)
    parts = bytearray(len(rows))  # of each row the states of its tasks, a bit for each that occurs
    failures: dict[int, dict[int, str | None]] = {}  # of a row, by the place of the task
    for start, places in rows.by_start():
        work = [(place, *each) for place in places for each in _beginning(rows[place], start)]
        wanted: dict[Key, int] = {}
        for _, _, key, samples in work:
            wanted[key] = max(wanted.get(key, 0), samples)
        entries = index.look(start, wanted)
        for place, i, key, samples in work:
            part = _part(entries[key], samples)
            parts[place] |= 1 << STATES.index(part)
            if part == FAILED:
                failures.setdefault(place, {})[i] = entries[key].why
    first = {place: whys[min(whys)] for place, whys in failures.items()}
    return [
        _state({name for bit, name in enumerate(STATES) if mask >> bit & 1}, first.get(place))
        for place, mask in enumerate(parts)
    ]


def _beginning(row: Row, start: str) -> list[tuple[int, Key, int]]:
    work = enumerate(zip(row.work, row.samples, strict=True))
    return [(i, key, samples) for i, (key, samples) in work if key[0].startswith(start)]


def _state(parts: set[str], why: str | None) -> State:
    """Of a row whose tasks are in these states."""
    if len(parts) == 1 and parts <= set(PLAIN):
        return PLAIN[next(iter(parts))]
    return State(FAILED, why) if parts <= {DONE, FAILED} else PLAIN[STOPPED]


def _part(entry: Entry, samples: int) -> str:
    if entry.suffices(samples):
        return DONE
    if entry.status == MISSING:
        return MISSING
    return STOPPED if entry.status in (*FINISHED, STOPPED) else FAILED


def counts(found: Sequence[State]) -> dict[str, int]:
    """How many rows are in each state."""
    counted = Counter(state.name for state in found)
    return {name: counted[name] for name in STATES}


def overview(rows: Rows, found: Sequence[State], *, title: str) -> Table:
    """Every row where they are few, otherwise those that failed or were stopped; counts below."""
    many = len(rows) > SHOWN
    shown = [place for place, state in enumerate(found) if not many or state.name in (FAILED, STOPPED)]
    varies = [len(texts) > 1 for texts in rows.grid.values.values()]
    listed = []
    for place in shown[:SHOWN]:
        row, state = rows[place], found[place]
        distinct = [override for override, varied in zip(row.overrides, varies, strict=True) if varied]
        listed.append([str(row.number), row.cell_id, state.name, shlex.join(distinct), state.why or ""])
    notes = [f"... and {len(shown) - SHOWN} more that failed or were stopped"] if len(shown) > SHOWN else []
    also = f" {rows.same} more row{'s are' if rows.same > 1 else ' is'} the same work." if rows.same else ""
    told = ", ".join(f"{count} {name}" for name, count in counts(found).items() if count)
    notes.append(f"{len(rows)} cells: {told}.{also}")
    columns = ["row", "cell", "state", "overrides that differ", "why"]
    return Table(title, columns, listed, notes, words=len(columns))


def document(rows: Rows, found: Sequence[State], **more: object) -> dict:
    """The last line of stdout."""
    failures = [
        {"row": row.number, "cell_id": row.cell_id, "why": state.why}
        for row, state in zip(rows, found, strict=True)
        if state.name == FAILED
    ]
    return {**more, "rows": len(rows) + rows.same, "cells": len(rows), **counts(found), "failures": failures}
