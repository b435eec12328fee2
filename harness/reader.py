"""The one reader of the store: records of cells, and their comparison sample by sample. Comparisons are computed here
and never stored."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from harness.stats import Difference, paired_difference
from harness.store import TaskStore, read_json, write_atomic


@dataclass(frozen=True)
class Record:
    """One task of one cell as the store has it."""

    cell: dict
    store: TaskStore

    @property
    def cell_id(self) -> str:
        return self.cell["cell_id"]

    @property
    def task(self) -> str:
        return self.store.name

    @cached_property
    def status(self) -> str:
        return self.store.status()

    @property
    def attention(self) -> dict:
        return self.cell["identity"]["attn"]

    @property
    def clustered(self) -> bool:
        return (self.cell["identity"]["draws"] or 1) > 1

    @cached_property
    def outcome(self) -> dict:
        """task.json if finished, else the last recorded attempt, else nothing."""
        attempts = self.store.attempts()
        return self.store.finished() or (attempts[-1] if attempts else {})

    @property
    def metrics(self) -> dict[str, dict]:
        return self.outcome.get("metrics", {})

    @property
    def rows_are(self) -> str:
        return self.outcome.get("rows_are", "samples")

    @property
    def headline(self) -> str:
        """The metric that a table shows: the task's first."""
        return next(iter(self.metrics), f"{self.task}/accuracy")

    def summary(self) -> dict:
        """Status, options and metrics as plain JSON. A cell may hold one task several times, with other options."""
        about = {"task": self.task, "task_id": self.store.task_id, "status": self.status, "samples": len(self.rows)}
        return {**about, "options": self.outcome.get("options"), "metrics": self.metrics}

    @cached_property
    def rows(self) -> dict[int, dict]:
        """Rows by sample: those that the metrics are made of, or all there are while nothing is finished."""
        rows, finished = self.store.rows(), self.store.finished()
        return {k: row for k, row in rows.items() if k < finished["samples"]} if finished else rows


def records(results: Path, cell_ids: Iterable[str] | None = None) -> list[Record]:
    """Records of the given cells in their order, or of all cells of the store; unfinished and failed ones included."""
    folders = (
        [results / c for c in cell_ids]
        if cell_ids is not None
        else sorted(p.parent for p in results.glob("*/cell.json"))
    )
    found = []
    for folder in folders:
        cell = read_json(folder / "cell.json")
        if cell is None:
            continue
        for place in sorted(p for p in folder.iterdir() if p.is_dir() and "-" in p.name):
            task, task_id = place.name.rsplit("-", 1)
            found.append(Record(cell, TaskStore(results, folder.name, task, task_id)))
    return found


def write_view(results: Path, cell_id: str) -> None:
    """Put results/<cell_id>/result.json in place: all of a cell in one file, for readers without this code. A view that
    can be made again at any time; nothing reads it back."""
    found = view(results, cell_id)
    if found:
        write_atomic(results / cell_id / "result.json", found)


def view(results: Path, cell_id: str) -> dict | None:
    """The cell and the summaries of all its tasks; None if the store has none."""
    found = records(results, [cell_id])
    return {**found[0].cell, "tasks": [r.summary() for r in found]} if found else None


def same_question(record: Record) -> tuple:
    """What two records must share to be compared: model, dtype, context, prompts, task and its options."""
    identity = record.cell["identity"]
    options = record.outcome.get("options")
    return (
        str(identity["model"]),
        identity["dtype"],
        identity["context"],
        identity["data_seed"],
        record.task,
        str(options),
    )


def difference(this: Record, reference: Record, field: str = "score") -> Difference | None:
    """Paired difference of a row field. Samples are paired by key, and only where both saw the very same document."""

    def values(record: Record, other: Record) -> dict[int, float]:
        return {
            key: row[field]
            for key, row in record.rows.items()
            if key in other.rows and row["doc_hash"] == other.rows[key]["doc_hash"] and row[field] is not None
        }

    random = this if this.clustered else reference
    draw_of: Mapping[int, int] = {key: row["draw"] for key, row in random.rows.items()}
    return paired_difference(
        values(this, reference), values(reference, this), draw_of, clustered=this.clustered or reference.clustered
    )


def reference_of(record: Record, among: Iterable[Record]) -> Record | None:
    """The record of exact ALiBi that asks the same question."""
    question = same_question(record)
    return next((r for r in among if r.attention["name"] == "alibi" and same_question(r) == question), None)
