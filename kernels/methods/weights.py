"""What attention is computed: the multiplicative weights L' on the pairs (i, j), apart from how a
kernel applies them.

Attention under weights w is the row-normalised ``exp(q.k * scale) * w`` times V. Each class below
defines w by one dense formula (`log_dense`, for oracles and small n) and gives the same numbers
piece by piece for kernels that never build n x n.

Sinks: the first `sinks` tokens stay visible to every row with the exact weight ``exp(-m |i - j|)``,
the pairs that the window or the masks cover too: attention that models park on the first tokens is
neither cut nor estimated.
"""

import math
import operator
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch

# How a fused kernel weighs a pair: see `kernels.impl.tables`.
Law = Literal["linear", "rb", "distance", "count", "sum"]

ENDLESS = 2.0**52  # tokens, a whole number in float64


class Weights(ABC):
    """Weights of H heads. Positions are whole token coordinates >= 0; log-weight -inf means the
    pair is not visited."""

    slopes: torch.Tensor
    sinks: int = 0
    span: int | None = (
        None  # how far back any row of any head can reach at most, in tokens, sinks apart; None: no bound
    )
    law: Law | None = None  # None: fused kernels have no tables for these weights
    count: int = 0  # masks, 0 of weights without

    @property
    def heads(self) -> int:
        return len(self.slopes)

    @property
    def numbers_per_row(self) -> int:
        """How many numbers describe what one row visits: what a kernel that works by pieces must
        have room for."""
        return 1

    @abstractmethod
    def log_dense(self, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        """log w of every pair by its definition: rows (R,), columns (N,) -> (H, R, N) float64. Not
        causal."""

    @abstractmethod
    def reach(self, heads: torch.Tensor, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """First and last visited column of each row beyond the sinks, to the left and right: rows
        (G, C) of heads (G,) -> two (G, C) int64. Both are non-decreasing in the row, the first is
        at least `sinks` (and so may lie after the row, which then sees sinks alone); the last is
        not clipped to the number of tokens."""

    @abstractmethod
    def log_piece(
        self, heads: torch.Tensor, rows: torch.Tensor, first: torch.Tensor, width: int, causal: bool
    ) -> torch.Tensor:
        """log w of a piece: consecutive rows (G, C) of heads (G,) against columns first[g] ..
        first[g] + width - 1 -> (G, C, width) float32. Columns below `sinks`, and with `causal`
        those after the row, get -inf."""

    def log_sinks(self, heads: torch.Tensor, rows: torch.Tensor, columns: int, causal: bool) -> torch.Tensor:
        """log w of consecutive rows (G, C) of heads (G,) against the sinks 0 .. columns - 1: (G, C,
        columns) float32."""
        assert columns <= self.sinks
        first = torch.zeros_like(rows[:, 0])
        return by_distance(Alibi(self.slopes)._log_distance, heads, rows, first, columns, causal)

    @property
    def counted(self) -> int:
        """How many masks a fused kernel counts pair by pair, 0 where a formula or a table gives the
        weight."""
        return self.count if self.law in ("count", "sum") else 0

    @property
    def kind(self) -> tuple:
        """What compiled kernels know of the weights, in plain words: (class, kind, sampler, masks,
        sinks)."""
        return type(self).__name__.lower(), "", "", 0, self.sinks

    @classmethod
    def example(cls, slopes: torch.Tensor, kind: str, sampler: str, masks: int, sinks: int) -> "Weights":
        """Weights of the class with that `kind`, for a check of kernels."""
        raise ValueError(f"{cls.__name__} has no example.")

    def pack(self) -> torch.Tensor:
        """What a fused kernel reads of the weights: (H, 1 + 4 S) float64, slope, then widths,
        shifts, weights and reciprocal widths of the masks, and after them the three of
        `Masks.grid`, if any; or (H, 2), slope and farthest distance, of weights without masks."""
        raise ValueError(no_tables(self))

    def halves(self) -> tuple["Weights", "Weights"]:
        """The same weights by each half of the masks, two independent estimates. Raises ValueError
        for weights without two such halves."""
        raise ValueError(
            f"return_spread=True compares two halves of random masks, and {type(self).__name__} has none: use "
            "PositionalLSH.draw(...), or leave it out."
        )

    def matrix(self, tokens: int) -> torch.Tensor:
        """Dense w: (H, tokens, tokens) float64, not yet made causal. For small n."""
        position = torch.arange(tokens)
        return self.log_dense(position, position).exp()

    def pairs(self, tokens: int) -> torch.Tensor:
        """Visited pairs (key before query) of each head in a causal context of `tokens`, sinks
        included: (H,) int64."""
        rows = torch.arange(tokens)[None].expand(self.heads, -1)
        first, _ = self.reach(torch.arange(self.heads), rows)
        return (rows - first).clamp_min(0).sum(1) + rows.clamp_max(self.sinks).sum(1)


def no_tables(weights: Weights) -> str:
    """Why fused kernels cannot compute weights whose law is None."""
    return f"No tables for {type(weights).__name__}: use kernel='sdpa' or 'exact' with it."


def check_slopes(slopes: torch.Tensor) -> torch.Tensor:
    slopes = torch.as_tensor(slopes, dtype=torch.float64, device="cpu")
    if slopes.ndim != 1 or len(slopes) == 0 or not bool(((slopes > 0) & slopes.isfinite()).all()):
        raise ValueError(
            "slopes must be a list of finite positive numbers, one per head (the bias is -m|i-j|: a negative one would "
            f"reward distance); got {slopes.tolist()!r}."
        )
    return slopes


def check_whole(name: str, value: int, least: int, end: int = 2**63) -> int:
    """The value, if it is a whole number of least .. end - 1."""
    try:
        number = operator.index(None if isinstance(value, bool) else value)
    except TypeError:
        raise ValueError(f"{name} must be a whole number, not {value!r}.") from None
    if number < least:
        raise ValueError(f"{name} must be at least {least}, not {number}.")
    if number >= end:
        raise ValueError(f"{name} must be below {end}, not {number}.")
    return number


def by_distance(
    formula: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    heads: torch.Tensor,
    rows: torch.Tensor,
    first: torch.Tensor,
    width: int,
    causal: bool,
    begin: int = 0,
) -> torch.Tensor:
    """A piece (see `Weights.log_piece`) whose log-weight depends on the distance alone, by
    ``formula(heads (U,), distance (U, N) int64) -> (U, N)``. Every row is the same list of numbers
    moved on by one, and chunks of one head lie alike to their columns: the formula is evaluated
    once for each distinct list, the rest is copying. Columns before `begin` get -inf."""
    length = rows.shape[1]
    layout, member = torch.unique(torch.stack([heads, rows[:, 0] - first], 1), dim=0, return_inverse=True)
    ahead = layout[:, 1:] + (length - 1) - torch.arange(width + length - 1, device=rows.device)
    values = formula(layout[:, 0], ahead.abs()).float()
    if causal:
        values = values.masked_fill(ahead < 0, -math.inf)
    log_w = values.unfold(1, width, 1).flip(1).index_select(0, member)
    if bool((first < begin).any()):
        log_w.masked_fill_((torch.arange(width, device=rows.device) < begin - first[:, None])[:, None, :], -math.inf)
    return log_w


@dataclass(frozen=True)
class Alibi(Weights):
    """Exact ALiBi: ``w = exp(-m |i - j|)`` (arXiv 2108.12409)."""

    slopes: torch.Tensor

    law = "linear"

    def __post_init__(self):
        object.__setattr__(self, "slopes", check_slopes(self.slopes))

    @classmethod
    def example(cls, slopes, kind, sampler, masks, sinks):
        return cls(slopes)

    def pack(self):
        return torch.stack([self.slopes, torch.full_like(self.slopes, ENDLESS)], 1)

    def log_dense(self, rows, columns):
        distance = (rows[:, None] - columns[None, :]).abs().double()
        return -self.slopes.to(rows.device)[:, None, None] * distance

    def reach(self, heads, rows):
        return torch.zeros_like(rows), torch.full_like(rows, torch.iinfo(torch.int64).max)

    def log_piece(self, heads, rows, first, width, causal):
        return by_distance(self._log_distance, heads, rows, first, width, causal)

    def _log_distance(self, heads: torch.Tensor, distance: torch.Tensor) -> torch.Tensor:
        return -self.slopes[heads.cpu()].to(distance.device)[:, None] * distance


@dataclass(frozen=True)
class Window(Weights):
    """Exact ALiBi cut where the bias falls below -cutoff: ``w = exp(-m |i - j|)`` if ``m |i - j| <=
    cutoff`` or j is a sink, or 0."""

    slopes: torch.Tensor
    cutoff: float
    sinks: int = 0

    law = "linear"

    def __post_init__(self):
        object.__setattr__(self, "sinks", check_whole("sinks", self.sinks, 0))
        object.__setattr__(self, "slopes", check_slopes(self.slopes))
        if not self.cutoff >= 0:
            raise ValueError(f"cutoff must be at least 0 (in units of 1/slope), not {self.cutoff}.")

    @classmethod
    def example(cls, slopes, kind, sampler, masks, sinks):
        return cls(slopes, 5.0, sinks)

    def pack(self):
        return torch.stack([self.slopes, self.tokens.double()], 1)

    @property
    def tokens(self) -> torch.Tensor:
        """Farthest visible distance of each head, (H,) int64."""
        return torch.floor((self.cutoff / self.slopes).clamp_max(2.0**62)).long()

    @property
    def span(self) -> int:
        return int(self.tokens.max())

    def log_dense(self, rows, columns):
        distance = (rows[:, None] - columns[None, :]).abs()[None]
        full = Alibi(self.slopes).log_dense(rows, columns)
        cut = (distance > self.tokens.to(rows.device)[:, None, None]) & (columns >= self.sinks)
        return full.masked_fill(cut, -math.inf)

    def reach(self, heads, rows):
        span = self.tokens[heads.cpu()].to(rows.device)[:, None]
        return (rows - span).clamp_min(self.sinks), rows + span

    def log_piece(self, heads, rows, first, width, causal):
        return by_distance(self._log_distance, heads, rows, first, width, causal, self.sinks)

    def _log_distance(self, heads: torch.Tensor, distance: torch.Tensor) -> torch.Tensor:
        span = self.tokens[heads.cpu()].to(distance.device)[:, None]
        return Alibi(self.slopes)._log_distance(heads, distance).masked_fill_(distance > span, -math.inf)
