"""Accuracy against cost: visited pairs, and KV bytes and milliseconds where task=throughput has measured them."""

import itertools
from collections.abc import Callable

from harness.reader import Question, Record
from harness.report.describe import Axis, Group, Live, Panel, Point, Section, Series, Tags, finite, points
from harness.report.methods import EXACT, STOCK, WINDOW, Method
from harness.report.sections import common

MEASURED = {"throughput/kv_allocated_bytes": "KV cache (bytes)", "throughput/prefill_ms": "prefill (ms)"}


def section(questions: list[Question]) -> Section:
    groups = []
    measured = {
        name: {k: r.metrics[name] for q in questions for r in q.records if name in r.metrics and (k := _setting(r))}
        for name in MEASURED
    }
    for (model, task), group in common.by_model(questions).items():
        by_question = [_panels(q, title, measured) for q, title in zip(group, common.titles(group), strict=True)]
        panels = [
            p for cost in itertools.zip_longest(*by_question) for p in cost if p
        ]  # one way to count after another
        live = Live("config.pairs_per_row.fused", group[0].records[0].headline, log_x=True)
        groups += [Group(f"{model}, {task}", panels, Tags(model, task), live)] if panels else []
    missing = [("No record holds accuracies.", "python -m harness.run")] if not groups else []
    if groups and not any(measured.values()):
        model = questions[0].records[0].cell["model"]
        without = "Milliseconds and KV bytes are left out: no record of task=throughput."
        missing.append((without, f"python -m harness.run task=throughput model={model} attn=plsh masks=16"))
    return Section(
        "cost",
        "Accuracy against cost",
        "The method whose curve lies higher and farther left wins. Pairs are those of a query with earlier keys, per "
        "row and head. A fused kernel visits the union of the masks; separate passes visit each mask by itself, which "
        "is drawn apart. Windows of all cutoffs form one curve.",
        groups,
        common.commands(questions),
        missing,
    )


def _panels(q: Question, title: str, measured: dict[str, dict[tuple, dict]]) -> list[Panel]:
    """One panel for each way to count the cost."""
    found = [
        _panel(q, title, "visited pairs per row", lambda r: r.pairs["fused"]),
        _panel(
            q,
            f"{title}, each mask by itself",
            "visited pairs per row",
            lambda r: r.pairs.get("passes", r.pairs["fused"]),
        ),
    ]
    for name, axis in MEASURED.items():
        values = measured[name]
        if any(_setting(r) in values for r in q.records):
            found.append(_panel(q, title, axis, lambda r, v=values: v.get(_setting(r), {}).get("value")))
    return [p for p in found if p]


def _panel(q: Question, title: str, axis: str, cost: Callable[[Record], float | None]) -> Panel | None:
    lines: list[tuple[Method, str, Tags, list[Record]]] = []
    for name, method in (("window", WINDOW), ("alibi", EXACT), ("stock", STOCK)):
        lines.append((method, "", Tags(), q.named(name)))
    for (method, remark), records in common.masks_series(q).items():
        lines.append((method, remark, common.tags_of(records[0], q.model), records))
    series = []
    for method, remark, tags, records in lines:
        drawn = sorted(points(_at(cost(r), r) for r in records), key=lambda p: p.x)
        if drawn:
            series.append(Series(method, drawn, "line", tags, remark))
    values = [p.x for s in series for p in s.points]
    if not values:
        return None
    x = Axis(axis, log=True, ticks=common.decades(values), range=(min(values) / 1.3, max(values) * 1.3))
    return Panel(title, x, common.score_axis(q), series)


def _at(cost: float | None, r: Record) -> Point | None:
    if not finite(cost) or cost <= 0:
        return None
    return common.point(cost, r.score, f"{r.cell['label']}, {cost:,.1f}")


def _setting(r: Record) -> tuple:
    """What an accuracy and a time must share to be drawn as one point: the computation, not its prompts or draws."""
    identity = r.cell["identity"]
    return str(identity["model"]), identity["dtype"], identity["context"], str(identity["attn"]), identity.get("kernel")
