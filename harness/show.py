"""`python -m harness.show [CELL_ID]`: print the records of a cell, or list all cells."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from harness.analysis import reader, table
from harness.common.command import Parser, command
from harness.common.errors import UserError, nearest
from harness.common.streams import printable
from harness.common.table import Table


@command
def main(arguments: Sequence[str]) -> int:
    """Run the command and return the exit code: 0, or 2 after a UserError, if there are no records
    or not exactly one such cell."""
    parser = Parser(prog="python -m harness.show", description=__doc__)
    parser.add_argument("cell_id", nargs="?", help="the cell, or the beginning of its id; all cells if left out")
    parser.add_argument("--results", type=Path, default=Path("results"), help="results folder (results)")
    args = parser.parse_args(arguments)
    records = reader.records(args.results)
    if not records:
        raise UserError(
            f"{args.results} holds no records: run python -m harness.run first, or name another folder with --results."
        )
    if args.cell_id is None:
        table.overview(records).print()
        return 0
    ids = sorted({r.cell_id for r in records})
    matching = [c for c in ids if c.startswith(args.cell_id)]
    if len(matching) > 1:
        raise UserError(f"{args.cell_id!r} matches {len(matching)} cells in {args.results}: add a digit.")
    if not matching:
        raise UserError(f"There is no cell {args.cell_id!r} in {args.results}.{nearest(args.cell_id, ids)}")
    cell_records = [r for r in records if r.cell_id == matching[0]]
    for record in cell_records:
        _print_record(record, records)
    print(json.dumps({"cell_id": matching[0], "tasks": [r.summary() for r in cell_records]}))
    return 0


def _print_record(record: reader.Record, records: list[reader.Record]) -> None:
    others = [r for r in records if reader.same_question(r) == reader.same_question(record) and r is not record]
    exact = reader.reference_of(record, others)
    compared = [record] if exact is None else [exact, record]
    title = f"{record.task} · {record.cell.model} · {record.context} tokens · {record.status}"
    table.comparison(compared, title=title).print()
    metrics = [[n, table.interval(m), str(m.n), m.unit] for n, m in record.metrics.items()]
    if metrics:
        Table("", ["metric", "value", "n", "unit"], metrics, []).print()
    if message := record.outcome.message:
        print(printable(f"{record.outcome.error}: {message}"))
    facts = {**record.identity.as_json(), **record.options, **record.environment.as_json()}
    for name, value in facts.items():
        print(printable(f"  {name}: {json.dumps(value)}"))


if __name__ == "__main__":
    sys.exit(main())
