"""How a fused kernel computes the weight of a visited pair, and what compiled kernels know of
weights."""

from enum import StrEnum
from typing import NamedTuple


class Law(StrEnum):
    """The form of a pair's weight; `kernels.impl.tables` says which tables each law reads. A law is
    equal to its name."""

    LINEAR = "linear"  # the log-weight is -slope * distance
    RAO_BLACKWELL = "rb"  # a formula of exp(-slope * distance) and the number of masks
    DISTANCE = "distance"  # a table of the log-weight by distance
    COUNT = "count"  # the number of masks that cover the pair
    SUM = "sum"  # the sum of the weights of the masks that cover the pair

    @property
    def per_mask(self) -> bool:
        """Whether the weight depends on which masks cover the pair."""
        return self in (Law.COUNT, Law.SUM)

    @property
    def uses_mask_count(self) -> bool:
        """Whether kernels over tiles are compiled for the number of masks."""
        return self not in (Law.LINEAR, Law.DISTANCE)

    @property
    def uses_lookup(self) -> bool:
        """Whether the weight is read from a table for each pair."""
        return self in (Law.DISTANCE, Law.SUM)


class Kind(NamedTuple):
    """The properties of weights that compiled kernels depend on, in plain words."""

    method: str  # alibi, window or plsh
    weights: str = ""  # of Positional LSH, as are the sampler and the masks
    sampler: str = ""
    masks: int = 0
    sinks: int = 0
    align: int = 0  # tokens of a grid cell, 0 without a grid
    near: int = 0
