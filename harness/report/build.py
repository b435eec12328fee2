"""The description of a store's page."""

from collections import Counter
from pathlib import Path

from harness.analysis import reader, table
from harness.report.describe import Page
from harness.report.markup import FILTERS
from harness.report.sections import SECTIONS
from harness.report.sections.common import tags_of


def build_page(results: Path) -> Page:
    """Return the page of a store; for an empty or absent store it says how to fill it."""
    comparisons = reader.comparisons(reader.records(results))
    records = [r for q in comparisons for r in q.records]
    statuses = Counter(r.status for r in records)
    status_counts = ", ".join(f"{count} {status}" for status, count in sorted(statuses.items()))
    cells, models = len({r.cell_id for r in records}), len({q.model for q in comparisons})
    lead = (
        f"{_count(cells, 'cell')} of {_count(models, 'model')} in {results}: {status_counts}."
        if records
        else (f"{results} holds no records yet. Each section says which command fills it.")
    )
    mixed_versions = [(q, notes) for q in comparisons if (notes := table.other_versions(q.records))]
    if mixed_versions:
        first, notes = mixed_versions[0]
        where = f"{first.model}, {first.task}, {first.context} tokens"
        elsewhere = f", and in {_count(len(mixed_versions) - 1, 'more comparison')}" if len(mixed_versions) > 1 else ""
        lead += f" In {where}{elsewhere}: {notes[0]}"
    record_tags = [tags_of(r, q.model) for q in comparisons for r in q.records]
    choices = {name: sorted({value for t in record_tags if (value := getattr(t, name))}) for name in FILTERS}
    return Page("Positional LSH beside exact ALiBi and windows", lead, [s(comparisons) for s in SECTIONS], choices)


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")
