"""Every cell of the store with its status, failed and missing ones included, and where its record
came from."""

from harness.analysis import table
from harness.analysis.reader import Question, Record, difference
from harness.attentions.alibi import Alibi
from harness.common.table import Table
from harness.experiment import command
from harness.report.describe import Grid, Section, Tags
from harness.report.methods import EXACT
from harness.report.sections import common
from harness.report.sections.verdict import OTHERS

MESSAGE = 400  # characters of an error message


def section(questions: list[Question]) -> Section:
    found = [(q, r) for q in questions for r in q.records]
    drawn = table.overview([r for _, r in found])
    columns = [*drawn.columns, "minus exact", "pairs per row"]
    rows = []
    for (q, r), row in zip(found, drawn.rows, strict=True):
        change = difference(r, q.exact) if q.exact not in (None, r) and r.score else None
        visited = f"{r.pairs['fused']:.1f}" if "fused" in r.pairs else ""
        rows.append([row[0][:8], q.model, *row[2:], table.signed(change), visited])
    tags = [common.tags_of(r, q.model) for q, r in found]
    details = [_details(r) for _, r in found]
    for model_questions in common.by_model(_newest(questions)).values():
        for row, gap_tags, made_by in _missing(model_questions):
            rows.append(row)
            tags.append(gap_tags)
            details.append([("command", made_by)])
    status = columns.index("status")
    gone = sum(row[status] == "missing" for row in rows)
    drawn = Table("Cells and their records", columns, rows, [])
    return Section(
        "cells",
        "All cells",
        "Every task of every cell that the store knows, with what failed and why. A row with the status missing is not "
        "in the store, although its neighbours are: an attention that ran at another context of the same model, or one "
        "that a cell should be compared with. Open a row to see where it came from.",
        [Grid(drawn, tags, details, status=status)] if rows else [],
        [],
        []
        if rows
        else [("The store holds no cells.", "python -m harness.run")]
        if not gone
        else [(f"{gone} cells are missing; the command of each stands in its row.", "python -m harness.run --help")],
    )


def _newest(questions: list[Question]) -> list[Question]:
    """Without timings that have been taken again on their device, at another commit or with other
    versions: what they lack can no longer be had."""
    kept: dict[tuple, tuple[str, Question]] = {}
    for place, q in enumerate(questions):
        r = max(q.records, key=lambda r: r.start)
        key: tuple = (place,)
        if r.rows_are == "repeats":
            machine = r.options.get("device"), r.options.get("threads")
            key = (q.model, q.task, q.context, str(r.asked), *machine, r.identity.dtype)
        if key not in kept or kept[key][0] < r.start:
            kept[key] = (r.start, q)
    return [q for _, q in kept.values()]


def _missing(group: list[Question]) -> list[tuple[list[str], Tags, str]]:
    """Attentions that other contexts of this model and task have, and windows of equal cost."""
    seen: dict[str, Record] = {}
    for q in group:
        for r in q.records:
            if r.method.any_context and r.outcome:
                seen.setdefault(r.cell.label, r)
    gaps = []
    for q in group:
        if not any(r.outcome for r in q.records):
            continue  # only begun: its options are not known, so nothing can be said of what belongs beside it
        own = {r.cell.label for r in q.records}
        wanted = [(label, r) for label, r in seen.items() if label not in own]
        if q.exact is None and EXACT.name not in own and EXACT.name not in seen:
            wanted.append((EXACT.name, q.records[0]))
        for label, example in wanted:
            method = example.method if label != EXACT.name else Alibi()
            made_by = command.neighbour_command(example, method, q.context)
            tags = common.tags_of(example, q.model) if label != EXACT.name else Tags(q.model, q.task)
            row = ["", q.model, label, str(q.context), q.task, "missing", "0", "", "", ""]
            gaps.append((row, tags, made_by))
        for r in (r for r in q.records if r.method.beside_windows):
            if r.score and (absent := [m for m in r.pairs if m not in q.windows(r)]):
                names = " and ".join(OTHERS[m].name for m in absent)
                what = f"S={r.attention.masks}" if r.attention.masks else r.cell.label
                row = ["", q.model, f"{names}, {what}", str(q.context), q.task, "missing"]
                made_by = command.neighbour_command(r, r.method) + " references=compute"
                gaps.append((row + ["0", "", "", ""], Tags(q.model, q.task), made_by))
    return gaps


def _details(r: Record) -> list[tuple[str, str]]:
    """What a row opens to: how the record was made, and what went wrong if it did."""
    outcome, environment = r.outcome, r.environment
    made_by = environment.command
    found: list[tuple[str, str | None]] = []
    found.append(("command", made_by) if made_by else ("command to go on", command.neighbour_command(r, r.method)))
    found.append(("started", environment.start))
    dirty = ", with uncommitted changes" if environment.dirty else ""
    found.append(("commit", f"{environment.commit or 'unknown'}{dirty}" if environment else None))
    libraries = ", ".join(f"{n} {v}" for n, v in environment.packages.items() if v)
    found += [("versions", libraries), ("device", environment.device), ("host", environment.host)]
    found.append(("options", ", ".join(f"{k}={v}" for k, v in r.options.items() if v is not None)))
    found.append(("pairs per row", table.pairs(r.pairs)))
    found.append(("record", f"{r.cell_id}/{r.store.name}-{r.store.task_id}"))
    if outcome.message:
        found.append((str(outcome.error), outcome.message[:MESSAGE]))
    wrong = next((row for row in r.rows.values() if row.score == 0 and row.prediction is not None), None)
    if wrong:
        told = f"sample {wrong.key}: wanted {wrong.target!r}, read {wrong.prediction!r}"
        found.append(("first wrong answer", told[:MESSAGE]))
    return [(name, value) for name, value in found if value]
