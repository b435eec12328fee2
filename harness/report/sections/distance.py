"""Accuracy against the needle's distance from the question."""

import math
import re
from dataclasses import replace

from harness.analysis.reader import Comparison, Record
from harness.report.describe import Axis, Live, Panel, Point, Section, Series, Tags, points
from harness.report.methods import EXACT, WINDOWS, Method
from harness.report.sections import common

BIN = re.compile(r"/accuracy_distance_(\d+)_(\d+)$")
SPREAD = 1.06  # ratio between neighbouring methods, so that intervals do not overlap
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")  # of contexts on one axis


def section(comparisons: list[Comparison]) -> Section:
    """Return the section on accuracy and distance."""

    def draw(model: str, group: list[Comparison]) -> list[Panel]:
        by_context = sorted(zip(group, common.titles(group), strict=True), key=lambda x: -x[0].context)
        together = _contexts_together([(q, title) for q, title in by_context if q.records])
        return [*(panel for q, title in by_context for panel in _panels(q, title)), *together]

    live = Live("config.context", "TASK/accuracy_distance_256_512", log_x=True)
    groups, commands = common.groups(comparisons, draw, live)
    missing = [("No record holds accuracies by distance.", "python -m harness.run task=retrieval")]
    return Section(
        "distance",
        "Accuracy against distance",
        "How far back a method still reads. A window falls from full accuracy to nothing near its reach in the widest "
        "head; masks of random width fall more slowly and go on farther, at some cost close by. Distances are octaves "
        "of tokens between the needle and the question. Where several contexts stand on one axis, their curves fall on "
        "one another if the distance alone decides.",
        groups,
        commands,
        [] if groups else missing,
    )


def _panels(q: Comparison, title: str) -> list[Panel]:
    """Return one panel for each number of masks: exact ALiBi, the masks, and their windows."""
    by_method, matched = common.masks_series(q), common.matched_windows(q)
    panels = []
    for masks in sorted({common.mask_count(r) for records in by_method.values() for r in records}):
        curves: list[tuple[Method, Record, Tags, str]] = [(EXACT, q.exact, Tags(), "")] if q.exact else []
        for (method, remark), records in by_method.items():
            for r in records:
                if common.mask_count(r) == masks:
                    curves.append((method, r, common.tags_of(r, q.model), remark))
        for (name, tags, remark), windows in matched.items():
            if masks in windows:
                curves.append((WINDOWS[name], windows[masks], tags, remark))
        series = [
            Series(method, _points(r, SPREAD ** (position - len(curves) / 2)), "line", tags, remark)
            for position, (method, r, tags, remark) in enumerate(curves)
        ]
        series = [s for s in series if s.points]
        if series:
            x = _distance_axis([r for _, r, _, _ in curves])
            panels.append(Panel(f"{title}, S={masks}", x, Axis("accuracy", range=(-0.04, 1.04)), series))
    return panels


def _contexts_together(named: list[tuple[Comparison, str]]) -> list[Panel]:
    """Return a panel for each attention that ran at several contexts, with a curve for each."""
    curves: dict[tuple[str, str], list[tuple[Method, Record, Tags, str]]] = {}
    for q, title in named:
        if q.exact:
            curves.setdefault(("exact ALiBi", ""), []).append((EXACT, q.exact, Tags(), title))
        for (method, remark), records in common.masks_series(q).items():
            for r in records:
                key = (f"S={common.mask_count(r)} {method.name}", remark)
                curves.setdefault(key, []).append((method, r, common.tags_of(r, q.model), title))
    panels = []
    for (name, remark), found in curves.items():
        series = [
            Series(
                replace(method, dash=DASHES[position % len(DASHES)]),
                _points(r, SPREAD ** (position - len(found) / 2)),
                "line",
                tags,
                ", ".join(filter(None, [remark, title])),
            )
            for position, (method, r, tags, title) in enumerate(found)
        ]
        series = [s for s in series if s.points]
        if len(series) > 1:
            x = _distance_axis([r for _, r, _, _ in found])
            title = ", ".join(filter(None, [name, remark, "all contexts"]))
            panels.append(Panel(title, x, Axis("accuracy", range=(-0.04, 1.04)), series))
    return panels


def _distance_axis(records: list[Record]) -> Axis:
    edges = [int(m[i]) for r in records for name in r.metrics if (m := BIN.search(name)) for i in (1, 2)]
    ticks = [t for t in common.value_ticks(edges) if math.log2(t) % 2 == 0] if len(set(edges)) > 5 else edges
    return Axis("distance (tokens)", True, common.value_ticks(ticks), (min(edges) / 1.1, max(edges) * 1.1))


def _points(record: Record, shift: float) -> list[Point]:
    candidates = []
    for name, metric in record.metrics.items():
        if match := BIN.search(name):
            low, high = int(match[1]), int(match[2])
            description = f"{record.cell.label}, {low} to {high} tokens"
            candidates.append(common.point(math.sqrt(low * high) * shift, metric, description))
    return sorted(points(candidates), key=lambda p: p.x)
