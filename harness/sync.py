"""`python -m harness.sync [RESULTS]`: upload to W&B what the store holds and W&B does not have yet.
Call it as often as you like: what is there is left alone, what has grown since continues its
run."""

import argparse
import json
import sys
from pathlib import Path

from harness.analysis import reader
from harness.common.errors import nearest, report_mistake
from harness.common.streams import print_in_any_encoding
from harness.tracking.mirror import Outcome, mirror

DONE, FAILED = 0, 1


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code: 0 all is there, 1 something is not, 2 nothing to do it with."""
    print_in_any_encoding()
    parser = argparse.ArgumentParser(prog="python -m harness.sync", description=__doc__)
    parser.add_argument("results", nargs="?", type=Path, default=Path("results"), help="results folder (results)")
    parser.add_argument("--cell", action="append", metavar="CELL_ID", help="this cell alone; may be repeated")
    parser.add_argument("--project", help="W&B project (the one named when the cell was run)")
    parser.add_argument("--entity", help="W&B user or team (likewise)")
    parser.add_argument("--group", help="W&B group (likewise)")
    parser.add_argument("--timeout", type=float, default=45.0, help="seconds for each cell, times the cells (45)")
    given = parser.parse_args(arguments)
    known = sorted({r.cell_id for r in reader.records(given.results)})
    if not known:
        return report_mistake(f"{given.results} holds no records: name the results folder of a run.")
    for cell_id in given.cell or ():
        if cell_id not in known:
            return report_mistake(f"There is no cell {cell_id!r} in {given.results}.{nearest(cell_id, known)}")
    cells = list(dict.fromkeys(given.cell or known))
    destination = {"project": given.project, "entity": given.entity, "group": given.group}
    outcome = mirror(given.results, cells, mode="online", limit=given.timeout * len(cells), **destination)
    if outcome.no_key:
        return report_mistake("W&B knows no API key here: run wandb login, or set WANDB_API_KEY.")
    return _report(outcome)


def _report(outcome: Outcome) -> int:
    for cell_id, there in outcome.done.items():
        print(f"{cell_id}: {there['url']}")
    if outcome.current:
        print(f"{len(outcome.current)} cells were there already.")
    if outcome.failed:
        print(f"{len(outcome.left)} cells are not uploaded: {outcome.failed}", file=sys.stderr)
    document = {
        "status": "failed" if outcome.failed else "ok",
        "uploaded": {cell_id: there["url"] for cell_id, there in outcome.done.items()},
        "current": outcome.current,
        "left": outcome.left,
    }
    print(json.dumps(document))
    return FAILED if outcome.failed else DONE


if __name__ == "__main__":
    sys.exit(main())
