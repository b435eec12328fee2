"""`python -m harness.report [RESULTS]`: draw the page of a results folder, from the store alone."""

import argparse
import json
import shlex
import sys
import time
from pathlib import Path

from harness.errors import UserError


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code: 0, 1 if --check or --compare finds something, 2 for a mistake."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(prog="python -m harness.report", description=__doc__)
    parser.add_argument("results", nargs="?", type=Path, default=Path("results"), help="results folder (results)")
    parser.add_argument("--out", type=Path, default=Path("report"), help="folder of the page (report)")
    given = parser.parse_args(arguments)
    try:
        return _page(given, arguments)
    except UserError as error:
        print(error, file=sys.stderr)
        print(json.dumps({"status": "invalid", "message": str(error)}))
        return 2


def _page(given: argparse.Namespace, arguments: list[str]) -> int:
    from harness.report import build, page

    now = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    drawn_by = f"Drawn by {shlex.join(['python', '-m', 'harness.report', *arguments])} on {now}."
    text = page.draw(build.build(given.results), drawn_by=drawn_by)
    path = given.out / "index.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
