"""Time and memory against context, from task=throughput."""

import shlex
from collections import defaultdict

from harness import command
from harness.reader import Question, Record
from harness.report.describe import QUARTILES, Axis, Group, Guide, Live, Panel, Section, Series, Tags, points
from harness.report.methods import method_of
from harness.report.sections import common

MEASURES = {
    "throughput/prefill_ms": ("prefill, time to first token (ms)", (1, 2)),
    "throughput/chunked_prefill_ms": ("prefill in chunks (ms)", (1, 2)),
    "throughput/decode_ms_per_token": ("decode, time per token (ms)", (0, 1)),
    "throughput/peak_bytes": ("peak memory (bytes)", (1, 2)),
    "throughput/error": ("error against the dense oracle (relative)", ()),
}
SLOPES = {0: "constant", 1: "linear", 2: "quadratic"}


def section(questions: list[Question]) -> Section:
    records: dict[tuple[str, str], list[tuple[Record, str]]] = defaultdict(list)
    for q in questions:
        for r in q.records:
            if any(name in r.metrics for name in MEASURES):
                records[q.model, _conditions(r)].append((r, _remark(r, q)))
    groups = []
    for (model, conditions), found in records.items():
        panels = [p for name in MEASURES if (p := _panel(model, found, name))]
        first = found[0][0]
        y = next(n for n in MEASURES if n in first.metrics)
        live = Live("config.context", y, log_x=True, log_y=True, model=first.cell["model"])
        groups.append(Group(f"{model} on {conditions}", panels, Tags(model, first.task), live))
    words = ["python", "-m", "harness.run", "-m", "task=throughput", "attn=plsh", "masks=16"]
    words += [*(command.model(questions[0].records[0]) if questions else ()), "context=1024,4096,16384"]
    timed = [q for q in questions if any(name in r.metrics for r in q.records for name in MEASURES)]
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


def _conditions(r: Record) -> str:
    """Times taken under different conditions are never on one plot."""
    options, identity = r.outcome.get("options") or {}, r.cell["identity"]
    said = [r.outcome.get("environment", {}).get("device") or "unknown device", identity.get("dtype")]
    said += [f"{name} {options[name]}" for name in ("threads", "batch", "chunk") if options.get(name) is not None]
    return ", ".join(str(s) for s in said if s)


def _remark(r: Record, q: Question) -> str:
    """What sets a line apart from others of its method. A window's cutoff changes with the context: it is named by the
    masks whose cost it has."""
    said = [f"S={r.attention['masks']}"] if r.attention.get("masks") else []
    matched = {match for masks in q.named("plsh") for match, window in q.windows(masks).items() if window is r}
    said += [f"equal {match} cost" for match in sorted(matched)[:1]]
    return ", ".join(said + ["evicting"] * bool(r.attention.get("evict")))


def _panel(model: str, found: list[tuple[Record, str]], name: str) -> Panel | None:
    lines: dict[tuple, list[Record]] = defaultdict(list)
    for r, remark in found:
        lines[method_of(r), remark, common.tags_of(r, model)].append(r)
    series = [
        Series(method, drawn, "line", tags, remark)
        for (method, remark, tags), records in lines.items()
        if (
            drawn := sorted(
                points(common.point(r.context, r.metrics.get(name), _about(r)) for r in records),
                key=lambda p: p.x,
            )
        )
    ]
    shown = [p for s in series for p in s.points if p.y > 0]
    if not shown:
        return None
    title, slopes = MEASURES[name]
    exact = [p for s in series for p in s.points if p.y > 0 and s.method.name == "exact ALiBi"]
    first = min(exact or shown, key=lambda p: (p.x, p.y))
    contexts = [p.x for p in shown]
    x = Axis("context (tokens)", True, common.plain(contexts), (min(contexts) / 1.2, max(contexts) * 1.2))
    values = [v for p in shown for v in (p.y, p.low, p.high) if v and v > 0]
    y = Axis(title, True, range=(min(values) / 1.5, max(values) * 1.5))
    guides = [Guide(SLOPES[s], first.x, first.y, s) for s in slopes]
    return Panel(title, x, y, series, guides, bars=QUARTILES)


def _about(r: Record) -> str:
    return f"{r.cell['label']}, {r.context} tokens{common.beside_error(r)}"
