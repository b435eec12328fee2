"""Who wins: masks against exact ALiBi and every other method of no more cost, on the same samples,
with one correction over all tests of a store. `harness.analysis.words` says it in sentences."""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from harness.analysis.costs import Cost, Costs
from harness.analysis.decisions import ALPHA, holm, paired_tests
from harness.analysis.reader import Comparison, Paired, Record, difference_of, paired
from harness.attentions.plsh import Plsh
from harness.attentions.registry import EXACT
from harness.common.files import short_hash
from harness.common.stats import Difference
from harness.tasks.texts import held_out_name

# largest differences that do not matter, by the unit of a task's headline; other units are not compared
MARGINS = {"fraction": 0.02, "score": 0.02, "nats per token": 0.01, "bits per byte": 0.01}
LOWER_IS_BETTER = ("nats per token", "bits per byte")
# how much more a competitor of equal cost may cost: a sliding window has whole tokens, and clocks differ
SLACK = {"pairs": 0.02, "time": 0.05}
AGAINST_EXACT = ("exact", "oracle")  # what is compared with exact ALiBi: masks, or a method that reads all scores
AXES = ("pairs", "time")  # on which a competitor of no more cost is chosen
DIVERGENCE = "fidelity"  # the task whose figure is 0 for exact ALiBi by definition
BETTER, WORSE, EQUAL, SAME, UNDECIDED = "better", "worse", "equal", "same", "undecided"


@dataclass(frozen=True)
class Side:
    """One of the two attentions of a finding.

    Attributes:
        label: as in tables.
        curve: the method without its size.
        setting: its size in a word, as "S=16"; otherwise the label.
        cell_id: its cell; empty for exact ALiBi's divergence from itself.
        cost: of the cell.
        value: the metric.
        loss: its loss against exact ALiBi, positive for a worse figure; None without exact ALiBi.
        half_width: of the loss's 95 % interval; None without one.
    """

    label: str
    curve: str
    setting: str
    cell_id: str
    cost: Cost
    value: float
    loss: float | None
    half_width: float | None


@dataclass(frozen=True)
class Finding:
    """Masks beside one competitor.

    Attributes:
        model, task, context: of both.
        about: the text of a task on text, or "".
        metric, unit: what is compared.
        at: "exact" for exact ALiBi, otherwise the cost that chose the competitor: "pairs" or "time".
            "oracle" if `this` are no masks but a method that chooses keys by all scores, beside exact
            ALiBi: a bound of what its keys can give, which competes with nothing.
        device: of the times; "" without them.
        this: the masks. other: the competitor.
        loss: of this against the other, positive if this is worse; low, high: its 95 % interval.
        samples, draws: their number.
        p, p_equal: of the tests of difference and equivalence; adjusted, adjusted_equal: by Holm.
        margin: of equivalence.
        question: hash of the task's options, which both sides share.
        decision: "better" or "worse" for this, "equal" within the margin, "same" on every sample,
            or "undecided".
    """

    model: str
    task: str
    context: int
    about: str
    metric: str
    unit: str
    at: str
    device: str
    this: Side
    other: Side
    loss: float
    low: float | None
    high: float | None
    samples: int
    draws: int
    margin: float
    p: float | None
    p_equal: float | None
    adjusted: float | None = None
    adjusted_equal: float | None = None
    decision: str = UNDECIDED
    question: str = ""

    @classmethod
    def read(cls, value: dict[str, Any]) -> "Finding":
        """Return the finding of a record."""
        sides = {name: Side(**{**value[name], "cost": Cost(**value[name]["cost"])}) for name in ("this", "other")}
        return cls(**{**value, **sides})

    def as_dict(self) -> dict[str, Any]:
        """Return the finding as JSON."""
        return asdict(self)

    @property
    def test(self) -> tuple:
        """What makes two findings one test."""
        return self.model, self.task, self.context, self.question, self.this.cell_id, self.other.cell_id

    @property
    def suspicious(self) -> bool:
        """Whether masks are better than exact ALiBi, which they approximate: mostly a fault."""
        return self.at == "exact" and self.decision == BETTER


