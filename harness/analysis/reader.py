"""The reader of the store: records of cells, and their paired comparison. Comparisons are computed
here and never stored."""

import hashlib
import math
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from harness.attentions.base import Attention
from harness.attentions.registry import DEFAULT_REFERENCES, EQUAL_COST, EXACT, attention_of, table_order
from harness.common.files import listed, names_in, read_json, say_odd, write_atomic
from harness.common.stats import Difference, Metric, paired_difference
from harness.common.streams import say_once
from harness.results.rows import Found
from harness.results.schema import (
    AttentionIdentity,
    CellDescription,
    CellIdentity,
    Environment,
    SampleRow,
    TaskOutcome,
)
from harness.results.store import TASK_FOLDER, State, TaskStore, cell_trouble, state_of

SCORES = ("fraction", "score")  # units of metrics where higher is better
ADVICE = "python -m harness.check RESULTS --fix sets aside what is wrong, and the next run computes it."
DEPTH = "/accuracy_depth_"  # stands before the needle's depth in the name of a metric
MACHINE = ("device", "threads", "torch", "triton", "commit")  # in a timing's id beside its options


@dataclass(frozen=True)
class Record:
    """One task of one cell in the store.

    verify: compare the rows of a finished task with task.json.
    """

    cell: CellDescription
    store: TaskStore
    verify: bool = True

    @property
    def cell_id(self) -> str:
        return self.cell.cell_id

    @property
    def identity(self) -> CellIdentity:
        return self.cell.identity

    @property
    def task(self) -> str:
        return self.store.name

    @property
    def status(self) -> str:
        return self.state.status

    # content of the folder, each part read at most once
    @cached_property
    def state(self) -> State:
        state = state_of(self._mark, lambda: self._attempts, self._count, lambda _: self.found, verify=self.verify)
        if state.status in ("conflict", "damaged"):
            say_once(f"{self.store.folder} counts as not finished: {state.why}. {ADVICE}")
        return state

    @cached_property
    def _mark(self) -> tuple[dict | None, str | None]:
        return self.store.mark_of()

    @property
    def refused(self) -> bool:
        """Whether task.json belongs to another task or a later version."""
        return bool(self._mark[1])

    @property
    def _finished(self) -> dict | None:
        return self.state.finished

    @cached_property
    def _attempts(self) -> list[dict]:
        return self.store.attempts()

    @property
    def written(self) -> dict | None:
        """The content of task.json, whatever the rows are."""
        return self._mark[0]

    @cached_property
    def found(self) -> Found:
        """All rows of the folder."""
        record, why = self._mark
        return self.store.found(None if why else record)

    def _count(self) -> int:
        return len(self.found.rows) if "found" in vars(self) else self.store.lines()

    @property
    def attention(self) -> AttentionIdentity:
        return self.identity.attn

    @cached_property
    def method(self) -> Attention:
        """The attention method with its options."""
        return attention_of(self.attention.as_json())

    @property
    def context(self) -> int:
        return self.identity.context

    @property
    def pairs(self) -> dict[str, int | float]:
        """Known visited pairs per row and head: {"fused": ...}, for masks also {"passes": ...}."""
        return self.cell.pairs_per_row

    @property
    def clustered(self) -> bool:
        return (self.identity.draws or 1) > 1

    @cached_property
    def outcome(self) -> TaskOutcome:
        """task.json if the task is finished, otherwise the last failed attempt, otherwise an empty
        outcome, which is false."""
        found = self._finished or next((a for a in reversed(self._attempts) if "error" in a), {})
        try:
            return TaskOutcome.read(found)
        except ValueError as error:
            say_odd(self.store.folder / "task.json", error)
            return TaskOutcome()

    @property
    def environment(self) -> Environment:
        """Code and machine of the outcome; empty, which is false, without an outcome."""
        return self.outcome.environment

    @property
    def start(self) -> str:
        """Start time, comparable as text; empty without an outcome."""
        return self.environment.start

    @cached_property
    def metrics(self) -> dict[str, Metric]:
        """Metrics by TASK/NAME. Those with an invalid name are left out with a note."""
        found = self.outcome.metrics
        strange = [name for name in found if not _is_metric(name)]
        for name in strange:
            say_odd(self.store.folder / "task.json", f"{name!r} is not the name of a metric")
        return {name: metric for name, metric in found.items() if name not in strange} if strange else found

    @property
    def options(self) -> dict[str, Any]:
        """The content of the task's id; empty without an outcome."""
        return self.outcome.options or {}

    @property
    def asked(self) -> dict[str, Any]:
        """The task's options, without the machine and code of a timing's id."""
        return {k: v for k, v in self.options.items() if k not in MACHINE}

    @property
    def rows_are(self) -> str:
        """ "samples", or "repeats" of a timing. Without an outcome the rows decide."""
        if self.outcome or not self.lines:
            return self.outcome.rows_are
        return "repeats" if "measurement" in next(iter(self.lines.values())) else "samples"

    @property
    def headline(self) -> str:
        """Name of the metric that tables show: the task's first."""
        return next(iter(self.metrics), f"{self.task}/accuracy")

    @property
    def score(self) -> Metric | None:
        """The headline, if it is a score (higher is better); None for other tasks or without an
        outcome."""
        metric = self.metrics.get(self.headline)
        return metric if metric and metric.unit in SCORES else None

    def summary(self) -> dict[str, Any]:
        """Return status, options and metrics as plain JSON."""
        about = {"task": self.task, "task_id": self.store.task_id, "status": self.status, "samples": self.count}
        metrics = {name: metric.as_dict() for name, metric in self.metrics.items()}
        return {**about, "options": self.outcome.options, "metrics": metrics}

    @property
    def count(self) -> int:
        """Number of rows."""
        return len(self.lines)

    @cached_property
    def rows(self) -> dict[int, SampleRow]:
        """Rows by sample: those that the metrics were made of, or all rows of an unfinished task.
        The fields of a timing's repeat are in `more`."""
        found = {}
        for key, row in self.lines.items():
            try:
                found[key] = SampleRow.read(row)
            except ValueError as error:
                say_odd(self.store.folder / "parts", f"row {key}: {error}")
        return found

    @cached_property
    def lines(self) -> dict[int, dict[str, Any]]:
        """The same rows as JSON, with every field that the task wrote."""
        rows, finished = self.found.rows, self._finished
        return {k: row for k, row in rows.items() if k < finished["samples"]} if finished else rows


