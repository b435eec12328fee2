"""Positional LSH minus exact ALiBi and the windows of equal cost, by prompt: each cell by itself."""

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from harness.analysis import table
from harness.analysis.reader import Comparison, Record, difference
from harness.attentions.registry import DEFAULT_REFERENCES
from harness.common.stats import Difference
from harness.common.table import Table
from harness.experiment import command
from harness.report.describe import (
    Axis,
    Grid,
    Group,
    Guide,
    Live,
    Panel,
    Point,
    Section,
    Series,
    Tags,
    Text,
    finite,
    points,
)
from harness.report.methods import EXACT, WINDOWS, Method
from harness.report.sections import common

CAVEATS = {  # notes on models that were trained to favour a method
    "tiny": "tiny was trained with a regulariser that favours local methods, Positional LSH and windows alike, and "
    "knows one grammar of prompts: no claim about real models rests on it.",
    "tiny-plain": "tiny-plain knows one grammar of prompts: no claim about real models rests on it.",
}
REFERENCES: dict[str, Method] = {"exact": EXACT, **WINDOWS}
HEADINGS = {
    "exact": "minus exact ALiBi",
    "window": "minus window, equal fused pairs",
    "sliding": "minus sliding window, equal fused pairs",
    "passes": "minus window, equal pairs in passes",
}


@dataclass(frozen=True)
class Match:
    """A cell of Positional LSH and its differences from its references."""

    comparison: Comparison
    title: str
    record: Record
    against: dict[str, Difference]

    @property
    def tags(self) -> Tags:
        """Return the tags of the cell."""
        return common.tags_of(self.record, self.comparison.model)


def section(comparisons: list[Comparison]) -> Section:
    """Return the section that answers the question of the page."""
    blocks: list[Text | Group | Grid] = []
    notes: list[Text] = []
    all_matches: list[Match] = []
    compared, missing = [], []
    for (model, task), group in common.by_model(comparisons).items():
        matches = []
        for q, title in zip(group, common.titles(group), strict=True):
            cell_matches = [m for r in q.named("plsh") if r.score and (m := _match(q, title, r))]
            matches += cell_matches
            missing += [gap] if (gap := _gap(q, cell_matches)) else []
        if not matches:
            continue
        compared += [q for q in group if any(r.score for r in q.named("plsh"))]
        all_matches += matches
        if model in CAVEATS and Text(CAVEATS[model], Tags(model)) not in notes:
            notes.append(Text(CAVEATS[model], Tags(model)))
        tags = Tags(model, task)
        titles = dict.fromkeys(m.title for m in matches)
        limit = _axis_limit(matches)
        panels = [p for t in titles if (p := _forest(t, [m for m in matches if m.title == t], limit))]
        if panels:
            first = group[0].records[0]
            live = Live("config.masks", first.headline, log_x=True, model=first.cell.model)
            blocks.append(Group(f"{model}, {task}", panels, tags, live))
        blocks.append(_grid(model, task, matches))
    if all_matches:
        blocks = [_counts(all_matches), *notes, *blocks]
    blocks += _side_by_side(compared)
    no_plsh = ("No cell of Positional LSH with an accuracy stands in this store.", "python -m harness.run attn=plsh")
    return Section(
        "verdict",
        "Verdict cell by cell: what Positional LSH loses, and whether a window would do",
        "Each row is one cell of Positional LSH; a mark is its accuracy minus that of another attention on the same "
        "prompts. Left of zero Positional LSH is worse. An interval across zero decides nothing. Intervals are 95 % "
        "each, paired, not corrected for their number.",
        blocks,
        common.commands(compared),
        missing if blocks else [no_plsh],
    )


def _counts(matches: Sequence[Match]) -> Grid:
    """Return the number of cells by decision, model and task."""
    columns = ["model", "task", "Positional LSH against", "better", "worse", "undecided", "median difference"]
    rows, tags = [], []
    for model, task in dict.fromkeys((m.comparison.model, m.comparison.task) for m in matches):
        group_matches = [m for m in matches if (m.comparison.model, m.comparison.task) == (model, task)]
        for reference, method in REFERENCES.items():
            if counts := _decisions(group_matches, reference):
                median = statistics.median(m.against[reference].value for m in group_matches if reference in m.against)
                counted = [str(counts[d]) for d in ("better", "worse", "undecided")]
                rows.append([model, task, method.name, *counted, f"{median:+.3f}"])
                tags.append(Tags(model, task))
    return Grid(Table("Cells of Positional LSH by outcome", columns, rows, []), tags)


def _decisions(matches: Sequence[Match], reference: str) -> Counter:
    return Counter(_decision(m.against[reference]) for m in matches if reference in m.against)


def _decision(change: Difference) -> str:
    if change.low is None or change.high is None or change.low <= 0 <= change.high:
        return "undecided"
    return "better" if change.low > 0 else "worse"


def _match(q: Comparison, title: str, record: Record) -> Match:
    references = {"exact": q.exact, **q.windows(record)}
    changes = {name: difference(record, reference) for name, reference in references.items() if reference is not None}
    return Match(q, title, record, {name: change for name, change in changes.items() if change is not None})


