"""Helpers of the sections: records grouped for figures, notes of points, axes."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from harness.analysis.reader import Comparison, Record
from harness.analysis.table import heading, interval
from harness.common.stats import Metric
from harness.experiment import command
from harness.report.describe import Axis, Group, Heat, Live, Panel, Point, Series, Tags, finite, points
from harness.report.methods import EXACT, Method

MAX_COMMANDS = 3  # shown with a figure
VARYING = ("kernel", "seed", "draws")  # may differ between cells of one attention


def tags_of(record: Record, model: str) -> Tags:
    """Return the tags of a record for the filters."""
    attention = record.attention
    return Tags(model, record.task, attention.sampler or "", attention.weights or "")


def by_model(comparisons: Iterable[Comparison]) -> dict[tuple[str, str], list[Comparison]]:
    """Return the comparisons by (model, task), in order of context."""
    groups: dict[tuple[str, str], list[Comparison]] = defaultdict(list)
    for q in comparisons:
        groups[q.model, q.task].append(q)
    return groups


def groups(
    comparisons: Iterable[Comparison], draw: Callable[[str, list[Comparison]], Sequence[Panel | Heat]], live: Live
) -> tuple[list[Group], list[str]]:
    """Return a group of plots for each model and task, and the commands of their records.

    Args:
        comparisons: the comparisons of the store.
        draw: returns the panels of a model's comparisons; without panels there is no group.
        live: the plot over W&B runs, where TASK in the metric stands for the task's name.
    """
    plot_groups, shown = [], []
    for (model, task), group in by_model(comparisons).items():
        if panels := draw(model, group):
            first = group[0].records[0]
            model_live = replace(live, model=first.cell.model, y=live.y.replace("TASK", task) or first.headline)
            plot_groups.append(Group(f"{model}, {task}", panels, Tags(model, task), model_live))
            shown += group
    return plot_groups, commands(shown)


def titles(group: Sequence[Comparison]) -> list[str]:
    """Return titles of a model and task's comparisons: the context and the options that differ."""

    def facts(q: Comparison) -> dict:
        first = q.records[0]
        return {"dtype": first.identity.dtype, "data_seed": first.identity.data_seed, **first.options}

    all_facts = [facts(q) for q in group]
    # unfinished records have no options yet
    finished = [f for q, f in zip(group, all_facts, strict=True) if any(r.outcome for r in q.records)]
    names = list(dict.fromkeys(name for f in finished for name in f))
    varying = [name for name in names if len({str(f.get(name)) for f in finished}) > 1]
    return [
        ", ".join([f"{q.context} tokens", *(f"{name} {f.get(name)}" for name in varying)])
        for q, f in zip(group, all_facts, strict=True)
    ]


def masks_series(q: Comparison) -> dict[tuple[Method, str], list[Record]]:
    """Return PLSH records by method and remark, sorted by the number of masks.

    The records of a series differ only in the number of masks.
    """
    series: dict[tuple[Method, str], list[Record]] = defaultdict(list)
    plsh = [r for r in q.named("plsh") if r.metrics]
    varying = [name for name in VARYING if len({getattr(r.identity, name) for r in plsh}) > 1]
    for r in plsh:
        remark = [*r.method.variant, *(f"{name} {getattr(r.identity, name)}" for name in varying)]
        series[method_style(r.method.style, r), ", ".join(remark)].append(r)
    return {key: sorted(records, key=mask_count) for key, records in series.items()}


def matched_windows(q: Comparison) -> dict[tuple[str, Tags, str], dict[int, Record]]:
    """Return the windows of equal cost by number of masks.

    Keys: the reference (window, sliding, passes), tags of the sampler, and a remark on sampler and
    variant.
    """
    matched: dict[tuple[str, Tags, str], dict[int, Record]] = defaultdict(dict)
    for r in (r for records in masks_series(q).values() for r in records):
        remark = ", ".join([*sampler_remark(r), *r.method.variant])
        for name, window in q.windows(r).items():
            matched[name, Tags(sampler=r.attention.sampler or ""), remark][mask_count(r)] = window
    return matched


def mask_count(record: Record) -> int:
    """Return the number of masks; 0 for a method without masks."""
    return record.attention.masks or 0


def sampler_remark(masks: Record) -> list[str]:
    """Return a remark on the sampler, unless it is the paper's."""
    sampler = masks.attention.sampler
    return [] if sampler == "gamma" else [f"{sampler} masks"]


