"""Time and memory against context, from task=throughput."""

from collections import defaultdict

from harness.reader import Question, Record
from harness.report.describe import Axis, Group, Guide, Live, Panel, Section, Series, Tags, points
from harness.report.methods import method_of
from harness.report.sections import common

MEASURES = {
    "throughput/prefill_ms": ("prefill, time to first token (ms)", (1, 2)),
    "throughput/decode_ms_per_token": ("decode, time per token (ms)", (0, 1)),
    "throughput/peak_bytes": ("peak memory (bytes)", (1, 2)),
}
SLOPES = {0: "constant", 1: "linear", 2: "quadratic"}


def section(questions: list[Question]) -> Section:
    records: dict[tuple[str, str], list[Record]] = defaultdict(list)
    for q in questions:
        for r in q.records:
            if any(name in r.metrics for name in MEASURES):
                device = r.outcome.get("environment", {}).get("device") or "unknown device"
                records[q.model, device].append(r)
    groups = []
    for (model, device), found in records.items():
        panels = [p for name in MEASURES if (p := _panel(model, found, name))]
        live = Live("config.context", next(n for n in MEASURES if n in found[0].metrics), log_x=True, log_y=True)
        groups.append(Group(f"{model} on {device}", panels, Tags(model, found[0].task), live))
    hint = f"model={questions[0].records[0].cell['model']} " if questions else ""
    command = f"python -m harness.run -m task=throughput {hint}attn=plsh masks=16 context=1024,4096,16384"
    timed = [q for q in questions if any(name in r.metrics for r in q.records for name in MEASURES)]
    return Section(
        "context",
        "Time and memory against context",
        "On log axes exact ALiBi's prefill runs along the quadratic line; a method of bounded reach should run along "
        "the linear one. Where the curves cross, the method begins to pay. Bars are the interval of each record.",
        groups,
        common.commands(timed),
        [] if groups else [("No record of task=throughput.", command)],
    )


def _panel(model: str, found: list[Record], name: str) -> Panel | None:
    lines: dict[tuple, list[Record]] = defaultdict(list)
    for r in found:
        masks = r.attention.get("masks")
        remark = f"S={masks}" if masks else ""
        lines[method_of(r), remark, common.tags_of(r, model)].append(r)
    series = [
        Series(method, drawn, "line", tags, remark)
        for (method, remark, tags), records in lines.items()
        if (
            drawn := sorted(
                points(
                    common.point(r.context, r.metrics.get(name), f"{r.cell['label']}, {r.context} tokens")
                    for r in records
                ),
                key=lambda p: p.x,
            )
        )
    ]
    shown = [p for s in series for p in s.points if p.y > 0]
    if not shown:
        return None
    title, slopes = MEASURES[name]
    first = min(shown, key=lambda p: (p.x, p.y))
    contexts = [p.x for p in shown]
    x = Axis("context (tokens)", True, common.plain(contexts), (min(contexts) / 1.2, max(contexts) * 1.2))
    values = [v for p in shown for v in (p.y, p.low, p.high) if v and v > 0]
    y = Axis(title, True, range=(min(values) / 1.5, max(values) * 1.5))
    return Panel(title, x, y, series, [Guide(SLOPES[s], first.x, first.y, s) for s in slopes])
