"""What a task is: one file that checks its options, yields rows, and turns rows into metrics."""

import functools
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from harness.cell import Cell
from harness.common.stats import Metric
from harness.models.load import LoadedModel
from harness.results.schema import Row


@dataclass
class TaskContext:
    """What a task gets to run with.

    samples: how many rows are wanted; done: keys of rows that are in the store already.
    model: the loaded model, loaded at the first call. data: what the task's `prepare` gave.
    share: this process among how many that divide the batches.
    """

    cell: Cell
    samples: int
    batch: int
    done: frozenset[int]
    model: Callable[[], LoadedModel]
    data: "Prepared | None"
    share: tuple[int, int] = (0, 1)

    def batches(self) -> Iterator[tuple[int, list[int]]]:
        """(draw, sample numbers) in a fixed partition: sample i belongs to draw i mod draws, and to
        the batch that its place within the draw says, however many samples are wanted or done. So
        does whose share the batch is."""
        draws, (own, sharers) = self.cell.draws, self.share
        for turn, first in enumerate(range(0, -(-self.samples // draws), self.batch)):
            for draw in range(draws):
                if (turn * draws + draw) % sharers != own:
                    continue
                places = range(first, first + self.batch)
                keys = [p * draws + draw for p in places if p * draws + draw < self.samples]
                keys = [k for k in keys if k not in self.done]
                if keys:
                    yield draw, keys


@dataclass(frozen=True)
class Prepared:
    """A task's data on disk: where, how many samples there are, and a hash of them."""

    place: Path
    count: int
    sha256: str

    @classmethod
    def of(cls, place: Path, samples: Iterable[Mapping]) -> "Prepared":
        """sha256 over the samples as canonical JSON."""
        total, count = hashlib.sha256(), 0
        for sample in samples:
            total.update(canonical(sample).encode() + b"\n")
            count += 1
        return cls(place, count, total.hexdigest())


def canonical(value: object) -> str:
    """JSON of a value, the same in every process: what JSON does not know stands as text, without
    its address."""
    return json.dumps(value, sort_keys=True, default=lambda other: re.sub(r" at 0x[0-9a-f]+", "", str(other)))


class Task(Protocol):
    """What is run on a cell (see harness.tasks.retrieval.task)."""

    @property
    def name(self) -> str: ...

    @property
    def rows_are(self) -> str:
        """ "samples" or "repeats"."""
        ...

    @property
    def needs_model(self) -> bool: ...

    @property
    def needs_trained_weights(self) -> bool:
        """Refuse model.weights=random: what is measured would say nothing."""
        ...

    @property
    def natural_text(self) -> bool:
        """Refuse models that know nothing but the words of our prompts."""
        ...

    @property
    def generates(self) -> int:
        """Tokens a model sees at most after the `context` of its prompt."""
        ...

    def identity(self, options: Any) -> dict:
        """The options as they enter the task's id, as plain JSON: a file by its content, not by its
        path."""
        ...

    def identity_on(self, options: Any, cell: Cell) -> dict:
        """What else enters the id on this cell, because it is found and not asked for: the content
        of local data that may be edited, of what the model's tokenizer brings. Of the cell it
        depends on what `prepare` depends on. Raises UserError where it cannot be had."""
        ...

    def check(self, options: Any, cell: Cell) -> None:
        """Raise UserError for options that make no sense. Of the cell it depends on model,
        attention, kernel and context alone: cells that differ in nothing else are checked once."""
        ...

    def amount(self, options: Any, cell: Cell, samples: int, batch: int) -> tuple[int, int]:
        """How many rows make the task complete, and how many sequences it computes at a time: what
        the run asks for by `samples` and `batch`, unless the task counts by options of its own."""
        ...

    def prepare(self, options: Any, cell: Cell, samples: int, folder: Path) -> Prepared | None:
        """Make or fetch the task's data and keep it in `folder`; None for a task without data. Of
        the cell it depends on the model's tokenizer, context and data_seed alone: cells that differ
        in nothing else share it."""
        ...

    def run(self, options: Any, context: TaskContext) -> Iterator[Sequence[Row]]:
        """Rows in batches. Fewer than `context.samples` in all where there are no more."""
        ...

    def row(self, line: Mapping[str, Any]) -> Row:
        """A row from the store, as `metrics` takes it: `SampleRow.read` or that of a type with
        fields of the task's own."""
        ...

    def metrics(self, options: Any, rows: Sequence[Any], *, clustered: bool) -> dict[str, Metric]:
        """Metrics by name, the one that tables show first."""
        ...


@dataclass(frozen=True)
class PlannedTask:
    """machine: what else the task's id holds, for a task whose rows are repeats of a timing."""

    task: Task
    options: Any
    machine: Mapping[str, Any] = field(default_factory=dict)

    @functools.cached_property
    def asked(self) -> dict:
        """What enters the task's id on every cell."""
        return {**self.task.identity(self.options), **self.machine}

    def identity(self, cell: Cell) -> dict:
        """What enters the task's id."""
        return {**self.asked, **self.task.identity_on(self.options, cell)}

    def prepare(self, cell: Cell, samples: int, results: Path) -> Prepared | None:
        """The task's data in this results folder, as `Task.prepare` gives it."""
        return self.task.prepare(self.options, cell, samples, results / "data")


class TaskFamily(Protocol):
    """What `task=NAME` chooses: a module-level object of harness.tasks.registry. A family of one is
    a task itself."""

    @property
    def name(self) -> str: ...

    @property
    def options(self) -> type:
        """Dataclass of the options under task.NAME."""
        ...

    def tasks(self, options: Any) -> list[PlannedTask]: ...