def find(compared: Sequence[Comparison]) -> list[Finding]:
    """Return the findings of a store's comparisons, corrected over all of their tests.

    Masks are compared with exact ALiBi and, for each other method with their sinks, near field and
    eviction, with the setting that visits the most pairs of those which cost no more: in pairs, and
    where both were timed in the time of a prefill. A test that decides two findings counts once.
    """
    costs = Costs.of([r for q in compared for r in q.records])
    found = [f for q in compared for f in _Question(q, costs).findings()]
    return [replace(f, decision=decide(f)) for f in corrected(found)]


def corrected(found: Sequence[Finding]) -> list[Finding]:
    """Return the findings with p-values adjusted by Holm over all distinct tests of both kinds."""
    distinct = {f.test: f for f in found}
    p_values = [p for f in distinct.values() for p in (f.p, f.p_equal)]
    adjusted = holm(p_values)
    of_test = {test: (adjusted[2 * i], adjusted[2 * i + 1]) for i, test in enumerate(distinct)}
    return [replace(f, adjusted=of_test[f.test][0], adjusted_equal=of_test[f.test][1]) for f in found]


def count_tests(findings: Sequence[Finding]) -> int:
    """Return the number of tests behind findings, which one correction covers."""
    distinct = {f.test: f for f in findings}
    return sum(p is not None for f in distinct.values() for p in (f.p, f.p_equal))


def decide(finding: Finding) -> str:
    """Return the decision of a finding with adjusted p-values. A difference that is surely smaller
    than the margin does not matter, whether it is zero or not."""
    if finding.loss == 0 and finding.p == 1 and finding.p_equal is None:
        return SAME
    if finding.adjusted_equal is not None and finding.adjusted_equal < ALPHA:
        return EQUAL
    if finding.adjusted is not None and finding.adjusted < ALPHA:
        return WORSE if finding.loss > 0 else BETTER
    return UNDECIDED


def curve_of(record: Record) -> str:
    """Return the name of a method without its size: its style and its variant."""
    variant = ", ".join(record.method.variant)
    return record.method.style.name + (f" ({variant})" if variant else "")


def text_of(record: Record) -> str:
    """Return the name of the text that a record's task reads, or its hash; "" without one."""
    text = record.options.get("text")
    return held_out_name(text) or text if isinstance(text, str) else ""


def _usable(q: Comparison) -> list[Record]:
    """Return the records whose headline can be compared by sample."""
    found = [r for r in q.records if r.metrics and r.rows_are == "samples" and _unit(r) in MARGINS]
    return [r for r in found if (r.headline, _unit(r)) == (found[0].headline, _unit(found[0]))]


def _unit(record: Record) -> str:
    return record.metrics[record.headline].unit


