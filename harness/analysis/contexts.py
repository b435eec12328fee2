"""Tables of times against context, from the records of task=throughput."""

from collections import Counter
from collections.abc import Sequence

from harness.analysis.reader import Comparison, Record
from harness.analysis.table import heading, interval
from harness.common.table import Table

SHOWN: tuple[str, ...] = (
    "prefill_ms",
    "chunked_prefill_ms",
    "chunked_prefill_speedup",
    "decode_ms_per_token",
    "decode_speedup",
)
SHOWN += ("attention_share", "amdahl_limit", "flops", "peak_bytes", "kv_allocated_bytes", "decode_bytes")
SHOWN += ("error", "error_cached", "alibi_difference")
EQUAL_COST_LABELS = {
    "window": "window of equal fused cost",
    "sliding": "sliding window of equal fused cost",
    "passes": "window of equal passes cost",
}
HEADINGS = {
    "chunked_prefill_speedup": "chunked prefill, times as fast as exact ALiBi",
    "decode_speedup": "decoding, times as fast as exact ALiBi",
    "attention_share": "attention's share of the prefill",
    "amdahl_limit": "speed-up if attention took no time",
    "flops": "GFLOP of the prefill",
    "peak_bytes": "peak MiB of the prefill",
    "kv_allocated_bytes": "KV cache, MiB allocated",
    "decode_bytes": "MiB that a decoded token reads",
    "error": "error of the kernel",
    "error_cached": "error of logits from the cache",
    "alibi_difference": "difference from exact ALiBi",
}


def tables(compared: Sequence[Comparison]) -> list[Table]:
    """Return one table for each metric that matters, with a column for each context; none for a
    single context."""
    if len({c.context for c in compared}) < 2:
        return []
    of_masks = {r.cell.label: r.method.label_suffix for c in compared for r in c.records if r.method.beside_windows}
    several = {suffix for suffix, count in Counter(of_masks.values()).items() if count > 1}
    lines: dict[str, dict[int, Record]] = {}
    for c in compared:
        for record in c.records:
            lines.setdefault(_label(record, c, several), {})[c.context] = record
    return [_by_context(lines, f"{compared[0].task}/{name}") for name in SHOWN]


def _by_context(lines: dict[str, dict[int, Record]], metric: str) -> Table:
    """Return the table of a metric: a line for each attention, a column for each context."""
    contexts = sorted({context for line in lines.values() for context in line})
    rows = []
    for label, line in lines.items():
        values = [interval(line[c].metrics.get(metric)) if c in line else "" for c in contexts]
        rows += [[label, *values]] if any(values) else []
    name = HEADINGS.get(metric.split("/")[1], heading(metric))
    return Table("", [name, *(f"{c:,} tokens" for c in contexts)], rows, [])


def _label(record: Record, compared: Comparison, several: set[str]) -> str:
    """Return the attention's label. A window of equal cost is named by its match, because its
    cutoff changes with the context.

    several: the suffixes of labels that several masks share, whose windows are named by them, too.
    """
    for other in (r for r in compared.records if r.method.beside_windows):
        for name, window in compared.windows(other).items():
            if window is record:
                masks = f" as {other.cell.label}" if other.method.label_suffix in several else ""
                return EQUAL_COST_LABELS[name] + (masks or record.method.label_suffix)
    return record.cell.label
