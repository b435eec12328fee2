"""`python -m harness.pareto [RESULTS]`: quality against cost of every cell, and who wins.

Masks are compared with exact ALiBi and with every other method at equal pairs and, where the store
has task=throughput, in equal time: with one correction over all tests. `--plan` prints how many
prompts and draws decide a difference instead. stdout ends with one JSON line.
"""

import argparse
import json
import os
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from harness.common.command import Parser, command
from harness.common.errors import UserError

RESULTS = Path("results")  # without it a plan has assumptions alone


@command
def main(arguments: Sequence[str]) -> int:
    """Return the exit code: 0, or 2 for invalid arguments or a store without comparisons."""
    given = _parser().parse_args(arguments)
    if not 0 < given.difference < 1:
        raise UserError(f"--difference must be between 0 and 1, not {given.difference:g}: 0.02 are two points.")
    if not os.path.isdir(given.results) and not (given.plan and given.results == RESULTS):
        raise UserError(f"There is no folder {given.results}: run python -m harness.sweep first, or name another.")
    return _plan(given) if given.plan else _verdict(given)


def _parser() -> Parser:
    parser = Parser(prog="python -m harness.pareto", description=__doc__.split("\n\n", 1)[1])
    parser.add_argument("results", nargs="?", type=Path, default=RESULTS, help="results folder (results)")
    parser.add_argument("--record", type=Path, metavar="FILE.json", help="write all points and comparisons")
    parser.add_argument("--picture", type=Path, metavar="FILE.svg", help="draw quality against pairs")
    parser.add_argument("--plan", action="store_true", help="print how many prompts and draws decide a difference")
    parser.add_argument("--difference", type=float, default=0.02, metavar="D", help="of accuracy, for --plan (0.02)")
    return parser


def _verdict(given: argparse.Namespace) -> int:
    from harness.analysis import words
    from harness.common.files import write_atomic, write_whole
    from harness.common.table import say
    from harness.pareto import page, picture, record

    verdict = record.make(given.results)
    try:
        if given.record:
            write_atomic(given.record, verdict.as_dict())
        if given.picture:
            write_whole(given.picture, picture.svg(verdict.points))
    except OSError as error:
        raise UserError(f"The record or the picture cannot be written: {error}.") from None
    for table in [*page.tables(verdict.points), page.comparison_table(verdict.findings)]:
        table.print()
    spoken = [f"{p.subject}: {p.text}" for p in words.paragraphs(verdict.findings)]
    spoken = list(filter(None, [words.summary(verdict.findings), *spoken, *words.warnings(verdict.findings)]))
    say(*spoken)
    decisions = Counter(f.decision for f in verdict.findings)
    counts = {"cells": len(verdict.points), "comparisons": len(verdict.findings), **verdict.facts}
    suspicious = [f.this.cell_id for f in verdict.findings if f.suspicious]
    print(json.dumps({"status": "ok", **counts, "decisions": decisions, "suspicious": suspicious, "words": spoken}))
    return 0


def _plan(given: argparse.Namespace) -> int:
    from harness.analysis import reader
    from harness.analysis.verdict import count_tests, find
    from harness.pareto import plan

    compared = reader.comparisons(reader.records(given.results)) if given.results.is_dir() else []
    findings = find(compared)
    found = plan.observed(compared, findings)
    tests = count_tests(findings)
    for table in plan.tables(given.difference, tests, found):
        table.print()
    print(json.dumps({"status": "ok", **plan.as_dict(given.difference, tests, found)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
