"""What the store has of the rows of a sweep, and the tables that say so."""

import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from harness.index import Entry, Key, look
from harness.store import FINISHED
from harness.sweep.cells import Row
from harness.table import Table

DONE, FAILED, STOPPED, MISSING = "done", "failed", "stopped", "missing"
STATES = (DONE, FAILED, STOPPED, MISSING)
SHOWN = 40  # rows that a table lists one by one


@dataclass(frozen=True, slots=True)
class State:
    """done, failed, stopped (begun, to be continued) or missing; why: of a failure."""

    name: str
    why: str | None = None


def states(rows: Sequence[Row], results: Path) -> list[State]:
    """The state of each row, from the index of the store."""
    wanted: dict[Key, int] = {}
    for row in rows:
        for key, samples in zip(row.work, row.samples, strict=True):
            wanted[key] = max(wanted.get(key, 0), samples)
    # what tells whether the entry still holds is not needed any more, and is most of it
    parts = {key: replace(entry, mark=None, trace=None) for key, entry in look(results, wanted.items())}
    return [_state(row, [parts[key] for key in row.work]) for row in rows]


def _state(row: Row, parts: Sequence[Entry]) -> State:
    each = [(_part(entry, samples), entry) for entry, samples in zip(parts, row.samples, strict=True)]
    names = {name for name, _ in each}
    if names == {DONE}:
        return State(DONE)
    if names == {MISSING}:
        return State(MISSING)
    if names <= {DONE, FAILED}:
        return State(FAILED, next(entry.why for name, entry in each if name == FAILED))
    return State(STOPPED)


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


def overview(rows: Sequence[Row], found: Sequence[State], *, title: str) -> Table:
    """Every row where they are few, otherwise those that failed or were stopped; counts below."""
    shown = list(zip(rows, found, strict=True))
    if len(shown) > SHOWN:
        shown = [pair for pair in shown if pair[1].name in (FAILED, STOPPED)]
    listed = [
        [str(row.number), row.cell_id, state.name, shlex.join(distinct), state.why or ""]
        for (row, state), distinct in zip(shown[:SHOWN], _distinct(rows, [r for r, _ in shown[:SHOWN]]), strict=True)
    ]
    notes = [f"... and {len(shown) - SHOWN} more that failed or were stopped"] if len(shown) > SHOWN else []
    same = sum(len(row.same) for row in rows)
    also = f" {same} more row{'s are' if same > 1 else ' is'} the same work." if same else ""
    told = ", ".join(f"{count} {name}" for name, count in counts(found).items() if count)
    notes.append(f"{len(rows)} cells: {told}.{also}")
    columns = ["row", "cell", "state", "overrides that differ", "why"]
    return Table(title, columns, listed, notes, words=len(columns))


def _distinct(rows: Sequence[Row], shown: Sequence[Row]) -> list[list[str]]:
    """Of each shown row the overrides that are not the same in all rows."""
    varies = [len({row.overrides[i] for row in rows}) > 1 for i in range(len(rows[0].overrides))] if rows else []
    return [[o for o, v in zip(row.overrides, varies, strict=True) if v] for row in shown]


def document(rows: Sequence[Row], found: Sequence[State], **more: object) -> dict:
    """The last line of stdout."""
    failures = [
        {"row": row.number, "cell_id": row.cell_id, "why": state.why}
        for row, state in zip(rows, found, strict=True)
        if state.name == FAILED
    ]
    same = sum(len(row.same) for row in rows)
    return {**more, "rows": len(rows) + same, "cells": len(rows), **counts(found), "failures": failures}
