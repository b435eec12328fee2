"""The tables of a store as Markdown."""

from pathlib import Path

from harness.analysis import contexts, reader, table
from harness.report.describe import Grid, Page


def store_model(store: Path, model: str, *, depths: bool = True) -> str:
    """Comparison tables of one model's records, by task and context, and its depth tables unless
    `depths` is False."""
    asked = reader.questions(r for r in reader.records(store) if r.cell.model == model)
    assert asked, f"{store} has no records of {model}"
    timed = [q for q in asked if q.records[0].rows_are == "repeats"]
    parts = [t.markdown() for t in contexts.tables(timed)]
    # everything at every context would be pages of figures: `harness.show` has them
    left = [q for q in asked if q not in timed] if parts else asked
    for q in left:
        parts.append(table.comparison(q.records, title=f"{q.model}, {q.task}, {q.context} tokens").markdown())
        if depths and (by_depth := table.by_depth(q.records)):
            parts.append(by_depth.markdown())
    return "\n".join(parts).rstrip()


def store_tables(page: Page) -> str:
    """All tables of a page's description, section by section; what a reader of a terminal or of a
    README gets."""
    parts = []
    for section in page.sections:
        grids = [block.table for block in section.blocks if isinstance(block, Grid)]
        parts += [f"## {section.title}", ""] if grids else []
        parts += [grid.markdown() for grid in grids]
    return "\n".join(parts)
