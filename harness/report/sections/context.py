"""Time and memory against context, from task=throughput."""

import shlex
from collections import defaultdict
from collections.abc import Iterator

from harness.analysis.reader import Comparison, Record
from harness.experiment import command
from harness.report.describe import QUARTILES, Axis, Group, Guide, Live, Panel, Section, Series, Tags, points
from harness.report.methods import WINDOWS, Method
from harness.report.sections import common

MEASURES = {
    "throughput/prefill_ms": ("prefill, time to first token (ms)", (1, 2)),
    "throughput/chunked_prefill_ms": ("prefill in chunks (ms)", (1, 2)),
    "throughput/decode_ms_per_token": ("decode, time per token (ms)", (0, 1)),
    "throughput/peak_bytes": ("peak memory", (1, 2)),
    "throughput/error": ("error (relative)", ()),
}
Line = tuple[Method, str, Tags, int | None]  # method, remark, tags, masks
SLOPES = {0: "constant", 1: "linear", 2: "quadratic"}


def section(comparisons: list[Comparison]) -> Section:
    """Return the section on the growth of time and memory with the context."""
    records: dict[tuple[str, str], list[tuple[Record, Line]]] = defaultdict(list)
    conditions = common.timing_conditions(comparisons)
    for q in comparisons:
        for r, line in _lines(q):
            records[q.model, conditions[r.cell_id, r.store.task_id]].append((r, line))
    groups = []
    for (model, setup), lines in records.items():
        panels = [p for name in MEASURES if (p := _panel(lines, name))]
        first = lines[0][0]
        y = next(n for n in MEASURES if n in first.metrics)
        live = Live("config.context", y, log_x=True, log_y=True, model=first.cell.model)
        groups.append(Group(f"{model} on {setup}", panels, Tags(model, first.task), live))
    words = ["python", "-m", "harness.run", "-m", "task=throughput", "attn=plsh", "masks=16"]
    words += [*(command.model_words(comparisons[0].records[0]) if comparisons else ()), "context=1024,4096,16384"]
    timed = [q for q in comparisons if any(name in r.metrics for r in q.records for name in MEASURES)]
    return Section(
        "context",
        "Time and memory against context",
        "On log axes exact ALiBi's prefill runs along the quadratic line; a method of bounded reach should run along "
        "the linear one. Where the curves cross, the method begins to pay. Bars are the quartiles of the repeats. The "
        "last plot is what every time stands beside: how far the kernel is from the dense oracle.",
        groups,
        common.commands(timed),
        [] if groups else [("No record of task=throughput.", shlex.join(words))],
    )


def _lines(q: Comparison) -> Iterator[tuple[Record, Line]]:
    """Yield the timed records with their lines.

    A window's cutoff changes with the context, so its line is named by the masks of equal cost. A
    window may match several numbers of masks, and then is a point of several lines.
    """
    matched: dict[str, list[Line]] = defaultdict(list)
    for (name, tags, remark), windows in common.matched_windows(q).items():
        for masks, window in windows.items():
            method = common.method_style(WINDOWS[name], window)
            remarks = ", ".join(filter(None, [f"S={masks}", remark]))
            matched[window.cell_id].append((method, remarks, tags, masks))
    for r in q.records:
        if any(name in r.metrics for name in MEASURES):
            method, count = common.method_style(r.method.style, r), r.attention.masks
            masks_remark = [f"S={count}"] if count else []
            own_line: Line = method, ", ".join(masks_remark + r.method.variant), common.tags_of(r, q.model), count
            yield from ((r, line) for line in matched[r.cell_id] or [own_line])


def _panel(records_and_lines: list[tuple[Record, Line]], name: str) -> Panel | None:
    lines: dict[Line, list[Record]] = defaultdict(list)
    for r, line in records_and_lines:
        lines[line].append(r)
    series = []
    for (method, remark, tags, masks), records in lines.items():
        line_points = points(common.point(r.context, r.metrics.get(name), _point_label(r)) for r in records)
        if line_points:
            line_points = sorted(line_points, key=lambda p: p.x)
            series.append(Series(method, line_points, "line", tags, remark, common.marker_size(masks)))
    visible = [p for s in series for p in s.points if p.y > 0]
    if not visible:
        return None
    title, slopes = MEASURES[name]
    exact = [p for s in series for p in s.points if p.y > 0 and s.method.name == "exact ALiBi"]
    first = min(exact or visible, key=lambda p: (p.x, p.y))
    contexts = [p.x for p in visible]
    x = Axis("context (tokens)", True, common.value_ticks(contexts), (min(contexts) / 1.2, max(contexts) * 1.2))
    values = [v for p in visible for v in (p.y, p.low, p.high) if v and v > 0]
    ticks = common.binary_ticks(values) if "bytes" in name else common.decade_ticks(values)
    y = Axis(title, True, ticks, (min(values) / 1.5, max(values) * 1.5))
    guides = [Guide(SLOPES[s], first.x, first.y, s) for s in slopes]
    return Panel(title, x, y, series, guides, bars=QUARTILES)


def _point_label(r: Record) -> str:
    return f"{r.cell.label}, {r.context} tokens{common.error_suffix(r)}"
