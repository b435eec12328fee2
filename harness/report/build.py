"""From a store to the description of its page."""

from collections import Counter
from pathlib import Path

from harness.analysis import reader, table
from harness.report.describe import Page
from harness.report.markup import FILTERS
from harness.report.sections import SECTIONS
from harness.report.sections.common import tags_of


def build(results: Path) -> Page:
    """Describe what there is to see in a store. An empty or absent one gives a page that says how
    to fill it."""
    questions = reader.questions(reader.records(results))
    found = [r for q in questions for r in q.records]
    statuses = Counter(r.status for r in found)
    counted = ", ".join(f"{count} {status}" for status, count in sorted(statuses.items()))
    cells, models = len({r.cell_id for r in found}), len({q.model for q in questions})
    lead = (
        f"{_count(cells, 'cell')} of {_count(models, 'model')} in {results}: {counted}."
        if found
        else (f"{results} holds no records yet. Each section says which command fills it.")
    )
    unlike = [(q, told) for q in questions if (told := table.other_versions(q.records))]
    if unlike:
        first, told = unlike[0]
        where = f"{first.model}, {first.task}, {first.context} tokens"
        others = f", and in {_count(len(unlike) - 1, 'more comparison')}" if len(unlike) > 1 else ""
        lead += f" In {where}{others}: {told[0]}"
    tags = [tags_of(r, q.model) for q in questions for r in q.records]
    choices = {name: sorted({value for t in tags if (value := getattr(t, name))}) for name in FILTERS}
    return Page("Positional LSH beside exact ALiBi and windows", lead, [s(questions) for s in SECTIONS], choices)


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}" + ("" if number == 1 else "s")
