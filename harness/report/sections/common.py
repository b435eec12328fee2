"""What sections share: records grouped for figures, sentences on a point, axes."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from harness.analysis.reader import Question, Record
from harness.analysis.table import heading, interval
from harness.common.stats import Metric
from harness.experiment import command
from harness.report.describe import Axis, Group, Heat, Live, Panel, Point, Series, Tags, finite, points
from harness.report.methods import EXACT, WINDOW_FUSED, WINDOW_PASSES, Method

WINDOWS: dict[str, Method] = {"fused": WINDOW_FUSED, "passes": WINDOW_PASSES}
COMMANDS = 3  # that are shown beside a figure
VARYING = ("kernel", "seed", "draws")  # may set apart cells of one attention


def tags_of(record: Record, model: str) -> Tags:
    attention = record.attention
    return Tags(model, record.task, attention.sampler or "", attention.weights or "")


def by_model(questions: Iterable[Question]) -> dict[tuple[str, str], list[Question]]:
    """Questions by (model, task), each list by context."""
    groups: dict[tuple[str, str], list[Question]] = defaultdict(list)
    for q in questions:
        groups[q.model, q.task].append(q)
    return groups


def groups(
    questions: Iterable[Question], draw: Callable[[str, list[Question]], Sequence[Panel | Heat]], live: Live
) -> tuple[list[Group], list[str]]:
    """A group of plots for each model and task of which `draw` makes any, and the commands that
    made what they show. Of `live` the model is filled in, and the task where the metric says
    TASK."""
    made, shown = [], []
    for (model, task), group in by_model(questions).items():
        if drawn := draw(model, group):
            first = group[0].records[0]
            own = replace(live, model=first.cell.model, y=live.y.replace("TASK", task) or first.headline)
            made.append(Group(f"{model}, {task}", drawn, Tags(model, task), own))
            shown += group
    return made, commands(shown)


def titles(group: Sequence[Question]) -> list[str]:
    """What tells the questions of one model and task apart: the context, and what else differs."""

    def facts(q: Question) -> dict:
        first = q.records[0]
        return {"dtype": first.identity.dtype, "data_seed": first.identity.data_seed, **first.options}

    all_facts = [facts(q) for q in group]
    # what has only begun has no options yet
    known = [f for q, f in zip(group, all_facts, strict=True) if any(r.outcome for r in q.records)]
    names = list(dict.fromkeys(name for f in known for name in f))
    varying = [name for name in names if len({str(f.get(name)) for f in known}) > 1]
    return [
        ", ".join([f"{q.context} tokens", *(f"{name} {f.get(name)}" for name in varying)])
        for q, f in zip(group, all_facts, strict=True)
    ]


def masks_series(q: Question) -> dict[tuple[Method, str], list[Record]]:
    """PLSH records that differ in the number of masks alone, by method and by what else sets them
    apart."""
    found: dict[tuple[Method, str], list[Record]] = defaultdict(list)
    plsh = [r for r in q.named("plsh") if r.metrics]
    varying = [name for name in VARYING if len({getattr(r.identity, name) for r in plsh}) > 1]
    for r in plsh:
        remark = [*r.method.variant, *(f"{name} {getattr(r.identity, name)}" for name in varying)]
        found[look(r.method.style, r), ", ".join(remark)].append(r)
    return {key: sorted(records, key=masks_of) for key, records in found.items()}


def windows(q: Question) -> dict[tuple[str, Tags, str], dict[int, Record]]:
    """The windows that masks were matched to, by number of masks: for each way to match (fused,
    passes), sampler, and what is kept of the keys, with what must be said of the latter two."""
    found: dict[tuple[str, Tags, str], dict[int, Record]] = defaultdict(dict)
    for r in (r for records in masks_series(q).values() for r in records):
        remark = ", ".join([*sampler_of(r), *r.method.variant])
        for match, window in q.windows(r).items():
            found[match, Tags(sampler=r.attention.sampler or ""), remark][masks_of(r)] = window
    return found


def masks_of(record: Record) -> int:
    """Its number of masks; 0 without any."""
    return record.attention.masks or 0


def sampler_of(masks: Record) -> list[str]:
    """The sampler, unless it is the paper's."""
    sampler = masks.attention.sampler
    return [] if sampler == "gamma" else [f"{sampler} masks"]


