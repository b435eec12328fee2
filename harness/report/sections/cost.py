"""Accuracy against cost: visited pairs, bytes of the KV cache, and times of task=throughput."""

import itertools
import shlex
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace

from harness.analysis import table
from harness.analysis.reader import Comparison, Record
from harness.attentions.plsh import Plsh
from harness.common.stats import Metric
from harness.experiment import command
from harness.report.describe import Axis, Live, Panel, Point, Section, Series, Tags, finite, points
from harness.report.methods import Method
from harness.report.sections import common

# metrics of task=throughput by axis, in order of preference: eviction needs a prefill in chunks
TIMES = {
    "time to first token (ms)": ("throughput/prefill_ms", "throughput/chunked_prefill_ms"),
    "decode, time per token (ms)": ("throughput/decode_ms_per_token",),
}


def section(comparisons: list[Comparison]) -> Section:
    """Return the section on accuracy and cost."""
    conditions = common.timing_conditions(comparisons)
    timed: dict[str, dict[tuple, Record]] = defaultdict(dict)  # by conditions and setting
    for r in (r for q in comparisons for r in q.records if _first_metric(r, sum(TIMES.values(), ()))):
        timed[conditions[r.cell_id, r.store.task_id]][_setting(r)] = r

    def draw(model: str, group: list[Comparison]) -> list[Panel]:
        by_question = [_panels(q, title, timed) for q, title in zip(group, common.titles(group), strict=True)]
        return [p for cost in itertools.zip_longest(*by_question) for p in cost if p]  # panels by the way to count

    groups, commands = common.groups(comparisons, draw, Live("config.pairs_per_row.fused", "", log_x=True))
    missing = [("No record holds accuracies.", "python -m harness.run")] if not groups else []
    if groups and not any(panel.x.title in TIMES for group in groups for panel in group.panels):
        without = "Milliseconds are left out: no record of task=throughput."
        words = [*command.model_words(comparisons[0].records[0]), "attn=plsh", "masks=16"]
        missing.append((without, shlex.join(["python", "-m", "harness.run", "task=throughput", *words])))
    return Section(
        "cost",
        "Accuracy against cost",
        "The method whose curve lies higher and farther left wins. Pairs are those of a query with earlier keys, per "
        "row and head. A fused kernel visits the union of the masks; separate passes visit each mask by itself, which "
        "is drawn apart. Windows of one kind form a curve, whatever their length. Bars along a time are the quartiles "
        "of its repeats.",
        groups,
        commands,
        missing,
    )


def _panels(q: Comparison, title: str, timed: dict[str, dict[tuple, Record]]) -> list[Panel]:
    """Return one panel for each way to count the cost.

    Times are those of the conditions that cover most cells.
    """
    settings = [_setting(r) for r in q.records]
    by_conditions = {name: {s: records[s] for s in settings if s in records} for name, records in timed.items()}
    conditions, timings = max(by_conditions.items(), key=lambda x: len(x[1]), default=("", {}))
    suffix = f" on {conditions}" if sum(map(bool, by_conditions.values())) > 1 else ""

    def passes(r: Record) -> Metric | None:
        return _pair_metric(r.pairs.get("passes", r.pairs.get("fused")))

    def cache(r: Record) -> Metric | None:
        return r.metrics.get(f"{r.task}/kv_allocated_bytes")

    panels = [
        _panel(q, f"{title}, visited pairs", "visited pairs per row", lambda r: _pair_metric(r.pairs.get("fused"))),
        _panel(q, f"{title}, each mask by itself", "visited pairs per row", passes),
        _panel(q, f"{title}, KV cache", "KV cache of a sequence", cache),
    ]
    for axis, names in TIMES.items():

        def time(r: Record, names: tuple[str, ...] = names) -> Metric | None:
            return _first_metric(timings.get(_setting(r)), names)

        panels.append(_panel(q, f"{title}, {axis.split(' (')[0]}{suffix}", axis, time, timings))
    return [p for p in panels if p]


def _panel(
    q: Comparison,
    title: str,
    axis: str,
    cost: Callable[[Record], Metric | None],
    timed: dict[tuple, Record] | None = None,
) -> Panel | None:
    """Return a panel of scores against `cost`.

    timed: the timings by setting, if the cost is a time, for the errors beside it.
    """
    lines: list[tuple[Method, str, Tags, list[Record]]] = []
    kinds: dict[tuple[Method, str], list[Record]] = defaultdict(list)
    for r in sorted(q.records, key=lambda r: r.method.any_context):  # windows first, behind the rest
        if not isinstance(r.method, Plsh):
            kinds[common.method_style(r.method.style, r), ", ".join(r.method.variant)].append(r)
    lines += [(method, remark, Tags(), records) for (method, remark), records in kinds.items()]
    for (method, remark), records in common.masks_series(q).items():
        lines.append((method, remark, common.tags_of(records[0], q.model), records))
    series = []
    for method, remark, tags, records in lines:
        line_points = sorted(points(_score_point(cost(r), r, timed) for r in records), key=lambda p: p.x)
        if line_points:
            series.append(Series(method, line_points, "line", tags, remark))
    values = [v for s in series for p in s.points for v in (p.x, *(p.x_ends or ())) if v > 0]
    if len(set(values)) < 2:  # no values, or equal costs for all attentions
        return None
    ticks = common.binary_ticks(values) if "KV" in axis else common.decade_ticks(values)
    x = Axis(axis, log=True, ticks=ticks, range=(min(values) / 1.3, max(values) * 1.3))
    return Panel(title, x, common.score_axis(q), series)


def _score_point(cost: Metric | None, r: Record, timed: dict[tuple, Record] | None) -> Point | None:
    if cost is None or not finite(cost.value) or cost.value <= 0:
        return None
    cost_text = table.with_unit(cost) + (common.error_suffix(timed[_setting(r)]) if timed else "")
    score_point = common.point(cost.value, r.score, f"{r.cell.label}, {cost_text}")
    if score_point is None or cost.low is None or cost.high is None or not (finite(cost.low) and finite(cost.high)):
        return score_point
    return replace(score_point, x_ends=(cost.low, cost.high))


def _pair_metric(pairs: float | None) -> Metric | None:
    return None if pairs is None else Metric(pairs, None, None, 1, "pairs")


def _first_metric(r: Record | None, names: Sequence[str]) -> Metric | None:
    return next((r.metrics[name] for name in names if name in r.metrics), None) if r else None


def _setting(r: Record) -> tuple:
    """Return the key of a computation without prompts and draws, to pair accuracy and time."""
    identity = r.identity
    return str(identity.model), identity.dtype, identity.context, str(identity.attn.as_json()), identity.kernel