def depth_of(metric: str) -> float | None:
    """Return the needle's depth in the name of a metric; None if it has none."""
    _, marker, depth = metric.partition(DEPTH)
    return float(depth) if marker else None


def _is_metric(name: str) -> bool:
    task, dash, rest = name.partition("/")
    try:
        return bool(task and rest) and (DEPTH not in name or 0 <= (depth_of(name) or 0) <= 1)
    except ValueError:
        return False


def records(results: Path, cell_ids: Iterable[str] | None = None, *, verify: bool = True) -> list[Record]:
    """Return the records of a store, including unfinished and failed tasks.

    A folder whose name differs from the id of its content holds no record and is named once on
    stderr.

    Args:
        results: the store.
        cell_ids: cells in the order wanted; all cells if None.
        verify: compare the rows of finished tasks with task.json. Otherwise task.json is read on
            demand, and a record's status may be "refused".
    """
    folders = listed(results) if cell_ids is None else [results / cell_id for cell_id in cell_ids]
    found: list[Record] = []
    for folder in folders:
        cell = cell_of(folder / "cell.json")
        if cell is not None:
            made = (Record(cell, store, verify) for store in stores(results, folder.name))
            found.extend(record for record in made if not (verify and record.refused))
    return found


def stores(results: Path, cell_id: str) -> list[TaskStore]:
    """Return the tasks of a cell's folder, by name. A folder with another kind of name is named once
    on stderr."""
    found = []
    folder = results / cell_id
    for name in names_in(folder):
        if "-" not in name or not os.path.isdir(f"{folder}/{name}"):
            continue
        if parts := TASK_FOLDER.fullmatch(name):
            found.append(TaskStore(results, cell_id, *parts.groups()))
        else:
            say_odd(folder / name, "its name does not end in the id of a task")
    return found


def cell_of(file: Path) -> CellDescription | None:
    """Return the cell in a file; None, with a note, if it holds none or another folder's."""
    raw = read_json(file)
    if raw is None:
        return None
    try:
        if why := cell_trouble(raw, file.parent.name):
            raise ValueError(why)
        return CellDescription.read(raw)
    except ValueError as error:
        say_odd(file, error)
        return None


def write_view(results: Path, cell_id: str) -> None:
    """Write results/<cell_id>/result.json: a view of a cell in one file for readers without this
    code. It can be made anew at any time, and nothing reads it back."""
    if content := view(results, cell_id):
        write_atomic(results / cell_id / "result.json", content)


def view(results: Path, cell_id: str) -> dict | None:
    """Return a cell with the summaries of all its tasks; None if the store has none."""
    found = records(results, [cell_id])
    return {**found[0].cell.as_json(), "tasks": [r.summary() for r in found]} if found else None


def same_question(record: Record) -> tuple:
    """Return what two records must share to be compared: model, dtype, context, prompts, task and
    its options."""
    identity, options = record.identity, str(record.outcome.options)
    return str(identity.model), identity.dtype, identity.context, identity.data_seed, record.task, options


