"""Tables as Markdown: of a store, or those that stand in README.md and docs/, made anew from the committed records.

In a page a table stands between the marks `<!-- table: STORE MODEL -->` and `<!-- end of table -->`; in STORE's place
may stand a file of figures that one of the modules of MEASURED has written.
"""

import importlib
import re
from collections.abc import Sequence
from pathlib import Path

from harness import reader, table
from harness.config import ROOT
from harness.report.describe import Grid, Page
from harness.store import read_json
from harness.throughput import contexts

# files of figures, and the module whose `markdown` draws them; imported when needed, as transformers comes with some
MEASURED = {
    "upstream.json": "harness.models.upstream",
    "scale.json": "harness.sweep.scale",
    "faults.json": "harness.report.faults",
    "odd.json": "harness.report.odd",
    "h200_first.json": "harness.report.gpu_first",
    "measured.json": "harness.tiny.books_card",
    "overhead.json": "harness.bench_overhead",
    "flat.json": "harness.throughput.flat",
    "bench_cpu.json": "kernels.bench.table",
}
MARK = re.compile(r"(<!-- table: (\S+) (.+?) -->\n).*?(<!-- end of table -->)", re.DOTALL)


def rewritten(text: str) -> str:
    """The text with every marked table made anew from its store."""
    return MARK.sub(lambda m: f"{m[1]}{markdown(ROOT / m[2], m[3])}\n{m[4]}", text)


def markdown(store: Path, model: str) -> str:
    """Comparison and depth tables of one model's records, by task and context."""
    if store.suffix == ".json":
        return importlib.import_module(MEASURED[store.name]).markdown(read_json(store))
    asked = reader.questions(r for r in reader.records(store) if r.cell["model"] == model)
    assert asked, f"{store} has no records of {model}"
    timed = [q for q in asked if q.records[0].rows_are == "repeats"]
    parts = [t.markdown() for t in contexts.tables(timed)]
    # everything at every context would be pages of figures: `harness.show` has them
    left = [q for q in asked if q not in timed] if parts else asked
    for q in left:
        parts.append(table.comparison(q.records, title=f"{q.model}, {q.task}, {q.context} tokens").markdown())
        if depths := table.by_depth(q.records):
            parts.append(depths.markdown())
    return "\n".join(parts).rstrip()


def store_tables(page: Page) -> str:
    """All tables of a page's description, section by section; what a reader of a terminal or of a README gets."""
    parts = []
    for section in page.sections:
        grids = [block.table for block in section.blocks if isinstance(block, Grid)]
        parts += [f"## {section.title}", ""] if grids else []
        parts += [grid.markdown() for grid in grids]
    return "\n".join(parts)


def rewrite(pages: Sequence[Path], *, check: bool) -> int:
    """Make the marked tables of these pages anew. Returns 0, or 1 if `check` found one that was not current, and then
    nothing is changed."""
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
