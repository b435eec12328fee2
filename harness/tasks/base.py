"""The interface of a task: it checks its options, yields rows and turns rows into metrics."""

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
    """The inputs of `Task.run`.

    samples: number of rows that make the task complete.
    batch: sequences per batch.
    done: keys of rows that are already in the store.
    model: returns the model, which is loaded at the first call.
    data: the result of the task's `prepare`.
    share: (rank, ranks) of the processes that divide the batches.
    """

    cell: Cell
    samples: int
    batch: int
    done: frozenset[int]
    model: Callable[[], LoadedModel]
    data: "Prepared | None"
    share: tuple[int, int] = (0, 1)

    def batches(self) -> Iterator[tuple[int, list[int]]]:
        """Yield (draw, sample numbers) for this process's batches, without rows that are done.

        The partition is fixed: sample i belongs to draw i mod draws, and its position within the
        draw gives its batch. Neither batches nor their ranks depend on the number of samples, or on
        the rows that are done.
        """
        draws, (rank, ranks) = self.cell.draws, self.share
        for turn, first in enumerate(range(0, -(-self.samples // draws), self.batch)):
            for draw in range(draws):
                if (turn * draws + draw) % ranks != rank:
                    continue
                positions = range(first, first + self.batch)
                keys = [p * draws + draw for p in positions if p * draws + draw < self.samples]
                keys = [k for k in keys if k not in self.done]
                if keys:
                    yield draw, keys


@dataclass(frozen=True)
class Prepared:
    """A task's data on disk: their folder, the number of samples and a hash of the samples."""

    place: Path
    count: int
    sha256: str

    @classmethod
    def from_samples(cls, place: Path, samples: Iterable[Mapping]) -> "Prepared":
        """Return the record of samples, with the sha256 of their canonical JSON."""
        total, count = hashlib.sha256(), 0
        for sample in samples:
            total.update(canonical(sample).encode() + b"\n")
            count += 1
        return cls(place, count, total.hexdigest())


def canonical(value: object) -> str:
    """Return JSON of a value that is equal in every process.

    Values unknown to JSON become text without memory addresses.
    """
    return json.dumps(value, sort_keys=True, default=lambda other: re.sub(r" at 0x[0-9a-f]+", "", str(other)))


class Task(Protocol):
    """A task, run on a cell. harness.tasks.retrieval.task is an example."""

    @property
    def name(self) -> str: ...

    @property
    def rows_are(self) -> str:
        """The kind of rows, "samples" or "repeats"."""
        ...

    @property
    def needs_model(self) -> bool:
        """Whether `run` calls the model."""
        ...

    @property
    def runs_weights(self) -> bool:
        """Whether the model runs under the cell's weights."""
        ...

    @property
    def needs_trained_weights(self) -> bool:
        """Whether model.weights=random is refused, because the result would be meaningless."""
        ...

    @property
    def natural_text(self) -> bool:
        """Whether models that know only the grammar of our prompts are refused."""
        ...

    @property
    def generates(self) -> int:
        """Maximum number of tokens after the `context` tokens of the prompt."""
        ...

    def identity(self, options: Any) -> dict:
        """Return the options as JSON for the task's id, with files by content instead of path."""
        ...

    def identity_on(self, options: Any, cell: Cell) -> dict:
        """Return what the id holds besides the options: hashes of local data and chat template.

        It may depend only on the parts of the cell that `prepare` depends on.

        Raises:
            UserError: if such data cannot be read.
        """
        ...

    def check(self, options: Any, cell: Cell) -> None:
        """Raise UserError for invalid options, and for a cell that the task cannot run on.

        It may depend only on the cell's model, attention, kernel and context: cells that agree in
        them are checked once.
        """
        ...

    def amount(self, options: Any, cell: Cell, samples: int, batch: int) -> tuple[int, int]:
        """Return the number of rows of the complete task, and of sequences per batch.

        Args:
            options: the task's options.
            cell: the cell.
            samples: the run's option samples, the usual number of rows.
            batch: the run's option batch, the usual number of sequences.
        """
        ...

    def prepare(self, options: Any, cell: Cell, samples: int, folder: Path) -> Prepared | None:
        """Make or fetch the task's data; return None for a task without data.

        The data may depend only on the cell's tokenizer, context and data_seed: cells that agree in
        them share it.

        Args:
            options: the task's options.
            cell: the cell.
            samples: number of samples.
            folder: folder for the data.
        """
        ...

    def run(self, options: Any, context: TaskContext) -> Iterator[Sequence[Row]]:
        """Yield rows in batches, fewer than `context.samples` in total if the data has fewer."""
        ...

    def row(self, line: Mapping[str, Any]) -> Row:
        """Return a row of the store as `metrics` expects it: `SampleRow.read` or a subclass's."""
        ...

    def metrics(self, options: Any, rows: Sequence[Any], *, clustered: bool) -> dict[str, Metric]:
        """Return metrics by name, beginning with the headline of tables.

        Args:
            options: the task's options.
            rows: all rows.
            clustered: whether rows are clustered by draw, for intervals.
        """
        ...


@dataclass(frozen=True)
class PlannedTask:
    """A task with its options.

    machine: for timings, the device and software versions, which the task's id contains too.
    """

    task: Task
    options: Any
    machine: Mapping[str, Any] = field(default_factory=dict)

    @functools.cached_property
    def asked(self) -> dict:
        """The part of the task's id that is common to all cells."""
        return {**self.task.identity(self.options), **self.machine}

    def identity(self, cell: Cell) -> dict:
        """Return the content of the task's id."""
        return {**self.asked, **self.task.identity_on(self.options, cell)}

    def prepare(self, cell: Cell, samples: int, results: Path) -> Prepared | None:
        """Prepare the task's data in a results folder (`Task.prepare`).

        Args:
            cell: the cell.
            samples: number of samples.
            results: the results folder.
        """
        return self.task.prepare(self.options, cell, samples, results / "data")


class TaskFamily(Protocol):
    """The tasks of `task=NAME`: a module-level object of harness.tasks.registry.

    A task that is alone in its family may be the family itself.
    """

    @property
    def name(self) -> str: ...

    @property
    def options(self) -> type:
        """Dataclass of the options under task.NAME."""
        ...

    def tasks(self, options: Any) -> list[PlannedTask]:
        """Return the tasks that the options select.

        Raises:
            UserError: for options that select none, and for invalid values.
        """
        ...
