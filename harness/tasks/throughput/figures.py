"""Metrics of task=throughput: medians with quartiles, and counts."""

import operator
from collections.abc import Callable, Sequence

from harness.common.stats import Metric, quartiles
from harness.results.schema import CountsRow, RepeatRow

PREFILLS = ("prefill", "chunked_prefill")


def figures(rows: Sequence[CountsRow | RepeatRow]) -> dict[str, Metric]:
    """Return the metrics of a row of counts and rows of repeats.

    Unknown values, as a device's peak or energy, are left out.
    """
    (facts,) = (r for r in rows if isinstance(r, CountsRow))
    repeats = [r for r in rows if isinstance(r, RepeatRow)]
    measured = [r for r in repeats if not r.exact]
    exact = {_key(r): r.ms for r in repeats if r.exact}
    metrics: dict[str, Metric] = {}

    def figure(name: str, selected: Sequence[RepeatRow], unit: str, value: Callable[[RepeatRow], float]) -> None:
        if selected:
            metrics[name] = quartiles([value(r) for r in selected], unit=unit)

    def times(name: str, speed: str | None, selected: Sequence[RepeatRow]) -> None:
        """Add time, tokens per second, and the speed-up over exact ALiBi in the same repeat."""
        figure(name, selected, "ms", lambda r: r.ms)
        if speed:
            figure(f"{speed}_tokens_per_s", selected, "tokens/s", lambda r: 1e3 * r.tokens / r.ms)
        paired = [r for r in selected if _key(r) in exact]
        name = speed or name.removesuffix("_ms")
        figure(f"{name}_speedup", paired, "times exact", lambda r: exact[_key(r)] / r.ms)

    for kind in PREFILLS:
        times(f"{kind}_ms", kind, [r for r in measured if r.measurement == kind])
    decoded = [r for r in measured if r.measurement == "decode"]
    single = [r for r in decoded if r.rows == 1]
    times("decode_ms_per_token", "decode", single)
    for name, field in (("decode_slowest_ms", "slowest_ms"), ("decode_packing_ms", "packing_ms")):
        available = [r for r in single if getattr(r, field) is not None]
        figure(name, available, "ms", operator.attrgetter(field))
    for count in sorted({r.rows for r in decoded} - {1}):
        times(f"decode_rows_{count}_ms", None, [r for r in decoded if r.rows == count])
    for name in ("error", "error_cached"):
        metrics[name] = _count(max(getattr(r, name) for r in rows), "relative error")
    metrics["alibi_difference"] = _count(facts.alibi_difference, "relative error")
    prompt = [r for r in measured if r.measurement == PREFILLS[0]] or [
        r for r in measured if r.measurement == PREFILLS[1]
    ]
    for name, selected in (("", prompt), ("decode_", single)):
        figure(f"{name}attention_share", selected, "fraction", _share)
        figure(f"{name}amdahl_limit", selected, "times", lambda r: 1 / (1 - _share(r)))
    for name in ("peak_bytes", "kv_allocated_bytes", "kv_used_bytes", "decode_bytes"):
        metrics[name] = _count(getattr(facts, name), "bytes")
    metrics["flops"] = _count(facts.flops, "FLOPs")
    metrics["visited_pairs"] = _count(facts.visited_pairs, "pairs")
    if (flops := facts.peak_flops) and (bandwidth := facts.peak_bandwidth):
        figure("mfu", prompt, "fraction", lambda r: 1e3 * facts.flops / r.ms / flops)
        figure("mbu", single, "fraction", lambda r: 1e3 * facts.decode_bytes / r.ms / bandwidth)
    for name, selected in (("", prompt), ("decode_", single)):
        joules = [r.joules for r in selected if r.joules is not None]
        if selected and len(joules) == len(selected):
            tokens = sum(r.tokens * r.laps for r in selected)
            metrics[f"{name}joules_per_1k_tokens"] = _count(1e3 * sum(joules) / tokens, "joules", len(selected))
    return metrics


def _key(row: RepeatRow) -> tuple:
    return row.measurement, row.rows, row.repeat


def _share(row: RepeatRow) -> float:
    return row.attention_ms / row.ms


def _count(value: float, unit: str, n: int = 1) -> Metric:
    return Metric(value, None, None, n, unit)
