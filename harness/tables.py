"""`python -m harness.tables [--check]`: rewrite the tables in README.md and docs/ from the committed records.

A table stands between the marks `<!-- table: STORE MODEL -->` and `<!-- end of table -->`; in STORE's place may
stand the JSON file of `python -m harness.models.upstream` or of `python -m harness.bench_overhead`.
"""

import argparse
import importlib
import re
import sys
from pathlib import Path

from harness import reader, table
from harness.config import ROOT
from harness.store import read_json
from harness.throughput import contexts

MARK = re.compile(r"(<!-- table: (\S+) (.+?) -->\n).*?(<!-- end of table -->)", re.DOTALL)
MADE_BY = {"upstream": "harness.models.upstream", "overhead": "harness.bench_overhead"}
ORDER = {"alibi": 0, "stock": 1, "plsh": 2, "window": 3}


def rewritten(text: str) -> str:
    """The text with every marked table made anew from its store."""
    return MARK.sub(lambda m: f"{m[1]}{markdown(ROOT / m[2], m[3])}\n{m[4]}", text)


def markdown(store: Path, model: str) -> str:
    """Comparison and depth tables of one model's records, by task and context."""
    if store.suffix == ".json":
        # imported here: one of them needs transformers, which no other table does
        return importlib.import_module(MADE_BY[store.stem]).markdown(read_json(store))
    found = [r for r in reader.records(store) if r.cell["model"] == model]
    assert found, f"{store} has no records of {model}"
    parts = [t.markdown() for t in contexts.tables([r for r in found if r.rows_are == "repeats"])]
    questions = sorted({(r.task, r.cell["identity"]["context"], reader.same_question(r)) for r in found})
    for task, context, question in questions:
        shown = [r for r in found if reader.same_question(r) == question]
        shown.sort(key=lambda r: (ORDER[r.attention["name"]], r.cell["pairs_per_row"]["fused"], r.cell["label"]))
        parts.append(table.comparison(shown, title=f"{model}, {task}, {context} tokens").markdown())
        if depths := table.by_depth(shown):
            parts.append(depths.markdown())
    return "\n".join(parts).rstrip()


def main() -> int:
    """Returns 0, or 1 if --check finds a table that is not current."""
    parser = argparse.ArgumentParser(prog="python -m harness.tables", description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="change nothing, exit with 1 if a table is not current")
    check = parser.parse_args().check
    stale = []
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        before = page.read_text()
        after = rewritten(before)
        if after != before:
            stale.append(page.name)
            if not check:
                page.write_text(after)
    print(f"{'Not current' if check else 'Rewritten'}: {', '.join(stale)}" if stale else "All tables are current.")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
