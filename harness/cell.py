"""A cell: one model under one attention at one context.

Its identity is a dictionary of everything on which results depend, and its id is the hash of the
identity. Options that cannot matter are null in it, so that a cell is never run twice.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace

from harness.attentions.base import Attention
from harness.common.files import short_hash
from harness.models.spec import ModelSpec
from kernels import Weights

SCHEMA = 1
DRAWS = 8  # default number of draws of random masks


@dataclass(frozen=True)
class Cell:
    """A model, an attention and all options that its results depend on."""

    model: ModelSpec
    attention: Attention
    kernel: str
    context: int
    seed: int
    draws: int
    data_seed: int

    @property
    def identity(self) -> dict:
        """Everything on which results depend, as JSON."""
        attention = self.attention
        return {
            "schema": SCHEMA,
            "model": self.model.identity,
            "dtype": self.model.dtype,
            "attn": attention.identity,
            "kernel": None if attention.native else self.kernel,
            "context": self.context,
            "seed": self.seed if attention.random else None,
            "draws": self.draws if attention.random else None,
            "data_seed": self.data_seed,
        }

    @functools.cached_property
    def cell_id(self) -> str:
        """Hash of the identity."""
        return short_hash(self.identity)

    def task_id(self, name: str, options: dict) -> str:
        """Return the hash of the cell, a task's name and the options in its identity."""
        return short_hash({"cell": self.cell_id, "task": name, "options": options})

    def with_attention(self, attention: Attention, *, draws: int = 1) -> "Cell":
        """Return the cell with another attention."""
        return replace(self, attention=attention, draws=draws)

    def weights(self, draw: int) -> Sequence[Weights] | None:
        """Return the weights of every layer in one draw; None for the checkpoint's own code.

        Raises:
            ValueError: if the method has not made one for each layer.
        """
        weights = self.attention.weights_of(self.model, seed=self.seed, draw=draw)
        layers = self.model.architecture.layers
        if weights is not None and len(weights) != layers:
            raise ValueError(f"attn={self.attention.name} returned the weights of {len(weights)} layers of {layers}")
        return weights

    def cost(self) -> dict[str, float]:
        """Return expected visited pairs per row and head, by way to count (`Attention.pairs`)."""
        rows = self.context * len(self.model.slopes)
        return {match: pairs / rows for match, pairs in self.attention.pairs(self.model, self.context).items()}
