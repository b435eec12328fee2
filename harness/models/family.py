"""What the harness must know of a model family to own its attention: a record of small functions,
one file per family."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields

import torch

from harness.common.errors import UserError
from kernels import alibi_slopes


@dataclass(frozen=True)
class Architecture:
    """The numbers of a model that can be known before its weights are read.

    kv_heads: heads of the keys and values where they are fewer than the queries'. positions: tokens
    beyond which the checkpoint's own attention fails (attn=stock; ours has no bound). Copies of a
    checkpoint differ in it, so it is no part of what makes two architectures equal.
    """

    family: str
    layers: int
    heads: int
    width: int
    vocabulary: int
    bias_max: float = 8
    expansion: int = 4
    kv_heads: int | None = None
    positions: int | None = field(default=None, compare=False)

    def __post_init__(self):
        """Whole numbers may be written as floats (8.0). Raises UserError for numbers that no model
        has."""
        for name in ("layers", "heads", "width", "vocabulary", "expansion", "kv_heads", "positions"):
            value = getattr(self, name)
            if value is None and name in ("kv_heads", "positions"):
                continue
            if isinstance(value, bool) or not isinstance(value, (int, float)) or value < 1 or value != value // 1:
                raise UserError(f"This model has {name}={value!r}: it must be a whole number of at least 1.")
            object.__setattr__(self, name, int(value))
        bias_max = self.bias_max
        if isinstance(bias_max, bool) or not isinstance(bias_max, (int, float)) or not 0 < bias_max < math.inf:
            raise UserError(f"This model has bias_max={bias_max!r}: it must be a number above 0.")
        if self.width % self.heads:
            raise UserError(f"This model has width={self.width}, which heads={self.heads} does not divide.")
        if self.kv_heads and self.heads % self.kv_heads:
            raise UserError(f"This model has heads={self.heads}, which kv_heads={self.kv_heads} does not divide.")

    @property
    def head_dim(self) -> int:
        return self.width // self.heads

    @property
    def kv_width(self) -> int:
        return (self.kv_heads or self.heads) * self.head_dim

    def as_dict(self) -> dict:
        """What makes two architectures equal, and what random weights depend on."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.compare}


@dataclass(frozen=True)
class Family:
    """One model family.

    architecture: raw config.json -> Architecture (UserError for a variant that is not supported).
    mend: raw config.json -> the same in the form transformers accepts.
    raw: Architecture -> raw config.json of a model with that architecture, for random weights.
    is_attention: which modules to replace.
    forward: (module, attend, *what the block hands the module in place) -> the module's own return
        value. It calls ``attend(q, k, v, scale=, dropout=)`` with the new tokens' keys and values,
        which returns the output and the probabilities, or None for them; `attend` knows the cache,
        the padding and whether the module is in training.
    idle: what the block hands the module by name and the replaced attention has no use for. The
        cache and the mask are known; anything else is refused.
    slope_factor: what the family's own code multiplies its slopes by, besides the bias itself.
    """

    name: str
    slope_order: str
    architecture: Callable[[dict], Architecture]
    mend: Callable[[dict], dict]
    raw: Callable[[Architecture], dict]
    is_attention: Callable[[torch.nn.Module], bool]
    forward: Callable
    idle: tuple[str, ...]
    slope_factor: Callable[[Architecture], float] = lambda architecture: 1.0

    def slopes(self, architecture: Architecture) -> torch.Tensor:
        """Effective ALiBi slopes, (heads,) float64: what multiplies the distance after the scores
        are scaled."""
        slopes = alibi_slopes(architecture.heads, bias_max=architecture.bias_max, order=self.slope_order)
        return slopes * self.slope_factor(architecture)
