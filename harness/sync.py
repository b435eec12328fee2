"""`python -m harness.sync [RESULTS]`: upload cells of the store that W&B lacks.

It may run any number of times: uploaded cells are skipped, and cells with new rows continue their
W&B runs.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from harness.analysis import reader
from harness.common.command import Parser, command
from harness.common.errors import EXIT_FAILED, EXIT_OK, UserError, nearest
from harness.common.streams import printable
from harness.tracking.mirror import Outcome, mirror


@command
def main(arguments: Sequence[str]) -> int:
    """Run the command and return the exit code: 0 all uploaded, 1 not all, 2 after a UserError, for
    a mistake."""
    parser = Parser(prog="python -m harness.sync", description=__doc__)
    parser.add_argument("results", nargs="?", type=Path, default=Path("results"), help="results folder (results)")
    parser.add_argument("--cell", action="append", metavar="CELL_ID", help="this cell alone; may be repeated")
    parser.add_argument("--project", help="W&B project (the one named when the cell was run)")
    parser.add_argument("--entity", help="W&B user or team (likewise)")
    parser.add_argument("--group", help="W&B group (likewise)")
    parser.add_argument("--timeout", type=float, default=45.0, help="seconds for each cell, times the cells (45)")
    args = parser.parse_args(arguments)
    stored = sorted({r.cell_id for r in reader.records(args.results, verify=False)})
    if not stored:
        raise UserError(f"{args.results} holds no records: name the results folder of a run.")
    for cell_id in args.cell or ():
        if cell_id not in stored:
            raise UserError(f"There is no cell {cell_id!r} in {args.results}.{nearest(cell_id, stored)}")
    cells = list(dict.fromkeys(args.cell or stored))
    destination = {"project": args.project, "entity": args.entity, "group": args.group}
    outcome = mirror(args.results, cells, mode="online", limit=args.timeout * len(cells), **destination)
    if outcome.no_key:
        raise UserError("No W&B API key was found: run wandb login, or set WANDB_API_KEY.")
    return _report(outcome)


def _report(outcome: Outcome) -> int:
    for cell_id, uploaded in outcome.done.items():
        print(printable(f"{cell_id}: {uploaded['url']}"))
    if outcome.current:
        print(f"{len(outcome.current)} cells were there already.")
    if outcome.failed:
        print(printable(f"{len(outcome.unreached)} cells are not uploaded: {outcome.failed}"), file=sys.stderr)
    document = {
        "status": "failed" if outcome.failed else "ok",
        "uploaded": {cell_id: uploaded["url"] for cell_id, uploaded in outcome.done.items()},
        "current": outcome.current,
        "left": outcome.unreached,
    }
    print(json.dumps(document))
    return EXIT_FAILED if outcome.failed else EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
