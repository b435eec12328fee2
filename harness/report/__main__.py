"""`python -m harness.report [RESULTS]`: draw the page of a results folder, from the store alone."""

import argparse
import json
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from harness.common.command import Parser, command
from harness.common.errors import UserError
from harness.common.files import write_whole
from harness.common.secrets import without_secrets
from harness.common.streams import printable


@command
def main(arguments: Sequence[str]) -> int:
    """Return the exit code: 0, 1 if --compare finds a regression, 2 after a UserError, for invalid
    arguments."""
    options = _parser().parse_args(arguments)
    if options.compare:
        return _compare(options)
    if not os.path.isdir(options.results):
        raise UserError(f"There is no folder {options.results}: run python -m harness.run first, or name another.")
    if options.markdown:
        return _markdown(options)
    return _wandb(options) if options.wandb else _page(options, arguments)


def _parser() -> Parser:
    parser = Parser(prog="python -m harness.report", description=__doc__)
    parser.add_argument("results", nargs="?", type=Path, default=Path("results"), help="results folder (results)")
    parser.add_argument("--out", type=Path, default=Path("report"), help="folder of the page (report)")
    modes = parser.add_mutually_exclusive_group()
    modes.add_argument("--wandb", action="store_true", help="save the page as a W&B report, or update it, instead")
    modes.add_argument("--markdown", action="store_true", help="print the tables of RESULTS instead")
    stores = "folders, COMMIT:FOLDER, or COMMIT for RESULTS at a commit"
    modes.add_argument(
        "--compare", nargs=2, metavar=("A", "B"), help=f"print what changed between two stores instead: {stores}"
    )
    return parser


def _page(options: argparse.Namespace, arguments: Sequence[str]) -> int:
    from harness.report import build, page

    now = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    drawn_by = f"Drawn by {shlex.join(['python', '-m', 'harness.report', *map(without_secrets, arguments)])} on {now}."
    description = build.build_page(options.results)
    text = page.draw(description, drawn_by=drawn_by)
    path = options.out / "index.html"
    try:
        write_whole(path, text)
    except OSError as error:
        raise UserError(f"--out {options.out} cannot be written to: {error}.") from None
    print(printable(f"{description.lead}\nPage: {path.resolve().as_uri()}"), file=sys.stderr)
    print(json.dumps({"status": "ok", "page": str(path), "bytes": path.stat().st_size}))
    return 0


def _wandb(options: argparse.Namespace) -> int:
    from harness.report import build, wandb_page

    title = f"Positional LSH: {options.results.resolve().name}"[:128]
    url = wandb_page.save(build.build_page(options.results), title=title)
    print(json.dumps({"status": "ok", "url": url}))
    return 0


def _markdown(options: argparse.Namespace) -> int:
    from harness.report import build, markdown

    print(markdown.store_tables(build.build_page(options.results)))
    return 0


def _compare(options: argparse.Namespace) -> int:
    from harness.analysis import reader, versions
    from harness.common.table import say
    from harness.report import compare

    with tempfile.TemporaryDirectory() as scratch:
        folders = [
            compare.open_store(source, options.results, Path(scratch) / name)
            for source, name in zip(options.compare, ("a", "b"), strict=True)
        ]
        stores = {name: reader.records(folder) for name, folder in zip("AB", folders, strict=True)}
        changes = compare.changes(*stores.values())
        compare.print_changes(changes)
        if notes := versions.differences((name, record) for name, records in stores.items() for record in records):
            say(notes)
    regressed = compare.regressions(changes)
    records = len({(c.record.cell_id, c.record.store.task_id) for c in changes})
    counts = {"compared": records, "figures": len(changes), "regressions": len(regressed)}
    print(json.dumps({"status": "regressed" if regressed else "ok", **counts}))
    return 1 if regressed else 0


if __name__ == "__main__":
    sys.exit(main())
