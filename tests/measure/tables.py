"""`python -m tests.measure.tables PAGE...`: make the marked tables of README.md and docs/ anew from
the committed records, as `make tables` does.

A table stands between the marks `<!-- table: STORE MODEL -->` and `<!-- end of table -->`. With the
word `comparison` after MODEL the tables by depth and class of token are left out. STORE may also be
a file of figures that one of the modules of MEASURED has written; if that module has PARTS, the word
in place of MODEL chooses one of them.
"""

import argparse
import importlib
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from harness.common.files import read_json
from harness.common.paths import ROOT
from harness.report.markdown import store_model

# files of figures, and the module whose `markdown` draws them; imported when needed, as
# transformers comes with some
MEASURED = {
    "upstream.json": "tests.measure.upstream",
    "scale.json": "tests.measure.scale",
    "faults.json": "tests.faults.table",
    "odd.json": "tests.odd.table",
    "fuzz.json": "tests.fuzz.table",
    "h200_first.json": "tests.measure.gpu_first",
    "measured.json": "harness.training.books_card",
    "near_retrieval.json": "tests.measure.near",
    "near_text.json": "tests.measure.near",
    "recency.json": "tests.measure.recency",
    "theory.json": "tests.measure.theory",
    "masks_gaussian.json": "tests.measure.masks",
    "controls.json": "tests.measure.controls",
    "tiny_code.json": "harness.training.code_card",
    "overhead.json": "tests.measure.overhead",
    "pareto.json": "harness.pareto.page",
    "flat.json": "tests.measure.flat",
    "bench_cpu.json": "kernels.bench.table",
}
MARK = re.compile(r"(<!-- table: (\S+) ([^\n]+?)( comparison)? -->\n).*?(<!-- end of table -->)", re.DOTALL)


def rewritten(text: str) -> str:
    """The text with every marked table made anew from its record."""
    return MARK.sub(lambda m: f"{m[1]}{drawn(ROOT / m[2], m[3], breakdowns=not m[4])}\n{m[5]}", text)


def drawn(record: Path, model: str, *, breakdowns: bool) -> str:
    """The tables of a file of figures, or those of one model's records in a store."""
    if record.suffix == ".json":
        module = importlib.import_module(MEASURED[record.name])
        return getattr(module, "PARTS", {}).get(model, module.markdown)(read_json(record))
    return store_model(record, model, breakdowns=breakdowns)


def rewrite(pages: Sequence[Path], *, check: bool) -> int:
    """Make the marked tables of these pages anew. Returns 0, or 1 if `check` found one that was not
    current, and then nothing is changed."""
    stale = []
    for page in pages:
        before = page.read_text()
        after = rewritten(before)
        if after != before:
            stale.append(page.name)
            if not check:
                page.write_text(after)
    print(f"{'Not current' if check else 'Rewritten'}: {', '.join(stale)}" if stale else "All tables are current.")
    return 1 if check and stale else 0


def main(arguments: list[str] | None = None) -> int:
    """Returns 0, or 1 if --check finds a table that is not current."""
    parser = argparse.ArgumentParser(prog="python -m tests.measure.tables", description=__doc__.split("\n\n")[0])
    parser.add_argument("pages", nargs="+", type=Path, metavar="PAGE")
    parser.add_argument("--check", action="store_true", help="change nothing, exit 1 if a table is not current")
    given = parser.parse_args(arguments)
    return rewrite(given.pages, check=given.check)


if __name__ == "__main__":
    sys.exit(main())
