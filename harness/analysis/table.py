"""Tables of records: attentions side by side, by depth, across tasks, and the words for a
figure."""

from collections.abc import Callable, Collection, Mapping, Sequence

from harness.analysis.reader import DEPTH, Record, depth_of, difference, reference_of
from harness.analysis.versions import differences
from harness.common.stats import Difference, Metric
from harness.common.table import Table


def comparison(records: Sequence[Record], *, title: str = "") -> Table:
    """Attentions side by side on the same samples: cost, the task's headline, and the paired
    difference from exact ALiBi; for tasks that have it, the answer's likelihood. Of repeats, see
    `repeats`."""
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
    """Everything that a task of repeats has measured, one column for each attention: times stand
    beside their errors, and samples, which could be paired, there are none."""
    names: dict[str, str] = {}
    for record in records:
        names |= {name: metric.unit for name, metric in record.metrics.items() if name not in names}
    rows = [["pairs per row, expected", *(pairs(r.pairs) for r in records)]]
    for name in sorted(names, key=lambda n: _place(n, records)):
        unit = UNITS[names[name]][1] if names[name] in UNITS else ""
        line = heading(name) + (f" ({unit})" if unit else "")
        rows.append([line, *(interval(r.metrics.get(name)) for r in records)])
    said = [taken_with(records), *other_versions(records)]
    return Table(title, ["", *(_label(r) for r in records)], rows, said)


def other_versions(records: Sequence[Record]) -> list[str]:
    """The sentence of `harness.analysis.versions` on records side by side, if it has one."""
    told = differences((record.cell.label, record) for record in records)
    return [told] if told else []


def taken_with(records: Sequence[Record]) -> str:
    """Under which conditions the times were taken: lengths, batch, device."""
    names = {"batch": "batch", "decode_tokens": "decoded tokens", "chunk": "chunks of", "threads": "threads"}
    said = []
    for r in records:
        told = [f"context {r.context}", *(f"{name} {r.options[k]}" for k, name in names.items() if r.options.get(k))]
        said.append(", ".join([*told, r.identity.dtype, r.options.get("device") or "unknown device"]))
    return f"Measured with: {'; '.join(dict.fromkeys(said))}."


def by_depth(records: Sequence[Record], *, title: str = "") -> Table | None:
    """Accuracy at each depth of the needle; None where no record has it."""
    depths = sorted({d for r in records for name in r.metrics if (d := depth_of(name)) is not None})
    if not depths:
        return None
    rows = [
        [r.cell.label, *(_value(r.metrics.get(f"{r.task}{DEPTH}{d:g}")) for d in depths)] for r in records if r.metrics
    ]
    return Table(title, ["accuracy at needle depth", *(f"{d:g}" for d in depths)], rows, [])


def notes(kinds: Collection[str]) -> list[str]:
    """What must be said of tables of samples, of repeats, or of both."""
    return NOTES * ("samples" in kinds) + NOTES_OF_REPEATS * ("repeats" in kinds)


def across_tasks(by_task: Sequence[Sequence[Record]]) -> Table:
    """The headline of each task (a column) under each attention (a row)."""
    names = [f"{records[0].task}: {heading(headline_of(records))}" for records in by_task]
    labels = dict.fromkeys(record.cell.label for records in by_task for record in records)
    rows = []
    for label in labels:
        of = [next((r for r in records if r.cell.label == label), None) for records in by_task]
        values = [
            (headline(r) if r.headline == headline_of(records) else "") or r.status if r else ""
            for r, records in zip(of, by_task, strict=True)
        ]
        rows.append([label, *values])
    return Table("all tasks", ["attention", *names], rows, [])


def headline_of(records: Sequence[Record]) -> str:
    """The metric that a table of these records shows."""
    return next((r.headline for r in records if r.metrics), records[0].headline)


def overview(records: Sequence[Record]) -> Table:
    """One line for each task of each cell."""
    columns = ["cell", "model", "attention", "context", "task", "status", "samples", "result"]
    rows = []
    for r in records:
        about = [r.cell_id, r.cell.model, r.cell.label, str(r.context), r.task, r.status, str(r.count)]
        rows.append([*about, f"{heading(r.headline)} {headline(r)}" if r.metrics else ""])
    return Table("", columns, rows, [])


def interval(metric: Metric | None) -> str:
    if metric is None:
        return ""
    value, low, high = (_number(v, metric.unit) for v in (metric.value, metric.low, metric.high))
    return value if metric.low is None else f"{value} [{low}, {high}]"


def told(metric: Metric) -> str:
    """An interval with its unit, for a sentence."""
    shown = interval(metric)
    return f"{shown} {UNITS[metric.unit][1] or metric.unit}" if metric.unit in UNITS else shown


def headline(record: Record) -> str:
    """The task's first metric; a time with its error behind it."""
    metrics = record.metrics
    error = metrics.get(f"{record.task}/error") if record.rows_are == "repeats" else None
    beside = f", error {interval(error)}" if error else ""
    return interval(metrics.get(record.headline)) + beside


def pairs(cost: Mapping[str, float]) -> str:
    text = f"{cost['fused']:.1f}" if "fused" in cost else ""
    return f"{text} ({cost['passes']:.1f} in passes)" if "passes" in cost else text


def heading(metric: str) -> str:
    """A metric's name as a column's heading: without the task."""
    return metric.split("/", 1)[1].replace("_", " ")


def _label(record: Record) -> str:
    """The attention, and what must be said of its numbers."""
    remarks = [] if record.status == "ok" else [record.status]
    remarks += record.method.remarks(record.cell)
    return record.cell.label + (f" ({'; '.join(remarks)})" if remarks else "")


def _samples(record: Record, headline: str) -> str:
    """How many the headline is made of, and how many were left out."""
    shown, left_out = record.metrics.get(headline), record.metrics.get(f"{record.task}/too_long")
    count = str(shown.n if shown else record.count)
    return f"{count} ({left_out.value} too long)" if left_out else count


def _number(value: float | None, unit: str) -> str:
    """Digits that fit the unit: three behind the point, as accuracies have, unless `UNITS` says
    otherwise."""
    if value is None:
        return ""
    return UNITS[unit][0](value) if unit in UNITS else f"{value:.3f}"


def _place(name: str, records: Sequence[Record]) -> int:
    """Where a metric stands in the record that has most before it: a record may lack some."""
    return max(list(r.metrics).index(name) for r in records if name in r.metrics)


def _value(metric: Metric | None) -> str:
    return "" if metric is None else f"{metric.value:.2f}"


def signed(change: Difference | None) -> str:
    if change is None:
        return ""
    if change.low is None or change.high is None:
        return f"{change.value:+.3f}"
    return f"{change.value:+.3f} [{change.low:+.3f}, {change.high:+.3f}]"


# how a number of this unit is shown, and what is said of it beside its name
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
    "Intervals are 95 %: Wilson for a deterministic attention; for PLSH over draws, never narrower than Wilson.",
    "Minus exact: paired by prompt, of rates with Tango's interval; for PLSH over draws, never narrower than that.",
    "Detectable: the smallest true difference these samples show with 80 % power; none where no difference would show.",
    "Pairs per row: (query, key) pairs per head with the key before the query, expected over draws.",
]
NOTES_OF_REPEATS = [
    "Times are medians with their quartiles over repeats; speed-ups are over exact ALiBi, timed by turns with it.",
    "Error: of the kernel against the dense oracle; cached: of the logits from the KV cache against one forward.",
]
