"""The tables of a store as Markdown."""

from pathlib import Path

from harness.analysis import contexts, reader, table
from harness.report.describe import Grid, Page


def store_model(store: Path, model: str, *, breakdowns: bool = True) -> str:
    """Return the comparison tables of a model's records, by task and context.

    Args:
        store: the results folder.
        model: name of the model.
        breakdowns: whether to add the tables by depth and by class of token.
    """
    comparisons = reader.comparisons(r for r in reader.records(store) if r.cell.model == model)
    assert comparisons, f"{store} has no records of {model}"
    timed = [q for q in comparisons if q.records[0].rows_are == "repeats"]
    parts = [t.markdown() for t in contexts.tables(timed)]
    # timings at all contexts would fill pages: `harness.show` has them
    untimed = [q for q in comparisons if q not in timed] if parts else comparisons
    for q in untimed:
        parts.append(table.comparison(q.records, title=f"{q.model}, {q.task}, {q.context} tokens").markdown())
        if breakdowns:
            parts += [t.markdown() for t in table.breakdowns(q.records)]
    return "\n".join(parts).rstrip()


def store_tables(page: Page) -> str:
    """Return all tables of a page, section by section, for a terminal or a README."""
    parts = []
    for section in page.sections:
        grids = [block.table for block in section.blocks if isinstance(block, Grid)]
        parts += [f"## {section.title}", ""] if grids else []
        parts += [grid.markdown() for grid in grids]
    return "\n".join(parts)
