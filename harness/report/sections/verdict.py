"""The answer first: Positional LSH against exact ALiBi and both windows of equal cost, paired
prompt by prompt."""

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from harness.analysis import table
from harness.analysis.reader import Question, Record, difference
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
from harness.report.methods import EXACT, Method
from harness.report.sections import common

FAVOURED = {  # said beside the numbers of models that were trained to favour a method
    "tiny": "tiny was trained with a regulariser that favours local methods, Positional LSH and windows alike, and "
    "knows one grammar of prompts: no claim about real models rests on it.",
    "tiny-plain": "tiny-plain knows one grammar of prompts: no claim about real models rests on it.",
}
OTHERS: dict[str, Method] = {"exact": EXACT, **common.WINDOWS}


@dataclass(frozen=True)
class Match:
    """One cell of Positional LSH and its difference from each of the attentions beside it."""

    question: Question
    title: str
    record: Record
    against: dict[str, Difference]

    @property
    def tags(self) -> Tags:
        return common.tags_of(self.record, self.question.model)


def section(questions: list[Question]) -> Section:
    blocks: list[Text | Group | Grid] = []
    notes: list[Text] = []
    all_matches: list[Match] = []
    asked, missing = [], []
    for (model, task), group in common.by_model(questions).items():
        matches = []
        for q, title in zip(group, common.titles(group), strict=True):
            found = [m for r in q.named("plsh") if r.score and (m := _match(q, title, r))]
            matches += found
            missing += [gap] if (gap := _gap(q, found)) else []
        if not matches:
            continue
        asked += [q for q in group if any(r.score for r in q.named("plsh"))]
        all_matches += matches
        if model in FAVOURED and Text(FAVOURED[model], Tags(model)) not in notes:
            notes.append(Text(FAVOURED[model], Tags(model)))
        tags = Tags(model, task)
        titles = dict.fromkeys(m.title for m in matches)
        reach = _reach(matches)
        panels = [p for t in titles if (p := _forest(t, [m for m in matches if m.title == t], reach))]
        if panels:
            first = group[0].records[0]
            live = Live("config.masks", first.headline, log_x=True, model=first.cell.model)
            blocks.append(Group(f"{model}, {task}", panels, tags, live))
        blocks.append(_grid(model, task, matches))
    if all_matches:
        blocks = [Text(sentence(all_matches)), _counts(all_matches), *notes, *blocks]
    blocks += _side_by_side(asked)
    no_plsh = ("No cell of Positional LSH with an accuracy stands in this store.", "python -m harness.run attn=plsh")
    return Section(
        "verdict",
        "Verdict: what Positional LSH loses, and whether a window would do",
        "Each row is one cell of Positional LSH; a mark is its accuracy minus that of another attention on the same "
        "prompts. Left of zero Positional LSH is worse. An interval across zero decides nothing. Intervals are 95 % "
        "each, paired, not corrected for their number.",
        blocks,
        common.commands(asked),
        missing if blocks else [no_plsh],
    )


def sentence(matches: Sequence[Match]) -> str:
    """How often Positional LSH is better, worse or undecided against each of the others, in
    words."""
    parts = []
    for other, method in OTHERS.items():
        if counts := _decisions(matches, other):
            name = method.name if other == "exact" else f"the {method.name}"
            told = f"better in {counts['better']}, worse in {counts['worse']} and undecided in {counts['undecided']}"
            parts.append(f"against {name} {told} of {counts.total()}")
    if not parts:
        return "Positional LSH has nothing to be compared with yet."
    return "In the cells of this store Positional LSH is, " + "; ".join(parts) + "."


def _counts(matches: Sequence[Match]) -> Grid:
    """The same by model and task."""
    columns = ["model", "task", "Positional LSH against", "better", "worse", "undecided", "median difference"]
    rows, tags = [], []
    for model, task in dict.fromkeys((m.question.model, m.question.task) for m in matches):
        own = [m for m in matches if (m.question.model, m.question.task) == (model, task)]
        for other, method in OTHERS.items():
            if counts := _decisions(own, other):
                median = statistics.median(m.against[other].value for m in own if other in m.against)
                decided = [str(counts[d]) for d in ("better", "worse", "undecided")]
                rows.append([model, task, method.name, *decided, f"{median:+.3f}"])
                tags.append(Tags(model, task))
    return Grid(Table("Cells of Positional LSH by outcome", columns, rows, []), tags)


def _decisions(matches: Sequence[Match], other: str) -> Counter:
    return Counter(_decision(m.against[other]) for m in matches if other in m.against)


def _decision(change: Difference) -> str:
    if change.low is None or change.high is None or change.low <= 0 <= change.high:
        return "undecided"
    return "better" if change.low > 0 else "worse"


