"""`python -m harness.collect [RESULTS] --out FILE.parquet|.csv`: the store as one table, a row for
each task of a cell.

Columns: what was run (cell, task, the cell's identity flattened, options), its status, each metric
with its interval (retrieval/accuracy, _low, _high, _n), and where it was made (environment.*).
Unfinished and failed tasks are rows too. A copy is kept in results/index/, and only what has
changed since is read again.
"""

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from harness.analysis import reader
from harness.common.errors import refused
from harness.common.files import replacing
from harness.common.streams import print_in_any_encoding
from harness.results.index import FOLDER

FIRST = ("cell_id", "task", "task_id", "status", "samples", "why", "model", "label")
CHUNK = 1000  # rows that are held as Python objects at one time
TRACE = "_trace"  # of the copy alone: how the task's folder looked
FORMAT = "1"  # of the copy: raise it when a row or what is computed for it changes, so that all are read again


def main(arguments: list[str] | None = None) -> int:
    """Returns 0, or 2 for a mistake."""
    print_in_any_encoding()
    parser = argparse.ArgumentParser(prog="python -m harness.collect", description=__doc__.split("\n\n", 1)[1])
    parser.add_argument("results", nargs="?", type=Path, default=Path("results"), help="results folder (results)")
    parser.add_argument("--out", type=Path, required=True, help="file to write, .parquet or .csv")
    given = parser.parse_args(arguments)
    if given.out.suffix not in (".parquet", ".csv"):
        return refused(f"--out={given.out} must end in .parquet or .csv.")
    if not given.results.is_dir():
        return refused(f"There is no folder {given.results}: run python -m harness.run first, or name another folder.")
    table, read = collect(given.results)
    try:
        write(table, given.out)
    except OSError as error:
        return refused(f"--out={given.out} cannot be written: {error}.")
    print(f"{table.num_rows} records, {table.num_columns} columns in {given.out} ({read} read anew).")
    print(json.dumps({"status": "ok", "records": table.num_rows, "read": read, "out": str(given.out)}))
    return 0


def collect(results: Path) -> tuple[pa.Table, int]:
    """The table, and how many records had to be read for it."""
    copy = results / FOLDER / "records.parquet"
    before = _read(copy)
    known = {}
    if before is not None:
        columns = [before[name].to_pylist() for name in ("cell_id", "task", "task_id", TRACE)]
        known = {tuple(key): (i, trace) for i, (*key, trace) in enumerate(zip(*columns, strict=True))}
    kept, changed, parts, read = [], [], [], 0
    waiting = reader.records(results)[::-1]
    while waiting:
        record = waiting.pop()  # what it has read is forgotten with it
        trace = json.dumps(record.store.trace())
        place, old = known.get((record.cell_id, record.task, record.store.task_id), (None, None))
        if old == trace:
            kept.append(place)
            continue
        changed.append({**row_of(record), TRACE: trace})
        read += 1
        if len(changed) == CHUNK:
            parts.append(_table(changed))
            changed = []
    parts += [_table(changed)] if changed else []
    parts += [before.take(kept)] if kept else []
    whole = _joined(parts) if parts else _table([])
    if whole.num_rows:
        whole = whole.sort_by([(name, "ascending") for name in ("cell_id", "task", "task_id")])
    if read or before is None or len(kept) < before.num_rows:
        try:
            write(whole.replace_schema_metadata({"format": FORMAT}), copy)
        except OSError as error:  # a full disk or a store that may only be read: next time is slower
            print(f"{copy} could not be kept: {error}", file=sys.stderr)
    empty = [n for n in whole.column_names if n == TRACE or whole[n].null_count == whole.num_rows]
    return whole.drop_columns([n for n in empty if n not in FIRST]), read


def row_of(record: reader.Record) -> dict[str, Any]:
    """One record as a flat row of strings, numbers, booleans and None."""
    outcome = record.outcome
    why = f"{outcome.error}: {outcome.message}" if outcome.error else None
    samples = outcome.samples if outcome.status == record.status == "ok" else record.count
    about = (record.cell_id, record.task, record.store.task_id, record.status, samples, why)
    row = dict(zip(FIRST, (*about, record.cell.model, record.cell.label), strict=True))
    row |= _flat(record.identity.as_json())
    row |= _flat(record.pairs, "pairs_per_row.")
    row["options"] = None if outcome.options is None else json.dumps(outcome.options, sort_keys=True)
    row["attempt"] = outcome.attempt
    for name, metric in record.metrics.items():
        row |= {name: metric.value, f"{name}_low": metric.low, f"{name}_high": metric.high, f"{name}_n": metric.n}
    return row | _flat(record.environment.as_json(), "environment.")


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries by dotted names; lists as JSON."""
    row: dict[str, Any] = {}
    for name, inner in value.items():
        if isinstance(inner, dict):
            row |= _flat(inner, f"{prefix}{name}.")
        else:
            row[f"{prefix}{name}"] = json.dumps(inner) if isinstance(inner, list) else inner
    return row


def _table(rows: list[dict]) -> pa.Table:
    names = list(dict.fromkeys([*FIRST, *(name for row in rows for name in row)]))
    return pa.table({name: _column([row.get(name) for row in rows]) for name in names})


def _column(values: list) -> pa.Array:
    try:
        return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError):  # of several types
        return _text(values)


def _text(values: list) -> pa.Array:
    return pa.array([None if v is None else str(v) for v in values], pa.string())


def _joined(parts: list[pa.Table]) -> pa.Table:
    """The tables below one another; columns whose types do not go together as text."""
    try:
        return pa.concat_tables(parts, promote_options="permissive")
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        pass
    fields: dict[str, list[pa.Schema]] = {}
    for field in (field for part in parts for field in part.schema):
        fields.setdefault(field.name, []).append(pa.schema([field]))
    text = [name for name, found in fields.items() if not _go_together(found)]
    for i, part in enumerate(parts):
        for name in (name for name in text if name in part.column_names):
            place = part.column_names.index(name)
            parts[i] = part = part.set_column(place, name, _text(part[name].to_pylist()))
    return pa.concat_tables(parts, promote_options="permissive")


def _go_together(found: list[pa.Schema]) -> bool:
    try:
        pa.unify_schemas(found, promote_options="permissive")
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        return False
    return True


def _read(copy: Path) -> pa.Table | None:
    """The copy; None if there is none, it is broken, or of another format."""
    try:
        table = pa.parquet.read_table(copy)
    except (OSError, pa.ArrowInvalid):
        return None
    same = (table.schema.metadata or {}).get(b"format") == FORMAT.encode()
    return table.replace_schema_metadata(None) if same else None


def write(table: pa.Table, file: Path) -> None:
    """Put the table in place, whole or not at all."""
    with replacing(file) as draft:
        if file.suffix == ".csv":
            pa.csv.write_csv(table, draft)
        else:
            pa.parquet.write_table(table, draft)


if __name__ == "__main__":
    sys.exit(main())
