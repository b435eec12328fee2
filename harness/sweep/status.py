"""States of the rows of a sweep, from the store, and their table."""

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
MAX_LISTED = 40  # rows of a table


@dataclass(frozen=True, slots=True)
class State:
    """The state of a row.

    name: done, failed, stopped (resumable) or missing.
    why: message of a failure.
    """

    name: str
    why: str | None = None


SIMPLE_STATES = {name: State(name) for name in (DONE, STOPPED, MISSING)}  # shared by all rows


def states(rows: Rows, results: Path) -> list[State]:
    """Return the state of each row, from the index of the store."""
    index = Index(results)
    masks = bytearray(len(rows))  # of each row, one bit for each state of its tasks
    failures: dict[int, dict[int, str | None]] = {}  # messages by row and task
    for prefix, positions in rows.by_prefix():
        work = [(position, *task) for position in positions for task in _tasks_with_prefix(rows[position], prefix)]
        samples_of: dict[Key, int] = {}
        for _, _, key, samples in work:
            samples_of[key] = max(samples_of.get(key, 0), samples)
        entries = index.look(prefix, samples_of)
        for position, i, key, samples in work:
            state = _task_state(entries[key], samples)
            masks[position] |= 1 << STATES.index(state)
            if state == FAILED:
                failures.setdefault(position, {})[i] = entries[key].why
    messages = {position: by_task[min(by_task)] for position, by_task in failures.items()}
    return [
        _state({name for bit, name in enumerate(STATES) if mask >> bit & 1}, messages.get(position))
        for position, mask in enumerate(masks)
    ]


def _tasks_with_prefix(row: Row, prefix: str) -> list[tuple[int, Key, int]]:
    work = enumerate(zip(row.work, row.samples, strict=True))
    return [(i, key, samples) for i, (key, samples) in work if key[0].startswith(prefix)]


def _state(names: set[str], why: str | None) -> State:
    """Return the state of a row from the states of its tasks."""
    if len(names) == 1 and names <= set(SIMPLE_STATES):
        return SIMPLE_STATES[next(iter(names))]
    return State(FAILED, why) if names <= {DONE, FAILED} else SIMPLE_STATES[STOPPED]


def _task_state(entry: Entry, samples: int) -> str:
    if entry.suffices(samples):
        return DONE
    if entry.status == MISSING:
        return MISSING
    return STOPPED if entry.status in (*FINISHED, STOPPED) else FAILED


def counts(row_states: Sequence[State]) -> dict[str, int]:
    """Return the number of rows in each state."""
    counter = Counter(state.name for state in row_states)
    return {name: counter[name] for name in STATES}


def overview(rows: Rows, row_states: Sequence[State], *, title: str) -> Table:
    """Return a table of all rows, or of failed and stopped rows if there are many, with counts.

    Args:
        rows: the rows.
        row_states: their states.
        title: title of the table.
    """
    abridged = len(rows) > MAX_LISTED
    listed = [position for position, state in enumerate(row_states) if not abridged or state.name in (FAILED, STOPPED)]
    varies = [len(texts) > 1 for texts in rows.grid.values.values()]
    table_rows = []
    for position in listed[:MAX_LISTED]:
        row, state = rows[position], row_states[position]
        distinct = [override for override, varied in zip(row.overrides, varies, strict=True) if varied]
        table_rows.append([str(row.number), row.cell_id, state.name, shlex.join(distinct), state.why or ""])
    notes = [f"... and {len(listed) - MAX_LISTED} more that failed or were stopped"] if len(listed) > MAX_LISTED else []
    verb = "s are" if rows.duplicates > 1 else " is"
    duplicates = f" {rows.duplicates} more row{verb} the same work." if rows.duplicates else ""
    summary = ", ".join(f"{count} {name}" for name, count in counts(row_states).items() if count)
    notes.append(f"{len(rows)} cells: {summary}.{duplicates}")
    columns = ["row", "cell", "state", "overrides that differ", "why"]
    return Table(title, columns, table_rows, notes, words=len(columns))


def json_summary(rows: Rows, row_states: Sequence[State], **fields: object) -> dict:
    """Return the last line of stdout.

    Args:
        rows: the rows.
        row_states: their states.
        fields: further fields, which come first.
    """
    failures = [
        {"row": row.number, "cell_id": row.cell_id, "why": state.why}
        for row, state in zip(rows, row_states, strict=True)
        if state.name == FAILED
    ]
    numbers = {"rows": len(rows) + rows.duplicates, "cells": len(rows), **counts(row_states)}
    return {**fields, **numbers, "failures": failures}
