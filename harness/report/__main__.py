"""`python -m harness.report [RESULTS]`: draw the page of a results folder, from the store alone."""

import argparse
import json
import os
import shlex
import sys
import tempfile
import time
from pathlib import Path

from harness.common.errors import UserError, report_mistake
from harness.common.files import write_whole
from harness.common.streams import print_in_any_encoding


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code: 0, 1 if --compare finds a regression, 2 for a mistake."""
    print_in_any_encoding()
    arguments = sys.argv[1:] if arguments is None else arguments
    given = _parser().parse_args(arguments)
    try:
        if given.markdown:
            return _markdown(given)
        if given.compare:
            return _compare(given)
        return _wandb(given) if given.wandb else _page(given, arguments)
    except BrokenPipeError:  # whoever read stdout left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except UserError as error:
        return report_mistake(str(error))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m harness.report", description=__doc__)
    parser.add_argument("results", nargs="?", type=Path, default=Path("results"), help="results folder (results)")
    parser.add_argument("--out", type=Path, default=Path("report"), help="folder of the page (report)")
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument("--wandb", action="store_true", help="save the page as a W&B report, or update it, instead")
    instead.add_argument("--markdown", action="store_true", help="print the tables of RESULTS instead")
    told = "print what changed between two stores instead: folders, COMMIT:FOLDER, or COMMIT for RESULTS at a commit"
    instead.add_argument("--compare", nargs=2, metavar=("A", "B"), help=told)
    return parser


def _page(given: argparse.Namespace, arguments: list[str]) -> int:
    from harness.report import build, page

    now = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    drawn_by = f"Drawn by {shlex.join(['python', '-m', 'harness.report', *arguments])} on {now}."
    described = build.build(given.results)
    text = page.draw(described, drawn_by=drawn_by)
    path = given.out / "index.html"
    try:
        write_whole(path, text)
    except OSError as error:
        raise UserError(f"--out {given.out} cannot be written to: {error}.") from None
    print(f"{described.lead}\nPage: {path.resolve().as_uri()}", file=sys.stderr)
    print(json.dumps({"status": "ok", "page": str(path), "bytes": path.stat().st_size}))
    return 0


def _wandb(given: argparse.Namespace) -> int:
    from harness.report import build, wandb_page

    url = wandb_page.save(build.build(given.results), title=f"Positional LSH: {given.results.resolve().name}"[:128])
    print(json.dumps({"status": "ok", "url": url}))
    return 0


def _markdown(given: argparse.Namespace) -> int:
    from harness.report import build, markdown

    print(markdown.store_tables(build.build(given.results)))
    return 0


def _compare(given: argparse.Namespace) -> int:
    from harness.analysis import reader, versions
    from harness.common.table import say
    from harness.report import compare

    with tempfile.TemporaryDirectory() as scratch:
        places = [
            compare.opened(where, given.results, Path(scratch) / name)
            for where, name in zip(given.compare, ("a", "b"), strict=True)
        ]
        stores = {name: reader.records(place) for name, place in zip("AB", places, strict=True)}
        found = compare.changes(*stores.values())
        compare.print_changes(found)
        if told := versions.differences((name, record) for name, records in stores.items() for record in records):
            say(told)
    worse = compare.regressions(found)
    records = len({(c.record.cell_id, c.record.store.task_id) for c in found})
    about = {"compared": records, "figures": len(found), "regressions": len(worse)}
    print(json.dumps({"status": "regressed" if worse else "ok", **about}))
    return 1 if worse else 0


if __name__ == "__main__":
    sys.exit(main())
