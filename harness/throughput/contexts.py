"""Tables of times against context, from the records of task=throughput."""

from collections.abc import Sequence

from harness.reader import Record
from harness.table import Table, heading, interval

SHOWN = ("prefill_ms", "chunked_prefill_ms", "chunked_prefill_speedup", "decode_ms_per_token", "decode_speedup")
SHOWN += ("kv_allocated_bytes", "error", "alibi_difference")
HEADINGS = {"kv_allocated_bytes": "KV cache, MiB allocated"}


def tables(records: Sequence[Record]) -> list[Table]:
    """One table for each metric that matters, contexts across; none where there is one context alone."""
    if len({_context(r) for r in records}) < 2:
        return []
    ordered = sorted(records, key=lambda r: (r.attention["name"] != "alibi", r.attention["name"], role(r, records)))
    return [by_context(ordered, f"{records[0].task}/{name}") for name in SHOWN]


def by_context(records: Sequence[Record], metric: str) -> Table:
    """One metric: a line for each attention, a column for each context."""
    columns = sorted({_context(r) for r in records})
    lines: dict[str, dict[int, str]] = {}
    for record in records:
        lines.setdefault(role(record, records), {})[_context(record)] = interval(record.metrics.get(metric))
    rows = [[label, *(line.get(c, "") for c in columns)] for label, line in lines.items() if any(line.values())]
    name = HEADINGS.get(metric.split("/")[1], heading(metric))
    return Table("", [name, *(f"{c:,} tokens" for c in columns)], rows, [])


def role(record: Record, records: Sequence[Record]) -> str:
    """The attention's label; of a window that costs what the masks of the same context cost, the way it is matched,
    because its cutoff changes with the context."""
    cost = record.cell["pairs_per_row"]["fused"]
    masks = [
        r.cell["pairs_per_row"] for r in records if r.attention["name"] == "plsh" and _context(r) == _context(record)
    ]
    if record.attention["name"] == "window":
        matches = (match for pairs in masks for match in pairs if abs(pairs[match] - cost) <= 1e-3 * cost)
        if match := next(matches, None):
            return f"window of equal {match} cost" + ", evicting" * record.attention.get("evict", False)
    return record.cell["label"]


def _context(record: Record) -> int:
    return record.cell["identity"]["context"]