@dataclass(frozen=True)
class Comparison:
    """Records that differ only in their attention, and so can be compared."""

    model: str  # name of the model, with the start of its hash if several models share the name
    task: str
    context: int
    records: list[Record]

    @cached_property
    def exact(self) -> Record | None:
        """The record of exact ALiBi, if it has an outcome."""
        return next((r for r in self.records if r.method == EXACT and r.metrics), None)

    def windows(self, masks: Record) -> dict[str, Record]:
        """The windows that visit as many pairs as these masks, by the names of
        `harness.attentions.registry.EQUAL_COST`, as far as they are there. A window cannot visit
        more pairs than there are."""
        found = {}
        for name, (kind, match) in EQUAL_COST.items():
            if match not in masks.pairs:
                continue
            wanted = min(masks.pairs[match], (self.context - 1) / 2)
            for r in self.named(kind.name):
                pairs = r.pairs.get("fused", math.inf)
                equal = r.method.costs_as_much_as(masks.method, pairs=pairs, wanted=wanted, context=self.context)
                if equal and r.metrics:
                    found[name] = r
        return found

    def absent_windows(self, masks: Record) -> list[str]:
        """The windows of equal cost that masks are compared with by default and that are not
        there."""
        known = [name for name, (_, match) in EQUAL_COST.items() if match in masks.pairs]
        found = self.windows(masks)
        return [name for name in DEFAULT_REFERENCES if name in known and name not in found]

    def named(self, name: str) -> list[Record]:
        """Return the records of an attention method."""
        return [r for r in self.records if r.attention.name == name]


def comparisons(found: Iterable[Record]) -> list[Comparison]:
    """Group records that can be compared, ordered by model, task and context; within a group in
    the order of tables."""
    groups: dict[tuple, list[Record]] = defaultdict(list)
    identities: dict[str, list[str]] = defaultdict(list)
    for r in found:
        groups[same_question(r)].append(r)
        model = str(r.identity.model)
        if model not in identities[r.cell.model]:
            identities[r.cell.model].append(model)
    made = []
    for question, group in groups.items():
        first = group[0]
        name, known = first.cell.model, identities[first.cell.model]
        model = name if len(known) == 1 else f"{name} ({_digest(first.identity.model)})"
        group.sort(key=lambda r: (table_order(r.method), r.pairs.get("fused", math.inf), r.cell.label))
        made.append((model, first.task, first.context, str(question), group))
    return [
        Comparison(model, task, context, group) for model, task, context, _, group in sorted(made, key=lambda m: m[:4])
    ]


def _digest(model: dict) -> str:
    return hashlib.sha256(str(model).encode()).hexdigest()[:6]


@dataclass(frozen=True)
class Paired:
    """Figures of two records on their common samples.

    this, reference: figure by sample.
    draw_of: draw by sample.
    clustered: whether draws are a source of variance.
    bounded: whether the figures are scores from 0 to 1.
    """

    this: dict[int, float]
    reference: dict[int, float]
    draw_of: Mapping[int, int]
    clustered: bool
    bounded: bool


def paired(this: Record, reference: Record, field: str = "score") -> Paired:
    """Return a field of the rows of two records, paired by key where both saw the same document.

    Args:
        this: a record.
        reference: a record that can be compared with it.
        field: name of a number in `SampleRow`.
    """

    def values(record: Record, other: Record) -> dict[int, float]:
        return {
            key: value
            for key, row in record.rows.items()
            if row.doc_hash
            and key in other.rows
            and row.doc_hash == other.rows[key].doc_hash
            and (value := getattr(row, field)) is not None
        }

    random = this if this.clustered else reference
    scores = values(this, reference), values(reference, this)
    common = scores[0].keys() & scores[1].keys()
    mine, others = ({key: found[key] for key in sorted(common)} for found in scores)
    rate = field == "score" and (this.score or reference.score)  # other fields may lie in [0, 1] by chance
    return Paired(
        mine,
        others,
        {key: row.draw for key, row in random.rows.items()},
        clustered=this.clustered or reference.clustered,
        bounded=bool(rate) and all(0 <= v <= 1 for found in (mine, others) for v in found.values()),
    )


def difference(this: Record, reference: Record, field: str = "score") -> Difference | None:
    """Return the paired difference of a field of the rows, `this` minus `reference`.

    Args:
        this, reference, field: as in `paired`.

    Returns:
        The difference with its interval; None without pairs.
    """
    return difference_of(paired(this, reference, field))


def difference_of(found: Paired) -> Difference | None:
    """Return the difference of paired figures with its interval; None without pairs."""
    return paired_difference(
        found.this, found.reference, found.draw_of, clustered=found.clustered, bounded=found.bounded
    )


def reference_of(record: Record, among: Iterable[Record]) -> Record | None:
    """Return the record of exact ALiBi that can be compared with a record."""
    question = same_question(record)
    return next((r for r in among if r.method == EXACT and same_question(r) == question), None)
