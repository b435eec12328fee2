"""The interface of a sampler of masks: how it draws, and which of its expectations are known in
closed form."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar

import torch

MATCHES = ("fused", "passes")  # pairs of the union, and of the masks one by one


class Sampler(ABC):
    """A distribution of S contiguous block-diagonal masks (`kernels.methods.masks.Masks`). A new
    sampler is one file beside this one and one line in `kernels.methods.samplers`. Only `draw` is
    required:

    * without `log_coverage` there are no weights "rb" and no expected pairs of the union;
    * without `lone_coverage` there are no expected pairs of the masks one by one.
    """

    name: ClassVar[str]
    random: ClassVar[bool] = True  # False: all masks of all draws are equal
    independent: ClassVar[bool] = False  # S independent masks, each covering a pair with probability exp(-t)

    # (t float64 of any shape, S): log-probability that at least one of S masks covers a pair t
    # sigmas apart
    log_coverage: Callable[[torch.Tensor, int], torch.Tensor] | None = None
    # (t): probability that one mask covers the pair, averaged over the S masks
    lone_coverage: Callable[[torch.Tensor], torch.Tensor] | None = None
    # (slopes, masks, tokens, match, sinks, near): expected pairs beyond the sinks, for samplers whose
    # coverage depends on the position; pairs of the near field count once
    pairs: Callable[[torch.Tensor, int, int, str, int, int], float] | None = None

    @abstractmethod
    def draw(self, masks: int, uniform: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Returns width in units of sigma, shift in units of the width, and log of the mask's
        weight in the sum ``(1/S) sum_s``: three (H, S) float64, from independent numbers of (0, 1),
        (H, 3 S) float64."""

    @property
    def matches(self) -> tuple[str, ...]:
        """The MATCHES for which `kernels.methods.cost.expected_pairs` is known."""
        if self.pairs is not None:
            return MATCHES
        known = {"fused": self.log_coverage, "passes": self.lone_coverage}
        return tuple(match for match in MATCHES if known[match] is not None)