def method_style(method: Method, record: Record) -> Method:
    """Return the method's style, with open markers for eviction and other lines for sinks and a near
    field."""
    options = record.method
    symbol = f"{method.symbol.removesuffix('-open')}-open" if options.evict else method.symbol
    dashes = {(False, False): method.dash, (True, False): "dashdot", (False, True): "longdash"}
    return replace(method, symbol=symbol, dash=dashes.get((options.sinks > 0, options.near > 0), "longdashdot"))


def marker_size(masks: int | None) -> float:
    """Return the relative size of markers, which grows with the number of masks."""
    return 0.7 + 0.15 * math.log2(masks or 4)


def timing_conditions(comparisons: Iterable[Comparison]) -> dict[tuple[str, str], str]:
    """Return the conditions of each timing by (cell_id, task_id).

    Timings under different conditions never share a plot. Versions and commits are named where they
    differ.
    """
    sentences, versions = {}, {}
    for r in (r for q in comparisons for r in q.records if r.rows_are == "repeats" and r.outcome):
        options, identity = r.options, r.identity
        parts = [r.environment.device or "unknown device", identity.dtype]
        parts += [f"kernel {identity.kernel}"] if identity.kernel not in (None, "auto") else []
        labels = {"threads": "threads", "batch": "batch", "chunk": "chunk", "decode_tokens": "decoded tokens"}
        parts += [f"{word} {options[name]}" for name, word in labels.items() if options.get(name) is not None]
        sentences[r.cell_id, r.store.task_id] = ", ".join(map(str, filter(None, parts)))
        versions[r.cell_id, r.store.task_id] = {n: str(options.get(n)) for n in ("torch", "triton", "commit")}
    conditions_of = {}
    by_sentence: dict[str, list[dict]] = defaultdict(list)
    for key, sentence in sentences.items():
        by_sentence[sentence].append(versions[key])
    for key, sentence in sentences.items():
        peers = by_sentence[sentence]
        differing = [name for name in versions[key] if len({v[name] for v in peers}) > 1]
        conditions_of[key] = ", ".join([sentence, *(f"{name} {versions[key][name][:9]}" for name in differing)])
    return conditions_of


def point(x: float | None, metric: Metric | None, description: str) -> Point | None:
    """Return a metric as a point at x.

    Args:
        x: the position on the axis.
        metric: the metric.
        description: first line of the point's note.

    Returns:
        None if x or the metric is missing or not finite.
    """
    if metric is None or x is None or not finite(metric.value):
        return None
    return Point(x, metric.value, metric.low, metric.high, f"{description}\n{interval(metric)}, n = {metric.n}")


def error_suffix(record: Record) -> str:
    """Return the error of a timing, as a suffix to its time."""
    error = record.metrics.get(f"{record.task}/error")
    return f", error {interval(error)}" if error else ""


def exact_band(q: Comparison) -> list[Series]:
    """Return the level of exact ALiBi with its interval."""
    if q.exact is None:
        return []
    band = points([point(0.0, q.exact.score, "exact ALiBi")])
    return [Series(EXACT, band, "band")] if band else []


def score_axis(q: Comparison) -> Axis:
    """Return the axis of the task's score, from 0 to 1 if it is a share."""
    headline = next((r.headline for r in q.records if r.score), "/accuracy")
    is_share = all(0 <= r.score.value <= 1 for r in q.records if r.score)
    return Axis(heading(headline), range=(-0.04, 1.04) if is_share else None)


def value_ticks(values: Iterable[float]) -> dict[float, str]:
    """Return a tick at each value."""
    return {v: f"{v:g}" for v in sorted(set(values))}


def decade_ticks(values: Sequence[float]) -> dict[float, str]:
    """Return ticks at 1, 2 and 5 of each decade between the values."""
    low, high = min(values), max(values)
    steps = [m * 10.0**e for e in range(-12, 16) for m in (1, 2, 5)]
    return {s: f"{s:,.10g}" for s in steps if low / 1.3 <= s <= high * 1.3}


def binary_ticks(values: Sequence[float]) -> dict[float, str]:
    """Return ticks at powers of two, in bytes, between the values."""
    low, high = (round(math.log2(v)) for v in (min(values), max(values)))
    every = range(low, high + 1, max(1, (high - low) // 5))
    units = ("B", "KiB", "MiB", "GiB", "TiB")
    return {2.0**e: f"{2 ** (e % 10)} {units[e // 10]}" for e in every}


def commands(comparisons: Iterable[Comparison]) -> list[str]:
    """Return the first commands of the comparisons' records; the table of cells has all of them."""
    recorded = command.recorded_commands([r for q in comparisons for r in q.records])
    hidden = len(recorded) - MAX_COMMANDS
    return recorded[:MAX_COMMANDS] + ([f"# and {hidden} more: see the table of cells"] if hidden > 0 else [])