def _gap(q: Comparison, matches: Sequence[Match]) -> tuple[str, str] | None:
    """Return a sentence on the missing references of these cells, and a command for the first."""
    wanted = [{"exact", *q.windows(m.record), *q.absent_windows(m.record)} for m in matches]
    absent = [
        [method.name for name, method in REFERENCES.items() if name in names - {*m.against}]
        for m, names in zip(matches, wanted, strict=True)
    ]
    lacking = [(m.record, names) for m, names in zip(matches, absent, strict=True) if names]
    if not lacking:
        return None
    first = lacking[0][0]
    names = " and ".join(dict.fromkeys(name for _, names in lacking for name in names))
    rest = f" for {len(lacking)} cells, the others' commands stand in All cells" if len(lacking) > 1 else ""
    message = f"{q.model}, {matches[0].title}: {names} not in the store{rest}."
    return message, command.neighbour_command(first, first.method) + " references=compute"


def _forest(title: str, matches: list[Match], limit: float) -> Panel | None:
    """Return a forest plot with one row for each cell and its differences."""
    matches = sorted(matches, key=lambda m: (m.tags.sampler, m.tags.weights, common.mask_count(m.record)), reverse=True)
    varying = [n for n in common.VARYING if len({getattr(m.record.identity, n) for m in matches}) > 1]
    ticks = {float(row): _row_label(m.record, varying) for row, m in enumerate(matches)}
    series = []
    shown = [reference for reference in REFERENCES if any(reference in m.against for m in matches)]
    for position, reference in enumerate(shown):
        method = REFERENCES[reference]
        candidates: list[Point] = []
        for row, m in enumerate(matches):
            if change := m.against.get(reference):
                note = f"{m.record.cell.label} minus {method.name}\n{table.signed(change)}, n = {change.n}"
                candidates.append(
                    Point(change.value, row + 0.22 * ((len(shown) - 1) / 2 - position), change.low, change.high, note)
                )
        for tags in dict.fromkeys(m.tags for m in matches):
            tagged = [p for p in points(candidates) if matches[round(p.y)].tags == tags]
            if tagged:
                series.append(Series(replace(method, name=f"PLSH minus {method.name}"), tagged, "dots", tags))
    if not series:
        return None
    x = Axis("difference in accuracy", range=(-limit, limit))
    y = Axis("", ticks=ticks, range=(-0.6, len(matches) - 0.4))
    return Panel(title, x, y, series, [Guide("no difference", 0.0)], across=True)


def _axis_limit(matches: list[Match]) -> float:
    """Return the limit of the axis on both sides of zero, common to the panels of a model."""
    ends = [
        abs(v)
        for m in matches
        for c in m.against.values()
        for v in (c.value, c.low, c.high)
        if v is not None and finite(v)
    ]
    return 1.05 * min(max([0.02, *ends]), 1.0)


def _grid(model: str, task: str, matches: list[Match]) -> Grid:
    shown = [name for name in REFERENCES if name in DEFAULT_REFERENCES or any(name in m.against for m in matches)]
    columns = ["cell", "context", "pairs per row", "accuracy", *(HEADINGS[name] for name in shown), "detectable"]
    rows = []
    for m in matches:
        changes = [table.signed(m.against.get(reference)) for reference in shown]
        exact = m.against.get("exact")
        detectable = f"{exact.detectable:.3f}" if exact and exact.detectable is not None else ""
        rows.append(
            [
                m.record.cell.label,
                str(m.record.context),
                table.pairs(m.record.pairs),
                table.interval(m.record.score),
                *changes,
                detectable,
            ]
        )
    title = f"{model}, {task}: each cell of Positional LSH and its paired differences"
    grid_table = Table(title, columns, rows, [])
    return Grid(grid_table, [m.tags for m in matches], fold=True, group=Tags(model, task))


def _side_by_side(compared: list[Comparison]) -> list[Grid]:
    """Return the tables of `harness.run`, joined where their columns are equal."""
    by_columns: dict[tuple[str, ...], tuple[list[list[str]], list[Tags], list[str]]] = {}
    for q in compared:
        comparison = table.comparison(q.records)
        rows, tags, notes = by_columns.setdefault(tuple(comparison.columns), ([], [], []))
        rows += [[q.model, q.task, str(q.context), *row] for row in comparison.rows]
        tags += [common.tags_of(r, q.model) for r in q.records]
        notes += [f"{q.model}, {q.task}, {q.context} tokens: {note}" for note in comparison.notes]
    grids = []
    for position, (columns, (rows, tags, notes)) in enumerate(by_columns.items()):
        tasks = ", ".join(dict.fromkeys(row[1] for row in rows)) + (f" ({position + 1})" if position else "")
        comparison = Table(
            f"Attentions side by side: {tasks}",
            ["model", "task", "context", *columns],
            rows,
            [*notes, *table.NOTES],
        )
        grids.append(Grid(comparison, tags, fold=True))
    return grids


def _row_label(record: Record, varying: Sequence[str]) -> str:
    attention = record.attention
    sampler = "" if attention.sampler == "gamma" else f" {attention.sampler}"
    variant = [*record.method.variant, *(f"{name} {getattr(record.identity, name)}" for name in varying)]
    return ", ".join([f"S={attention.masks} {attention.weights}{sampler}", *variant])
