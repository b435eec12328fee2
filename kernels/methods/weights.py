"""The multiplicative weights w on the pairs (i, j), independent of how a kernel applies them.

Attention under weights w is the row-normalised ``exp(q.k * scale) * w`` times V. Each class defines
w by one dense formula (`log_dense`, for oracles and small n), and returns the same numbers piece by
piece for kernels that never build an n x n matrix.

Sinks: the first `sinks` tokens stay visible to every row with the exact weight ``exp(-m |i - j|)``,
even where the window or the masks cover the pair: the attention that models park on the first
tokens is neither cut nor estimated.

Near field: in the same way the `near` nearest keys of every row, at distances 0 .. near - 1, have the
exact weight. A tile of a fused kernel holds them anyway, and a steep head sees little else.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

import torch

from kernels.methods.checks import check_slopes, check_whole
from kernels.methods.laws import Kind, Law
from kernels.methods.masks import Masks

UNBOUNDED = 2.0**52  # tokens, a whole number in float64


class Weights(ABC):
    """Weights of H heads. Positions are whole token coordinates >= 0; a log-weight of -inf means
    that the pair is not visited.

    `slopes`: (H,) float64. `sinks`: how many of the first tokens every row sees. `near`: how many of
    the nearest keys every row sees, itself included. `span`: the farthest distance, in tokens, that
    any head visits apart from the sinks; None without a bound.
    """

    slopes: torch.Tensor
    sinks: int = 0
    near: int = 0
    span: int | None = None
    by_score: ClassVar[bool] = False  # a row's keys depend on its scores: see `keep`

    @property
    def heads(self) -> int:
        """Number of heads H."""
        return len(self.slopes)

    @property
    def law(self) -> Law | None:
        """How a fused kernel computes a pair's weight; None if fused kernels have no tables for
        it."""
        return None

    @property
    def count(self) -> int:
        """Number of masks, 0 for weights without masks."""
        return 0

    @property
    def counted(self) -> int:
        """Number of masks that a fused kernel counts pair by pair, 0 where a formula or a table
        gives the weight."""
        return self.count if self.law is not None and self.law.per_mask else 0

    @property
    def kind(self) -> Kind:
        """The properties of the weights that compiled kernels depend on."""
        return Kind(type(self).__name__.lower(), sinks=self.sinks, near=self.near)

    @property
    def numbers_per_row(self) -> int:
        """How many numbers describe the keys that one row visits: a kernel that works in pieces
        must have room for them."""
        return 1

    @property
    def tokens(self) -> torch.Tensor | None:
        """Farthest visible distance of each head, (H,) int64, where a weight depends on the
        distance alone and is 0 beyond; None for other weights."""
        return None

    @classmethod
    def example(cls, slopes: torch.Tensor, kind: Kind) -> "Weights":
        """Weights of this class with that `kind`, to check a kernel on. Raises ValueError for a
        class that has none."""
        raise ValueError(f"{cls.__name__} has no example.")

    @abstractmethod
    def log_dense(self, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        """log w of every pair by its definition: rows (R,), columns (N,) -> (H, R, N) float64. Not
        causal."""

    @abstractmethod
    def reach(self, heads: torch.Tensor, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """First and last visited column of each row beyond the sinks: rows (G, C) of heads (G,) ->
        two (G, C) int64.

        Both are non-decreasing in the row. The first is at least `sinks`, and so may lie after the
        row, which then sees sinks alone. The last is not clipped to the number of tokens.
        """

    @abstractmethod
    def log_piece(
        self, heads: torch.Tensor, rows: torch.Tensor, first: torch.Tensor, width: int, causal: bool
    ) -> torch.Tensor:
        """Returns log w of pieces of the matrix, (G, C, width) float32. Columns below `sinks` get
        -inf, and with `causal` also columns after the row.

        Args:
            heads: (G,), the head of each piece.
            rows: (G, C), consecutive rows.
            first: (G,), the first column of each piece.
            width: number of columns.
            causal: whether rows see earlier columns and their own only.
        """

    def log_sinks(self, heads: torch.Tensor, rows: torch.Tensor, columns: int, causal: bool) -> torch.Tensor:
        """Returns log w of rows against the sinks, (G, C, columns) float32.

        Args:
            heads: (G,).
            rows: (G, C), consecutive rows.
            columns: number of sinks, from token 0 on.
            causal: as in `log_piece`.
        """
        assert columns <= self.sinks
        first = torch.zeros_like(rows[:, 0])
        return by_distance(Alibi(self.slopes)._log_distance, heads, rows, first, columns, causal)

    def keep(self, weighed: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        """Returns the scores plus log-weights with -inf for keys that a row does not visit because of
        its scores; unchanged unless the weights are `by_score`.

        Args:
            weighed: (B, H, R, N), -inf where a pair has no weight.
            rows: (R,), tokens of the rows.
            columns: (N,), tokens of the keys.
        """
        return weighed

    def pack(self) -> torch.Tensor:
        """The weights as a fused kernel reads them. With masks: (H, 1 + 4 S) float64, the slope,
        then widths, shifts, weights and reciprocal widths of the masks, followed by the three
        columns of `Masks.grid`, if any. Without: (H, 2), slope and farthest distance. Raises
        ValueError for weights without a law."""
        raise ValueError(no_tables(self))

    def mask_set(self) -> Masks:
        """The masks, for laws that are `per_mask`. Raises ValueError for weights without masks."""
        raise ValueError(f"{type(self).__name__} has no masks.")

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
    """The reason why fused kernels cannot compute weights whose law is None."""
    return f"No tables for {type(weights).__name__}: use kernel='sdpa' or 'exact' with it."


def by_distance(
    formula: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    heads: torch.Tensor,
    rows: torch.Tensor,
    first: torch.Tensor,
    width: int,
    causal: bool,
    begin: int = 0,
) -> torch.Tensor:
    """A piece (see `Weights.log_piece`) whose log-weight depends on the distance alone.

    Every row is the same list of numbers moved on by one, and chunks of one head often lie alike to
    their columns: the formula is evaluated once for each distinct list, the rest is copying.

    Args:
        formula: ``formula(heads (U,), distance (U, N) int64) -> (U, N)``, the log-weights.
        heads, rows, first, width, causal: as in `Weights.log_piece`.
        begin: columns before it get -inf.

    Returns: (G, C, width) float32.
    """
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

    law = Law.LINEAR

    def __post_init__(self):
        object.__setattr__(self, "slopes", check_slopes(self.slopes))

    @classmethod
    def example(cls, slopes, kind):
        return cls(slopes)

    def pack(self):
        return torch.stack([self.slopes, torch.full_like(self.slopes, UNBOUNDED)], 1)

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
    """Exact ALiBi, cut where the bias falls below -cutoff: ``w = exp(-m |i - j|)`` if ``m |i - j|
    <= cutoff``, ``|i - j| < near`` or j is a sink, else 0. The cutoff is one number, or one for each
    head, (H,). With cutoff 0 it is the sliding window of `near` tokens in every head, with sinks that
    of StreamingLLM (arXiv 2309.17453)."""

    slopes: torch.Tensor
    cutoff: float | torch.Tensor
    sinks: int = 0
    near: int = 0
    span: int = field(init=False, repr=False, compare=False)

    law = Law.LINEAR

    def __post_init__(self):
        object.__setattr__(self, "sinks", check_whole("sinks", self.sinks, 0))
        object.__setattr__(self, "near", check_whole("near", self.near, 0))
        object.__setattr__(self, "slopes", check_slopes(self.slopes))
        if isinstance(self.cutoff, torch.Tensor):
            object.__setattr__(self, "cutoff", self.cutoff.double().cpu())
            if self.cutoff.shape != self.slopes.shape:
                raise ValueError(f"{len(self.slopes)} heads need a cutoff each, not {tuple(self.cutoff.shape)}.")
        if not bool((torch.as_tensor(self.cutoff) >= 0).all()):
            raise ValueError(f"cutoff must be at least 0 (in units of 1/slope), not {self.cutoff}.")
        object.__setattr__(self, "span", int(self.tokens.max()))

    @classmethod
    def example(cls, slopes, kind):
        return cls(slopes, 5.0, kind.sinks, kind.near)

    @classmethod
    def of_tokens(cls, slopes: torch.Tensor, tokens: torch.Tensor, sinks: int = 0) -> "Window":
        """Returns a window of its own length in each head.

        Args:
            slopes: (H,).
            tokens: (H,) whole numbers of at least 1, the nearest keys that a row of the head sees, its
                own included.
            sinks: first tokens that every row sees.

        Raises:
            ValueError: for numbers below 1.
        """
        if bool((tokens < 1).any()):
            raise ValueError(f"tokens must be at least 1, the row's own token, not {tokens.tolist()}.")
        # half a token beyond the farthest, so that no rounding moves the edge
        return cls(slopes, (tokens - 0.5) * check_slopes(slopes), sinks)

    def pack(self):
        return torch.stack([self.slopes, self.tokens.double()], 1)

    @property
    def tokens(self) -> torch.Tensor:
        """Farthest visible distance of each head, (H,) int64."""
        farthest = torch.floor((self.cutoff / self.slopes).clamp_max(2.0**62)).long()
        return farthest.clamp_min(self.near - 1)

    def log_dense(self, rows, columns):
        distance = (rows[:, None] - columns[None, :]).abs()[None]
        full = Alibi(self.slopes).log_dense(rows, columns)
        cut = (distance > self.tokens.to(rows.device)[:, None, None]) & (columns >= self.sinks)
        return full.masked_fill(cut, -math.inf)

    def reach(self, heads, rows):
        farthest = self.tokens[heads.cpu()].to(rows.device)[:, None]
        return (rows - farthest).clamp_min(self.sinks), rows + farthest

    def log_piece(self, heads, rows, first, width, causal):
        return by_distance(self._log_distance, heads, rows, first, width, causal, self.sinks)

    def _log_distance(self, heads: torch.Tensor, distance: torch.Tensor) -> torch.Tensor:
        farthest = self.tokens[heads.cpu()].to(distance.device)[:, None]
        return Alibi(self.slopes)._log_distance(heads, distance).masked_fill_(distance > farthest, -math.inf)