def _match(q: Question, title: str, record: Record) -> Match:
    others = {"exact": q.exact, **q.windows(record)}
    changes = {name: difference(record, other) for name, other in others.items() if other is not None}
    return Match(q, title, record, {name: change for name, change in changes.items() if change is not None})


def _gap(q: Question, matches: Sequence[Match]) -> tuple[str, str] | None:
    """What the cells of a question lack to be compared with, and the command for the first of
    them."""
    absent = [
        [method.name for other, method in OTHERS.items() if other in {"exact", *m.record.pairs} - {*m.against}]
        for m in matches
    ]
    lacking = [(m.record, names) for m, names in zip(matches, absent, strict=True) if names]
    if not lacking:
        return None
    first = lacking[0][0]
    names = " and ".join(dict.fromkeys(name for _, names in lacking for name in names))
    more = f" for {len(lacking)} cells, the others' commands stand in All cells" if len(lacking) > 1 else ""
    told = f"{q.model}, {matches[0].title}: {names} not in the store{more}."
    return told, command.neighbour_command(first, first.method) + " references=compute"


def _forest(title: str, matches: list[Match], reach: float) -> Panel | None:
    """Rows from top to bottom: one cell each, its three differences a little apart."""
    matches = sorted(matches, key=lambda m: (m.tags.sampler, m.tags.weights, common.masks_of(m.record)), reverse=True)
    varying = [n for n in common.VARYING if len({getattr(m.record.identity, n) for m in matches}) > 1]
    ticks = {float(row): _short(m.record, varying) for row, m in enumerate(matches)}
    series = []
    for place, (other, method) in enumerate(OTHERS.items()):
        candidates: list[Point] = []
        for row, m in enumerate(matches):
            if change := m.against.get(other):
                note = f"{m.record.cell.label} minus {method.name}\n{table.signed(change)}, n = {change.n}"
                candidates.append(Point(change.value, row + 0.22 * (1 - place), change.low, change.high, note))
        for tags in dict.fromkeys(m.tags for m in matches):
            own = [p for p in points(candidates) if matches[round(p.y)].tags == tags]
            if own:
                series.append(Series(replace(method, name=f"PLSH minus {method.name}"), own, "dots", tags))
    if not series:
        return None
    x = Axis("difference in accuracy", range=(-reach, reach))
    y = Axis("", ticks=ticks, range=(-0.6, len(matches) - 0.4))
    return Panel(title, x, y, series, [Guide("no difference", 0.0)], across=True)


def _reach(matches: list[Match]) -> float:
    """How far the axis goes on both sides of zero: the same for all panels of a model, so that they
    can be compared."""
    ends = [
        abs(v)
        for m in matches
        for c in m.against.values()
        for v in (c.value, c.low, c.high)
        if v is not None and finite(v)
    ]
    return 1.05 * min(max([0.02, *ends]), 1.0)


def _grid(model: str, task: str, matches: list[Match]) -> Grid:
    columns = ["cell", "context", "pairs per row", "accuracy", "minus exact ALiBi"]
    columns += ["minus window, equal fused pairs", "minus window, equal pairs in passes", "detectable"]
    rows = []
    for m in matches:
        changes = [table.signed(m.against.get(other)) for other in OTHERS]
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
    drawn = Table(title, columns, rows, [])
    return Grid(drawn, [m.tags for m in matches], fold=True, group=Tags(model, task))


def _side_by_side(asked: list[Question]) -> list[Grid]:
    """The tables of `harness.run` under one another, as far as they have the same columns."""
    found: dict[tuple[str, ...], tuple[list[list[str]], list[Tags], list[str]]] = {}
    for q in asked:
        drawn = table.comparison(q.records)
        rows, tags, said = found.setdefault(tuple(drawn.columns), ([], [], []))
        rows += [[q.model, q.task, str(q.context), *row] for row in drawn.rows]
        tags += [common.tags_of(r, q.model) for r in q.records]
        said += [f"{q.model}, {q.task}, {q.context} tokens: {note}" for note in drawn.notes]
    grids = []
    for place, (columns, (rows, tags, said)) in enumerate(found.items()):
        tasks = ", ".join(dict.fromkeys(row[1] for row in rows)) + (f" ({place + 1})" if place else "")
        drawn = Table(
            f"Attentions side by side: {tasks}",
            ["model", "task", "context", *columns],
            rows,
            [*said, *table.NOTES],
        )
        grids.append(Grid(drawn, tags, fold=True))
    return grids


def _short(record: Record, varying: Sequence[str]) -> str:
    a = record.attention
    sampler = "" if a.sampler == "gamma" else f" {a.sampler}"
    others = [*record.method.variant, *(f"{name} {getattr(record.identity, name)}" for name in varying)]
    return ", ".join([f"S={a.masks} {a.weights}{sampler}", *others])
