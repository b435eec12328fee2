"""What a sampler of masks is: how it draws, and what is known of its masks in closed form."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar

import torch

MATCHES = ("fused", "passes")  # pairs of the union, and of the masks one by one


class Sampler(ABC):
    """A law of S contiguous block-diagonal masks (`kernels.methods.masks.Masks`). A new one is one
    file like those beside this one and one line in `kernels.methods.samplers`; it needs `draw`
    alone, and what it lacks cannot be asked for:

    * `log_coverage`: without it there are no weights "rb" and no expected pairs of the union;
    * `lone_coverage`: without it there are no expected pairs of the masks one by one.
    """

    name: ClassVar[str]
    random: ClassVar[bool] = True  # False: all masks of all draws are one and the same
    independent: ClassVar[bool] = False  # S independent masks of one law that cover a pair with probability exp(-t)

    # log of the probability that at least one of S masks covers a pair t sigmas apart: (t float64
    # of any shape, S)
    log_coverage: Callable[[torch.Tensor, int], torch.Tensor] | None = None
    # probability that one mask does, the mean over the S masks: (t)
    lone_coverage: Callable[[torch.Tensor], torch.Tensor] | None = None
    # expected pairs beyond the sinks where they depend on the position: (slopes, masks, tokens,
    # match, sinks)
    pairs: Callable[[torch.Tensor, int, int, str, int], float] | None = None

    @abstractmethod
    def draw(self, masks: int, uniform: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Width in units of sigma, shift in widths, and log of the mask's weight in the sum ``(1/S)
        sum_s``: three (H, S) float64, from independent numbers of (0, 1), (H, 3 S) float64."""

    @property
    def matches(self) -> tuple[str, ...]:
        """Which of MATCHES have an expectation: `kernels.methods.cost.expected_pairs`."""
        if self.pairs is not None:
            return MATCHES
        known = {"fused": self.log_coverage, "passes": self.lone_coverage}
        return tuple(match for match in MATCHES if known[match] is not None)