def look(method: Method, record: Record) -> Method:
    """The method with open markers for a cache that evicts, and another line with sinks."""
    kept = record.method
    symbol = f"{method.symbol.removesuffix('-open')}-open" if kept.evict else method.symbol
    return replace(method, symbol=symbol, dash="dashdot" if kept.sinks else method.dash)


def size_of(masks: int | None) -> float:
    """Of markers: more masks, larger ones."""
    return 0.7 + 0.15 * math.log2(masks or 4)


def conditions(questions: Iterable[Question]) -> dict[tuple[str, str], str]:
    """What the times of each record, by (cell_id, task_id), were taken under: times under different
    conditions are never on one plot. Versions and commits are named where they differ."""
    said, versions = {}, {}
    for r in (r for q in questions for r in q.records if r.rows_are == "repeats" and r.outcome):
        options, identity = r.options, r.identity
        words = [r.environment.device or "unknown device", identity.dtype]
        words += [f"kernel {identity.kernel}"] if identity.kernel not in (None, "auto") else []
        named = {"threads": "threads", "batch": "batch", "chunk": "chunk", "decode_tokens": "decoded tokens"}
        words += [f"{word} {options[name]}" for name, word in named.items() if options.get(name) is not None]
        said[r.cell_id, r.store.task_id] = ", ".join(map(str, filter(None, words)))
        versions[r.cell_id, r.store.task_id] = {n: str(options.get(n)) for n in ("torch", "triton", "commit")}
    full = {}
    by_words: dict[str, list[dict]] = defaultdict(list)
    for key, sentence in said.items():
        by_words[sentence].append(versions[key])
    for key, sentence in said.items():
        alike = by_words[sentence]
        differ = [name for name in versions[key] if len({v[name] for v in alike}) > 1]
        full[key] = ", ".join([sentence, *(f"{name} {versions[key][name][:9]}" for name in differ)])
    return full


def point(x: float | None, metric: Metric | None, about: str) -> Point | None:
    """A metric of the store at x; None where it is missing or not a number."""
    if metric is None or x is None or not finite(metric.value):
        return None
    return Point(x, metric.value, metric.low, metric.high, f"{about}\n{interval(metric)}, n = {metric.n}")


def beside_error(record: Record) -> str:
    """The error of a timing, to stand beside its times."""
    error = record.metrics.get(f"{record.task}/error")
    return f", error {interval(error)}" if error else ""


def exact_band(q: Question) -> list[Series]:
    """Exact ALiBi as a level with its interval."""
    if q.exact is None:
        return []
    drawn = points([point(0.0, q.exact.score, "exact ALiBi")])
    return [Series(EXACT, drawn, "band")] if drawn else []


def score_axis(q: Question) -> Axis:
    """The task's score, from 0 to 1 where it is a share."""
    headline = next((r.headline for r in q.records if r.score), "/accuracy")
    within = all(0 <= r.score.value <= 1 for r in q.records if r.score)
    return Axis(heading(headline), range=(-0.04, 1.04) if within else None)


def plain(values: Iterable[float]) -> dict[float, str]:
    """Ticks at the values that occur."""
    return {v: f"{v:g}" for v in sorted(set(values))}


def decades(values: Sequence[float]) -> dict[float, str]:
    """1, 2, 5 in every decade between the values."""
    low, high = min(values), max(values)
    steps = [m * 10.0**e for e in range(-12, 16) for m in (1, 2, 5)]
    return {s: f"{s:,.10g}" for s in steps if low / 1.3 <= s <= high * 1.3}


def binary(values: Sequence[float]) -> dict[float, str]:
    """Powers of two of bytes between the values."""
    low, high = (round(math.log2(v)) for v in (min(values), max(values)))
    every = range(low, high + 1, max(1, (high - low) // 5))
    units = ("B", "KiB", "MiB", "GiB", "TiB")
    return {2.0**e: f"{2 ** (e % 10)} {units[e // 10]}" for e in every}


def commands(questions: Iterable[Question]) -> list[str]:
    """The commands that made the records of these questions; the table of cells has those left
    out."""
    said = command.recorded_commands([r for q in questions for r in q.records])
    more = len(said) - COMMANDS
    return said[:COMMANDS] + ([f"# and {more} more: see the table of cells"] if more > 0 else [])
