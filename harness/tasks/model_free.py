"""What the tasks share that measure weights alone, without loading a model."""

from pathlib import Path
from typing import Any, cast

from harness.attentions.base import Attention
from harness.cell import Cell
from harness.common.errors import UserError
from harness.tasks.base import PlannedTask, Task


def refuse_unknown_weights(task: str, attention: Attention) -> None:
    """Raise UserError for an attention without weights, and for one whose weights depend on the
    scores."""
    if attention.native:
        raise UserError(f"task={task} measures weights, and attn={attention.name} has none: use attn=alibi.")
    if attention.by_score:
        raise UserError(
            f"task={task} measures weights, and under attn={attention.name} those depend on the scores of a model: "
            "use another attn."
        )


class ModelFreeTask:
    """A task on the weights of a model's slopes: everything but its options, rows and metrics.

    min_context: smallest context in tokens.
    """

    name: str
    min_context: int
    rows_are = "samples"
    needs_model = False
    runs_weights = False
    needs_trained_weights = False
    natural_text = False
    generates = 0

    def tasks(self, options: Any) -> list[PlannedTask]:
        return [PlannedTask(cast(Task, self), options)]  # a subclass has the rest

    def identity_on(self, options: Any, cell: Cell) -> dict:
        return {}

    def check(self, options: Any, cell: Cell) -> None:
        """Raise UserError for an attention without weights, for one whose weights depend on the scores,
        and for a short context."""
        refuse_unknown_weights(self.name, cell.attention)
        if cell.context < self.min_context:
            raise UserError(
                f"task={self.name} needs a context of at least {self.min_context} tokens, not {cell.context}."
            )

    def prepare(self, options: Any, cell: Cell, samples: int, folder: Path) -> None:
        return None
