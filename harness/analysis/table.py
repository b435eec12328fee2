"""Tables of records: attentions side by side, by depth and across tasks, and the format of each
figure."""

from collections.abc import Callable, Collection, Mapping, Sequence

from harness.analysis.reader import DEPTH, Record, depth_of, difference, reference_of
from harness.analysis.versions import differences
from harness.common.stats import Difference, Metric
from harness.common.table import Table

PART_OF_BITS = "/bits_per_byte_"  # stands before the class of tokens in the name of a metric


def comparison(records: Sequence[Record], *, title: str = "") -> Table:
    """Return a table of attentions side by side on the same samples: cost, the task's headline, the
    paired difference from exact ALiBi and, if the task has it, the answer's likelihood. Repeats of
    a timing have the table of `repeats`."""
    if any(r.rows_are == "repeats" for r in records):
        return repeats(records, title=title)
    headline = headline_of(records)
    likelihood = any(f"{r.task}/answer_nll" in r.metrics for r in records)
    columns = ["attention", "pairs per row", heading(headline), "minus exact", "detectable"]
    columns += ["answer NLL (nats)"] * likelihood + ["samples"]
    rows = []
    for record in records:
        exact = reference_of(record, records)
        change = difference(record, exact) if exact and exact is not record else None
        metrics = record.metrics
        rows.append(
            [
                _label(record),
                pairs(record.pairs),
                interval(metrics.get(headline)),
                signed(change),
                f"{change.detectable:.3f}" if change and change.detectable is not None else "",
                *([interval(metrics.get(f"{record.task}/answer_nll"))] * likelihood),
                _samples(record, headline),
            ]
        )
    return Table(title, columns, rows, other_versions(records))


def repeats(records: Sequence[Record], *, title: str = "") -> Table:
    """Return a table of all metrics of a timing, one column for each attention. Times stand beside
    their errors; there are no samples to pair."""
    names: dict[str, str] = {}
    for record in records:
        names |= {name: metric.unit for name, metric in record.metrics.items() if name not in names}
    rows = [["pairs per row, expected", *(pairs(r.pairs) for r in records)]]
    for name in sorted(names, key=lambda n: _place(n, records)):
        unit = UNITS[names[name]][1] if names[name] in UNITS else ""
        line = heading(name) + (f" ({unit})" if unit else "")
        rows.append([line, *(interval(r.metrics.get(name)) for r in records)])
    remarks = [conditions(records), *other_versions(records)]
    return Table(title, ["", *(_label(r) for r in records)], rows, remarks)


def other_versions(records: Sequence[Record]) -> list[str]:
    """Return the remark of `harness.analysis.versions` on these records, if there is one."""
    remark = differences((record.cell.label, record) for record in records)
    return [remark] if remark else []


def conditions(records: Sequence[Record]) -> str:
    """Return a sentence with the conditions of a timing: lengths, batch and device."""
    names = {"batch": "batch", "decode_tokens": "decoded tokens", "chunk": "chunks of", "threads": "threads"}
    lines = []
    for r in records:
        parts = [f"context {r.context}", *(f"{name} {r.options[k]}" for k, name in names.items() if r.options.get(k))]
        lines.append(", ".join([*parts, r.identity.dtype, r.options.get("device") or "unknown device"]))
    return f"Measured with: {'; '.join(dict.fromkeys(lines))}."


def by_depth(records: Sequence[Record], *, title: str = "") -> Table | None:
    """Return a table of accuracy by depth of the needle; None if no record has it."""
    depths = sorted({d for r in records for name in r.metrics if (d := depth_of(name)) is not None})
    if not depths:
        return None
    rows = [
        [r.cell.label, *(_value(r.metrics.get(f"{r.task}{DEPTH}{d:g}")) for d in depths)] for r in records if r.metrics
    ]
    return Table(title, ["accuracy at needle depth", *(f"{d:g}" for d in depths)], rows, [])


def by_token_class(records: Sequence[Record], *, title: str = "") -> Table | None:
    """Return a table of the bits per byte of a text by class of token, which add up to the total,
    with their differences from exact ALiBi; None if no record has them."""
    names = list(dict.fromkeys(name for r in records for name in r.metrics if PART_OF_BITS in name))
    if not names:
        return None
    rows = []
    for record in (r for r in records if r.metrics):
        exact = reference_of(record, records)
        cells = [record.cell.label]
        for name in names:
            value, reference = (r and r.metrics.get(name) for r in (record, exact))
            change = f" ({value.value - reference.value:+.3f})" if value and reference and exact is not record else ""
            cells.append(f"{value.value:.3f}{change}" if value else "")
        rows.append(cells)
    classes = [heading(name).removeprefix("bits per byte ") for name in names]
    return Table(title, ["bits per byte (minus exact) of", *classes], rows, [])


def breakdowns(records: Sequence[Record]) -> list[Table]:
    """Return the tables that stand below the comparison of these records: by depth of the needle
    and by class of token, as far as the task has them."""
    return [t for t in (by_depth(records), by_token_class(records)) if t]


def notes(kinds: Collection[str]) -> list[str]:
    """Return the notes below tables of these kinds of rows, "samples" or "repeats"."""
    return NOTES * ("samples" in kinds) + NOTES_OF_REPEATS * ("repeats" in kinds)


