"""A cell: one model under one attention at one context. Its identity is a dictionary of what the
results depend on; its id is a hash of exactly that, so options that cannot matter collapse to null
and the same cell is never run twice."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace

from harness.attentions.base import Attention
from harness.common.files import short_hash
from harness.models.spec import ModelSpec
from kernels import Weights

SCHEMA = 1
DRAWS = 8  # of the masks, where the configuration does not say


@dataclass(frozen=True)
class Cell:
    model: ModelSpec
    attention: Attention
    kernel: str
    context: int
    seed: int
    draws: int
    data_seed: int

    @property
    def identity(self) -> dict:
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
        return short_hash(self.identity)

    def task_id(self, name: str, options: dict) -> str:
        return short_hash({"cell": self.cell_id, "task": name, "options": options})

    def with_attention(self, attention: Attention, *, draws: int = 1) -> "Cell":
        return replace(self, attention=attention, draws=draws)

    def weights(self, draw: int) -> Sequence[Weights] | None:
        """The weights of every layer in one draw of the masks; None where the checkpoint's own code
        decides."""
        return self.attention.weights_of(self.model, seed=self.seed, draw=draw)

    def cost(self) -> dict[str, float]:
        """Visited pairs per row and head, key before query, expected over draws
        (`Attention.pairs`)."""
        rows = self.context * len(self.model.slopes)
        return {match: pairs / rows for match, pairs in self.attention.pairs(self.model, self.context).items()}
