"""The facts and small functions by which the harness replaces the attention of a model family."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields

import torch

from harness.common.errors import UserError
from kernels import alibi_slopes

LARGEST = 2**31 - 1  # of a size: transformers counts positions in 32 bits


@dataclass(frozen=True)
class Architecture:
    """Sizes of a model that are known before its weights are read.

    kv_heads: heads of keys and values if fewer than query heads, else None.
    positions: tokens beyond which the checkpoint's own attention fails (attn=stock; ours has no
        bound). Copies of one checkpoint differ in it, so comparisons ignore it.
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
        """Turn whole floats (8.0) into ints. Raises UserError for invalid sizes."""
        for name in ("layers", "heads", "width", "vocabulary", "expansion", "kv_heads", "positions"):
            value = getattr(self, name)
            if value is None and name in ("kv_heads", "positions"):
                continue
            if isinstance(value, bool) or not isinstance(value, (int, float)) or value < 1 or value != value // 1:
                raise UserError(f"This model has {name}={value!r}: it must be a whole number of at least 1.")
            if value > LARGEST:
                raise UserError(f"This model has a {name} beyond {LARGEST}: is its config.json whole?")
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
        """Return the fields that decide equality and on which random weights depend."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.compare}


@dataclass(frozen=True)
class Family:
    """One model family.

    architecture: raw config.json -> Architecture; raises UserError for an unsupported variant.
    mend: raw config.json -> a form of it that transformers accepts.
    raw: Architecture -> raw config.json of a model with that architecture, for random weights.
    is_attention: whether a module is one to replace.
    forward: (module, attend, *positional arguments of the module) -> the module's return value. It
        calls ``attend(q, k, v, scale=, dropout=)`` with keys and values of the new tokens, which
        returns the output and the attention probabilities (or None). `attend` takes care of cache,
        padding and training mode.
    ignored_arguments: keyword arguments of the module that replaced attention does not need. Cache
        and mask are handled; any other argument is refused.
    slope_factor: factor by which the family's own code multiplies the slopes.
    projections: of a family without ALiBi, whose own attention is left as it is: (attention module,
        its input) -> q, k, v before any rotary embedding, and the scale of the scores.
    """

    name: str
    slope_order: str
    architecture: Callable[[dict], Architecture]
    mend: Callable[[dict], dict]
    raw: Callable[[Architecture], dict]
    is_attention: Callable[[torch.nn.Module], bool]
    forward: Callable
    ignored_arguments: tuple[str, ...]
    slope_factor: Callable[[Architecture], float] = lambda architecture: 1.0
    projections: Callable | None = None

    def slopes(self, architecture: Architecture) -> torch.Tensor:
        """Return the effective ALiBi slopes, (heads,) float64.

        They multiply the distance after the scores are scaled.
        """
        slopes = alibi_slopes(architecture.heads, bias_max=architecture.bias_max, order=self.slope_order)
        return slopes * self.slope_factor(architecture)
