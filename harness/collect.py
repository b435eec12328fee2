"""`python -m harness.collect [RESULTS] --out FILE.parquet|.csv`: the store as one table, a row for
each task of a cell.

Columns: cell, task, the cell's identity (flattened), the task's options, status, each metric with
its interval (retrieval/accuracy, _low, _high, _n), and code and machine (environment.*). Unfinished
and failed tasks are rows too. Files that hold no record are named on stderr and in the JSON line.
Rows are cached in results/index/, and only tasks that have changed are read again.
"""

import functools
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute
import pyarrow.csv
import pyarrow.parquet

from harness.analysis import reader
from harness.common.command import Parser, command
from harness.common.errors import UserError
from harness.common.files import names_in, odd_files, replacing, say_odd
from harness.results.index import Index
from harness.results.store import TaskStore

FIRST = ("cell_id", "task", "task_id", "status", "samples", "why", "model", "label")
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # first characters of a formula in spreadsheets
FORMULA_PATTERN = r"\A([=+\-@\t\r])"


@command
def main(arguments: Sequence[str]) -> int:
    """Return the exit code: 0, or 2 after a UserError, for invalid arguments and files that cannot
    be written."""
    parser = Parser(prog="python -m harness.collect", description=__doc__.split("\n\n", 1)[1])
    parser.add_argument("results", nargs="?", type=Path, default=Path("results"), help="results folder (results)")
    parser.add_argument("--out", type=Path, required=True, help="file to write, .parquet or .csv")
    given = parser.parse_args(arguments)
    if given.out.suffix not in (".parquet", ".csv"):
        raise UserError(f"--out={given.out} must end in .parquet or .csv.")
    if not os.path.isdir(given.results):
        raise UserError(f"There is no folder {given.results}: run python -m harness.run first, or name another folder.")
    with odd_files() as odd:
        table, read = collect(given.results)
    try:
        write(table, given.out)
    except OSError as error:
        raise UserError(f"--out={given.out} cannot be written: {error}.") from None
    print(f"{table.num_rows} records, {table.num_columns} columns in {given.out} ({read} newly read).")
    left_out = [{"where": str(path), "why": why} for path, why in odd.items()]
    about = {"records": table.num_rows, "read": read, "out": str(given.out), "left_out": left_out}
    print(json.dumps({"status": "ok", **about}))
    return 0


def collect(results: Path) -> tuple[pa.Table, int]:
    """Return the table of a store, and the number of records that were not in the cache."""
    cell_of = functools.lru_cache(maxsize=1)(reader.cell_of)  # the tasks of a cell follow one another

    def tasks() -> Iterator[TaskStore]:
        for name in names_in(results):
            if os.path.lexists(f"{results}/{name}/cell.json"):
                stores = reader.stores(results, name)
                yield from stores
                if not stores:
                    cell_of(results / name / "cell.json")  # says whether it can be read

    def made(store: TaskStore) -> dict | None:
        cell = cell_of(store.cell_folder / "cell.json")
        return None if cell is None else row_of(reader.Record(cell, store, verify=False))

    rows, read = [], 0
    for row, new in Index(results).rows(tasks(), made):
        if row["status"] == "refused":
            say_odd(results / row["cell_id"] / f"{row['task']}-{row['task_id']}" / "task.json", row["why"])
            continue
        rows.append(row)
        read += new
    table = pa.table({name: _column(values) for name, values in _columns(rows).items()})
    if rows:
        table = table.sort_by([(name, "ascending") for name in ("cell_id", "task", "task_id")])
    empty = [name for name in table.column_names if table[name].null_count == len(rows) and name not in FIRST]
    return table.drop_columns(empty), read


def row_of(record: reader.Record) -> dict[str, Any]:
    """Return a record as a flat row of strings, numbers, booleans and None."""
    outcome = record.outcome
    why = record.state.why or (f"{outcome.error}: {outcome.message}" if outcome.error else None)
    samples = outcome.samples if outcome.status == record.status == "ok" else record.count
    about = (record.cell_id, record.task, record.store.task_id, record.status, samples, why)
    row: dict[str, Any] = dict(zip(FIRST, (*about, record.cell.model, record.cell.label), strict=True))
    row |= _flat(record.identity.as_json())
    row |= _flat(record.pairs, "pairs_per_row.")
    row["options"] = None if outcome.options is None else json.dumps(outcome.options, sort_keys=True)
    row["attempt"] = outcome.attempt
    for name, metric in record.metrics.items():
        row[name] = metric.value
        row |= {f"{name}_low": metric.low, f"{name}_high": metric.high, f"{name}_n": metric.n}
    return row | _flat(record.environment.as_json(), "environment.")


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested dictionaries to dotted names; lists become JSON."""
    row: dict[str, Any] = {}
    for name, inner in value.items():
        if isinstance(inner, dict):
            row |= _flat(inner, f"{prefix}{name}.")
        else:
            row[prefix + name] = json.dumps(inner) if isinstance(inner, list) else inner
    return row


def _columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, list]:
    """The values of each name in any row, None where a row lacks it."""
    columns: dict[str, list] = {name: [] for name in FIRST}
    done = 0
    for names, group in groupby(rows, key=tuple):  # neighbours have mostly the same names
        for name, values in zip(names, zip(*(row.values() for row in group), strict=True), strict=True):
            column = columns.setdefault(name, [])
            column += [None] * (done - len(column))
            column += values
        done += len(values)
    for column in columns.values():
        column += [None] * (len(rows) - len(column))
    return columns


def _column(values: list) -> pa.Array:
    try:
        return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):  # several types, or integers of over 64 bits
        return pa.array([None if v is None else str(v) for v in values], pa.string())


def write(table: pa.Table, file: Path) -> None:
    """Write the table by an atomic replacement of the file.

    Raises:
        OSError: if it cannot be written.
    """
    with replacing(file) as draft:
        if file.suffix == ".csv":
            pa.csv.write_csv(_for_spreadsheets(table), draft)
        else:
            pa.parquet.write_table(table, draft)


def _for_spreadsheets(table: pa.Table) -> pa.Table:
    """Put an apostrophe before each text that a spreadsheet would compute. Numbers stay numbers."""
    columns = [_quoted(c) if pa.types.is_string(c.type) else c for c in table.columns]
    return pa.table(columns, names=[f"'{n}" if n.startswith(FORMULA) else n for n in table.column_names])


def _quoted(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return pa.compute.replace_substring_regex(column, FORMULA_PATTERN, r"'\1")


if __name__ == "__main__":
    sys.exit(main())
