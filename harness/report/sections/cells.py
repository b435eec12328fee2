"""All cells of the store with status and provenance, including failed and missing cells."""

from harness.analysis import table
from harness.analysis.reader import Comparison, Record, difference
from harness.attentions.alibi import Alibi
from harness.common.table import Table
from harness.experiment import command
from harness.report.describe import Grid, Section, Tags
from harness.report.methods import EXACT, WINDOWS
from harness.report.sections import common

MAX_MESSAGE = 400  # characters of an error message


def section(comparisons: list[Comparison]) -> Section:
    """Return the section with all cells, also the missing ones."""
    records = [(q, r) for q in comparisons for r in q.records]
    overview = table.overview([r for _, r in records])
    columns = [*overview.columns, "minus exact", "pairs per row"]
    rows = []
    for (q, r), row in zip(records, overview.rows, strict=True):
        change = difference(r, q.exact) if q.exact not in (None, r) and r.score else None
        visited = f"{r.pairs['fused']:.1f}" if "fused" in r.pairs else ""
        rows.append([row[0][:8], q.model, *row[2:], table.signed(change), visited])
    tags = [common.tags_of(r, q.model) for q, r in records]
    details = [_details(r) for _, r in records]
    for model_comparisons in common.by_model(_newest(comparisons)).values():
        for row, gap_tags, gap_command in _missing(model_comparisons):
            rows.append(row)
            tags.append(gap_tags)
            details.append([("command", gap_command)])
    status = columns.index("status")
    missing = sum(row[status] == "missing" for row in rows)
    overview = Table("Cells and their records", columns, rows, [])
    return Section(
        "cells",
        "All cells",
        "Every task of every cell that the store knows, with what failed and why. A row with the status missing is not "
        "in the store, although its neighbours are: an attention that ran at another context of the same model, or one "
        "that a cell should be compared with. Open a row to see where it came from.",
        [Grid(overview, tags, details, status=status)] if rows else [],
        [],
        []
        if rows
        else [("The store holds no cells.", "python -m harness.run")]
        if not missing
        else [(f"{missing} cells are missing; the command of each stands in its row.", "python -m harness.run --help")],
    )


def _newest(comparisons: list[Comparison]) -> list[Comparison]:
    """Return the comparisons without timings that were repeated later on the same device.

    Gaps of an older commit or of other versions cannot be filled any more.
    """
    newest: dict[tuple, tuple[str, Comparison]] = {}
    for number, q in enumerate(comparisons):
        r = max(q.records, key=lambda r: r.start)
        key: tuple = (number,)
        if r.rows_are == "repeats":
            machine = r.options.get("device"), r.options.get("threads")
            key = (q.model, q.task, q.context, str(r.asked), *machine, r.identity.dtype)
        if key not in newest or newest[key][0] < r.start:
            newest[key] = (r.start, q)
    return [q for _, q in newest.values()]


def _missing(group: list[Comparison]) -> list[tuple[list[str], Tags, str]]:
    """Return row, tags and command of missing cells: other contexts' attentions, and windows."""
    by_label: dict[str, Record] = {}
    for q in group:
        for r in q.records:
            if r.method.any_context and r.outcome:
                by_label.setdefault(r.cell.label, r)
    gaps = []
    for q in group:
        if not any(r.outcome for r in q.records):
            continue  # unfinished: its options are unknown, and so are its references
        labels = {r.cell.label for r in q.records}
        missing = [(label, r) for label, r in by_label.items() if label not in labels]
        if q.exact is None and EXACT.name not in labels and EXACT.name not in by_label:
            missing.append((EXACT.name, q.records[0]))
        for label, example in missing:
            method = example.method if label != EXACT.name else Alibi()
            gap_command = command.neighbour_command(example, method, q.context)
            tags = common.tags_of(example, q.model) if label != EXACT.name else Tags(q.model, q.task)
            row = ["", q.model, label, str(q.context), q.task, "missing", "0", "", "", ""]
            gaps.append((row, tags, gap_command))
        for r in (r for r in q.records if r.method.beside_windows):
            if r.score and (absent := q.absent_windows(r)):
                names = " and ".join(WINDOWS[name].name for name in absent)
                masks = f"S={r.attention.masks}" if r.attention.masks else r.cell.label
                row = ["", q.model, f"{names}, {masks}", str(q.context), q.task, "missing"]
                gap_command = command.neighbour_command(r, r.method) + " references=compute"
                gaps.append((row + ["0", "", "", ""], Tags(q.model, q.task), gap_command))
    return gaps


def _details(r: Record) -> list[tuple[str, str]]:
    """Return the details of a row: provenance, and the error or first wrong answer, if any."""
    outcome, environment = r.outcome, r.environment
    recorded = environment.command
    details: list[tuple[str, str | None]] = []
    details.append(("command", recorded) if recorded else ("command to go on", command.neighbour_command(r, r.method)))
    details.append(("started", environment.start))
    dirty = ", with uncommitted changes" if environment.dirty else ""
    details.append(("commit", f"{environment.code}{dirty}" if environment else None))
    libraries = ", ".join(f"{n} {v}" for n, v in environment.packages.items() if v)
    details += [("versions", libraries), ("device", environment.device), ("host", environment.host)]
    details.append(("options", ", ".join(f"{k}={v}" for k, v in r.options.items() if v is not None)))
    details.append(("pairs per row", table.pairs(r.pairs)))
    details.append(("record", f"{r.cell_id}/{r.store.name}-{r.store.task_id}"))
    if outcome.message:
        details.append((str(outcome.error), outcome.message[:MAX_MESSAGE]))
    wrong_row = next((row for row in r.rows.values() if row.score == 0 and row.prediction is not None), None)
    if wrong_row:
        answer = f"sample {wrong_row.key}: wanted {wrong_row.target!r}, read {wrong_row.prediction!r}"
        details.append(("first wrong answer", answer[:MAX_MESSAGE]))
    return [(name, value) for name, value in details if value]