class _Question:
    """The findings of one comparison, before the correction.

    Args:
        q: the comparison.
        costs: of the store.
    """

    def __init__(self, q: Comparison, costs: Costs) -> None:
        self._q, self._costs, self._records = q, costs, _usable(q)
        self._sides: dict[str, Side] = {}
        self._exact = q.exact if any(r is q.exact for r in self._records) else None
        self._has_exact = self._exact is not None or q.task == DIVERGENCE

    def findings(self) -> Iterator[Finding]:
        """Yield the findings."""
        for masks in (r for r in self._records if r.attention.name == Plsh.name):
            if self._has_exact:
                yield from self._finding(masks, self._exact, "exact")
            curves: dict[str, list[Record]] = defaultdict(list)
            for r in self._records:
                others = r.method != EXACT and r.attention.name != Plsh.name and not r.method.by_score
                if others and _alike(r, masks):
                    curves[curve_of(r)].append(r)
            for records in curves.values():
                for axis in AXES:
                    if other := _cheaper(records, masks, axis, self._costs):
                        yield from self._finding(masks, other, axis)
        for oracle in (r for r in self._records if r.method.by_score and self._has_exact):
            yield from self._finding(oracle, self._exact, "oracle")

    def _finding(self, this: Record, other: Record | None, at: str) -> Iterator[Finding]:
        """Yield the finding of a record beside another, or beside exact ALiBi's divergence if that is
        None; nothing without common samples."""
        q, pairs = self._q, _pairs(this, other, self._q.task)
        change = difference_of(pairs)
        if change is None or not math.isfinite(change.value):
            return
        unit = _unit(this)
        loss, low, high = _loss(change, unit)
        changes = [pairs.this[k] - pairs.reference[k] for k in pairs.this]
        draws = [pairs.draw_of[k] for k in pairs.this]
        options: dict[str, Any] = {"clustered": pairs.clustered, "bounded": pairs.bounded}
        tests = paired_tests(changes, draws, margin=MARGINS[unit], **options)
        yield Finding(
            model=q.model,
            task=q.task,
            context=q.context,
            about=text_of(this),
            metric=this.headline,
            unit=unit,
            at=at,
            device=self._costs.device if at == "time" else "",
            this=self._side(this),
            other=self._side(other),
            loss=loss,
            low=low,
            high=high,
            samples=change.n,
            draws=len(set(draws)) if pairs.clustered else 1,
            margin=MARGINS[unit],
            p=tests.difference,
            p_equal=tests.equivalence,
            question=short_hash(this.options),
        )

    def _side(self, record: Record | None) -> Side:
        if record is None:
            return Side(EXACT.label, EXACT.label, EXACT.label, "", Cost(), 0.0, 0.0, None)
        if record.cell_id not in self._sides:
            self._sides[record.cell_id] = self._made(record)
        return self._sides[record.cell_id]

    def _made(self, record: Record) -> Side:
        loss, low, high = None, None, None
        if record.method == EXACT:
            loss = 0.0
        elif self._has_exact and (change := difference_of(_pairs(record, self._exact, self._q.task))):
            loss, low, high = _loss(change, _unit(record))
        masks = record.attention.masks
        return Side(
            label=record.cell.label,
            curve=curve_of(record),
            setting=f"S={masks}" if masks else record.cell.label,
            cell_id=record.cell_id,
            cost=self._costs.of_record(record),
            value=float(record.metrics[record.headline].value),
            loss=loss,
            half_width=None if low is None or high is None else (high - low) / 2,
        )


def _alike(record: Record, masks: Record) -> bool:
    """Whether a method has the masks' sinks, near field and eviction, as far as it knows them."""
    known = {f.name for f in fields(record.method)}
    return all(
        getattr(record.method, name) == getattr(masks.method, name)
        for name in ("sinks", "near", "evict")
        if name in known
    )


def _cheaper(records: Iterable[Record], masks: Record, axis: str, costs: Costs) -> Record | None:
    """Return the record of most pairs of those that cost no more than the masks; None without one."""
    limit = costs.on(axis, masks)
    if limit is None:
        return None
    within = []
    for r in records:
        cost = costs.on(axis, r)
        if cost is not None and cost <= limit * (1 + SLACK[axis]):
            same = r.identity.kernel == masks.identity.kernel
            within.append((r.pairs.get("fused", math.inf if axis == "time" else cost), same, r.cell.label, r))
    return max(within, key=lambda w: w[:3])[-1] if within else None


def _pairs(this: Record, other: Record | None, task: str) -> Paired:
    """Return paired scores; exact ALiBi's divergence is 0 on every sample."""
    if other is not None and not (task == DIVERGENCE and other.method == EXACT):
        return paired(this, other)
    scores = {key: float(row.score) for key, row in this.rows.items() if row.score is not None}
    draw_of = {key: row.draw for key, row in this.rows.items()}
    return Paired(scores, dict.fromkeys(scores, 0.0), draw_of, this.clustered, bounded=False)


def _loss(change: Difference, unit: str) -> tuple[float, float | None, float | None]:
    """A difference as a loss with its interval: positive where the first is worse."""
    sign = 1.0 if unit in LOWER_IS_BETTER else -1.0
    ends = (change.low, change.high) if sign > 0 else (change.high, change.low)
    low, high = (None if end is None else sign * end for end in ends)
    return sign * change.value + 0.0, low, high
