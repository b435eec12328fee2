"""Metrics of task=throughput from its rows: medians with their quartiles, counts as they are."""

import operator
from collections.abc import Callable, Sequence

from harness.common.stats import Metric, quartiles
from harness.results.schema import CountsRow, RepeatRow

PREFILLS = ("prefill", "chunked_prefill")


def figures(rows: Sequence[CountsRow | RepeatRow]) -> dict[str, Metric]:
    """Row 0 holds the counts, the others a repeat each. What cannot be known (a device's peak, its
    energy) is left out."""
    (facts,) = (r for r in rows if isinstance(r, CountsRow))
    repeats = [r for r in rows if isinstance(r, RepeatRow)]
    own = [r for r in repeats if not r.exact]
    exact = {_key(r): r.ms for r in repeats if r.exact}
    found: dict[str, Metric] = {}

    def figure(name: str, chosen: Sequence[RepeatRow], unit: str, value: Callable[[RepeatRow], float]) -> None:
        if chosen:
            found[name] = quartiles([value(r) for r in chosen], unit=unit)

    def times(name: str, speed: str | None, chosen: Sequence[RepeatRow]) -> None:
        """Time of a lap, tokens per second, and how many times faster than exact ALiBi in the same
        repeat."""
        figure(name, chosen, "ms", lambda r: r.ms)
        if speed:
            figure(f"{speed}_tokens_per_s", chosen, "tokens/s", lambda r: 1e3 * r.tokens / r.ms)
        paired = [r for r in chosen if _key(r) in exact]
        name = speed or name.removesuffix("_ms")
        figure(f"{name}_speedup", paired, "times exact", lambda r: exact[_key(r)] / r.ms)

    for kind in PREFILLS:
        times(f"{kind}_ms", kind, [r for r in own if r.measurement == kind])
    decoded = [r for r in own if r.measurement == "decode"]
    single = [r for r in decoded if r.rows == 1]
    times("decode_ms_per_token", "decode", single)
    for name, of_step in (("decode_slowest_ms", "slowest_ms"), ("decode_packing_ms", "packing_ms")):
        timed = [r for r in single if getattr(r, of_step) is not None]
        figure(name, timed, "ms", operator.attrgetter(of_step))
    for count in sorted({r.rows for r in decoded} - {1}):
        times(f"decode_rows_{count}_ms", None, [r for r in decoded if r.rows == count])
    for name in ("error", "error_cached"):
        found[name] = _count(max(getattr(r, name) for r in rows), "relative error")
    found["alibi_difference"] = _count(facts.alibi_difference, "relative error")
    prompt = [r for r in own if r.measurement == PREFILLS[0]] or [r for r in own if r.measurement == PREFILLS[1]]
    for name, chosen in (("", prompt), ("decode_", single)):
        figure(f"{name}attention_share", chosen, "fraction", _share)
        figure(f"{name}amdahl_limit", chosen, "times", lambda r: 1 / (1 - _share(r)))
    for name in ("peak_bytes", "kv_allocated_bytes", "kv_used_bytes", "decode_bytes"):
        found[name] = _count(getattr(facts, name), "bytes")
    found["flops"] = _count(facts.flops, "FLOPs")
    found["visited_pairs"] = _count(facts.visited_pairs, "pairs")
    if (flops := facts.peak_flops) and (bandwidth := facts.peak_bandwidth):
        figure("mfu", prompt, "fraction", lambda r: 1e3 * facts.flops / r.ms / flops)
        figure("mbu", single, "fraction", lambda r: 1e3 * facts.decode_bytes / r.ms / bandwidth)
    for name, chosen in (("", prompt), ("decode_", single)):
        joules = [r.joules for r in chosen if r.joules is not None]
        if chosen and len(joules) == len(chosen):
            tokens = sum(r.tokens * r.laps for r in chosen)
            found[f"{name}joules_per_1k_tokens"] = _count(1e3 * sum(joules) / tokens, "joules", len(chosen))
    return found


def _key(row: RepeatRow) -> tuple:
    return row.measurement, row.rows, row.repeat


def _share(row: RepeatRow) -> float:
    return row.attention_ms / row.ms


def _count(value: float, unit: str, n: int = 1) -> Metric:
    return Metric(value, None, None, n, unit)