def across_tasks(by_task: Sequence[Sequence[Record]]) -> Table:
    """Return a table of headlines: a column for each task, a row for each attention."""
    names = [f"{records[0].task}: {heading(headline_of(records))}" for records in by_task]
    labels = dict.fromkeys(record.cell.label for records in by_task for record in records)
    rows = []
    for label in labels:
        found = [next((r for r in records if r.cell.label == label), None) for records in by_task]
        values = [
            (headline(r) if r.headline == headline_of(records) else "") or r.status if r else ""
            for r, records in zip(found, by_task, strict=True)
        ]
        rows.append([label, *values])
    return Table("all tasks", ["attention", *names], rows, [])


def headline_of(records: Sequence[Record]) -> str:
    """Return the metric that a table of these records shows."""
    return next((r.headline for r in records if r.metrics), records[0].headline)


def overview(records: Sequence[Record]) -> Table:
    """Return a table with a line for each task of each cell."""
    columns = ["cell", "model", "attention", "context", "task", "status", "samples", "result"]
    rows = []
    for r in records:
        about = [r.cell_id, r.cell.model, r.cell.label, str(r.context), r.task, r.status, str(r.count)]
        rows.append([*about, f"{heading(r.headline)} {headline(r)}" if r.metrics else ""])
    return Table("", columns, rows, [])


def interval(metric: Metric | None) -> str:
    """Return a metric as "value [low, high]"; empty without one."""
    if metric is None:
        return ""
    value, low, high = (_number(v, metric.unit) for v in (metric.value, metric.low, metric.high))
    return value if metric.low is None else f"{value} [{low}, {high}]"


def with_unit(metric: Metric) -> str:
    """Return a metric with its interval and unit, for a sentence."""
    shown = interval(metric)
    return f"{shown} {UNITS[metric.unit][1] or metric.unit}" if metric.unit in UNITS else shown


def headline(record: Record) -> str:
    """Return the task's first metric; a time is followed by its error."""
    metrics = record.metrics
    error = metrics.get(f"{record.task}/error") if record.rows_are == "repeats" else None
    beside = f", error {interval(error)}" if error else ""
    return interval(metrics.get(record.headline)) + beside


def pairs(cost: Mapping[str, float]) -> str:
    """Return visited pairs per row in words; empty if they are unknown."""
    text = f"{cost['fused']:.1f}" if "fused" in cost else ""
    return f"{text} ({cost['passes']:.1f} in passes)" if "passes" in cost else text


def heading(metric: str) -> str:
    """Return the heading of a metric's column: its name without the task."""
    return metric.split("/", 1)[1].replace("_", " ")


def _label(record: Record) -> str:
    """Return the attention's label with its status and the method's remarks."""
    remarks = [] if record.status == "ok" else [record.status]
    remarks += record.method.remarks(record.cell)
    return record.cell.label + (f" ({'; '.join(remarks)})" if remarks else "")


def _samples(record: Record, headline: str) -> str:
    """Return the number of samples of the headline, and of those left out."""
    shown, left_out = record.metrics.get(headline), record.metrics.get(f"{record.task}/too_long")
    count = str(shown.n if shown else record.count)
    return f"{count} ({left_out.value} too long)" if left_out else count


def _number(value: float | None, unit: str) -> str:
    """Return a number with the digits of its unit: three decimals unless `UNITS` says otherwise."""
    if value is None:
        return ""
    return UNITS[unit][0](value) if unit in UNITS else f"{value:.3f}"


def _place(name: str, records: Sequence[Record]) -> int:
    """Return a metric's place: the largest among the records, because a record may lack metrics."""
    return max(list(r.metrics).index(name) for r in records if name in r.metrics)


def _value(metric: Metric | None) -> str:
    return "" if metric is None else f"{metric.value:.2f}"


def signed(change: Difference | None) -> str:
    """Return a difference as "+value [+low, +high]"; empty without one."""
    if change is None:
        return ""
    if change.low is None or change.high is None:
        return f"{change.value:+.3f}"
    return f"{change.value:+.3f} [{change.low:+.3f}, {change.high:+.3f}]"


# by unit: the format of a number, and the unit's name in tables
UNITS: dict[str, tuple[Callable[[float], str], str]] = {
    "bytes": (lambda v: f"{v / 2**20:,.1f}", "MiB"),
    "relative error": (lambda v: f"{v:.1e}", "relative"),
    "FLOPs": (lambda v: f"{v / 1e9:,.2f}", "GFLOP"),
    "pairs": (lambda v: f"{v:,.0f}", ""),
    "ms": (lambda v: f"{v:,.1f}", ""),
    "tokens/s": (lambda v: f"{v:,.1f}", ""),
    "times exact": (lambda v: f"{v:.2f}", "over exact ALiBi"),
}

NOTES = [
    "Intervals are 95 %: Wilson's for rates, Student's t for other figures; for PLSH over draws, rates never narrower "
    "than Wilson's.",
    "Minus exact: paired by sample, for rates with Tango's interval; for PLSH over draws, never narrower than that.",
    "Detectable: the smallest true difference these samples show with 80 % power; none where no difference would show.",
    "Pairs per row: (query, key) pairs per head with the key before the query, expected over draws.",
]
NOTES_OF_REPEATS = [
    "Times are medians with their quartiles over repeats; speed-ups are over exact ALiBi, timed by turns with it.",
    "Error: of the kernel against the dense oracle; cached: of the logits from the KV cache against one forward.",
]
