"""What the harness must know of a model family to own its attention: a record of small functions, one file per
family."""

from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch

from kernels import alibi_slopes


@dataclass(frozen=True)
class Architecture:
    """The numbers of a model that can be known before its weights are read."""

    family: str
    layers: int
    heads: int
    width: int
    vocabulary: int
    bias_max: float = 8
    expansion: int = 4

    @property
    def head_dim(self) -> int:
        return self.width // self.heads

    def as_dict(self) -> dict:
        return asdict(self)


@dataclass(frozen=True)
class Family:
    """One model family.

    architecture: raw config.json -> Architecture (UserError for a variant that is not supported).
    mend: raw config.json -> the same in the form transformers accepts.
    is_attention: which modules to replace.
    forward: (module, attend, *the module's own arguments) -> the module's own return value.
    """

    name: str
    slope_order: str
    architecture: Callable[[dict], Architecture]
    mend: Callable[[dict], dict]
    is_attention: Callable[[torch.nn.Module], bool]
    forward: Callable

    def slopes(self, architecture: Architecture) -> torch.Tensor:
        """Effective ALiBi slopes, (heads,) float64: what multiplies the distance after the scores are scaled."""
        return alibi_slopes(architecture.heads, bias_max=architecture.bias_max, order=self.slope_order)


def extend_cache(cache, k: torch.Tensor, v: torch.Tensor, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Append keys and values (batch, heads, tokens, head_dim) to a transformers cache, return all of them."""
    if cache is None:
        return k, v
    if getattr(cache, "is_compileable", False):
        raise ValueError(
            f"{type(cache).__name__} hands out its whole buffer, filled or not, so a key's position cannot be told: "
            "use DynamicCache (generate's default)."
        )
    return cache.update(k, v, layer)
