"""What a task is: one file that checks its options, yields rows, and turns rows into metrics."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from harness.cell import Cell
from harness.models.load import LoadedModel
from harness.stats import Metric


@dataclass
class TaskContext:
    """What a task gets to run with.

    samples: how many samples are wanted; done: keys of rows that are in the store already.
    model: the loaded model, loaded at the first call.
    """

    cell: Cell
    samples: int
    batch: int
    done: frozenset[int]
    model: Callable[[], LoadedModel]
    data_folder: str

    def batches(self) -> Iterator[tuple[int, list[int]]]:
        """(draw, sample numbers) in a fixed partition: sample i belongs to draw i mod draws, and to the batch that its
        place within the draw says, however many samples are wanted or done."""
        draws = self.cell.draws
        for first in range(0, -(-self.samples // draws), self.batch):
            for draw in range(draws):
                places = range(first, first + self.batch)
                keys = [p * draws + draw for p in places if p * draws + draw < self.samples]
                keys = [k for k in keys if k not in self.done]
                if keys:
                    yield draw, keys


@dataclass(frozen=True)
class Task(Protocol):
    """A task is a module-level object with these attributes (see harness.tasks.retrieval)."""

    name: str
    options: type  # dataclass of the task's own options
    rows_are: str  # "samples" or "repeats"
    needs_model: bool
    needs_trained_weights: bool  # refuse model.weights=random: what is measured would say nothing
    generates: int  # tokens a model sees at most after the `context` of its prompt

    def identity(self, options: Any) -> dict:
        """The options as they enter the task's id, as plain JSON: a file by its content, not by its path."""
        ...

    def check(self, options: Any, cell: Cell) -> None: ...

    def run(self, options: Any, context: TaskContext) -> Iterator[list[dict]]: ...

    def metrics(self, options: Any, rows: Sequence[Mapping], *, clustered: bool) -> dict[str, Metric]: ...
