"""What attention is computed: the multiplicative weights L' on the pairs (i, j), apart from how a kernel applies them.

Attention under weights w is the row-normalised ``exp(q.k * scale) * w`` times V. Each class below defines w by one
dense formula (`log_dense`, for oracles and small n) and gives the same numbers piece by piece for kernels that never
build n x n.

Sinks: the first `sinks` tokens stay visible to every row with the exact weight ``exp(-m |i - j|)``, the pairs that the
window or the masks cover too: attention that models park on the first tokens is neither cut nor estimated.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch

from kernels.cost import log_coverage
from kernels.masks import Masks, draw_masks

UNION_WEIGHTS = ("count", "rb", "exact")


class Weights(ABC):
    """Weights of H heads. Positions are whole token coordinates >= 0; log-weight -inf means the pair is not visited."""

    slopes: torch.Tensor
    sinks: int = 0

    @property
    def heads(self) -> int:
        return len(self.slopes)

    @property
    def numbers_per_row(self) -> int:
        """How many numbers describe what one row visits: what a kernel that works by pieces must have room for."""
        return 1

    @property
    def span(self) -> int | None:
        """How far back any row of any head can reach at most, in tokens, sinks apart; None without a bound."""
        return None

    @abstractmethod
    def log_dense(self, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        """log w of every pair by its definition: rows (R,), columns (N,) -> (H, R, N) float64. Not causal."""

    @abstractmethod
    def reach(self, heads: torch.Tensor, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """First and last visited column of each row beyond the sinks, to the left and right: rows (G, C) of heads (G,)
        -> two (G, C) int64. Both are non-decreasing in the row, the first is at least `sinks` (and so may lie after the
        row, which then sees sinks alone); the last is not clipped to the number of tokens."""

    @abstractmethod
    def log_piece(
        self, heads: torch.Tensor, rows: torch.Tensor, first: torch.Tensor, width: int, causal: bool
    ) -> torch.Tensor:
        """log w of a piece: consecutive rows (G, C) of heads (G,) against columns first[g] .. first[g] + width - 1 ->
        (G, C, width) float32. Columns below `sinks`, and with `causal` those after the row, get -inf."""

    def log_sinks(self, heads: torch.Tensor, rows: torch.Tensor, columns: int, causal: bool) -> torch.Tensor:
        """log w of consecutive rows (G, C) of heads (G,) against the sinks 0 .. columns - 1: (G, C, columns)
        float32."""
        assert columns <= self.sinks
        first = torch.zeros_like(rows[:, 0])
        return _by_distance(Alibi(self.slopes)._log_distance, heads, rows, first, columns, causal)

    def matrix(self, tokens: int) -> torch.Tensor:
        """Dense w: (H, tokens, tokens) float64, not yet made causal. For small n."""
        position = torch.arange(tokens)
        return self.log_dense(position, position).exp()

    def pairs(self, tokens: int) -> torch.Tensor:
        """Visited pairs (key before query) of each head in a causal context of `tokens`, sinks included: (H,) int64."""
        rows = torch.arange(tokens)[None].expand(self.heads, -1)
        first, _ = self.reach(torch.arange(self.heads), rows)
        return (rows - first).clamp_min(0).sum(1) + rows.clamp_max(self.sinks).sum(1)


def _check_slopes(slopes: torch.Tensor) -> torch.Tensor:
    slopes = torch.as_tensor(slopes, dtype=torch.float64, device="cpu")
    if slopes.ndim != 1 or len(slopes) == 0 or not bool((slopes > 0).all()):
        raise ValueError(
            "slopes must be a list of positive numbers, one per head (the bias is -m|i-j|: a negative slope would "
            f"reward distance); got {slopes.tolist()!r}."
        )
    return slopes


def _check_sinks(sinks: int) -> int:
    if sinks < 0:
        raise ValueError(f"sinks must be at least 0, not {sinks}.")
    return int(sinks)


def _by_distance(
    formula: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    heads: torch.Tensor,
    rows: torch.Tensor,
    first: torch.Tensor,
    width: int,
    causal: bool,
    begin: int = 0,
) -> torch.Tensor:
    """A piece (see `Weights.log_piece`) whose log-weight depends on the distance alone, by ``formula(heads (U,),
    distance (U, N) int64) -> (U, N)``. Every row is the same list of numbers moved on by one, and chunks of one head
    lie alike to their columns: the formula is evaluated once for each distinct list, the rest is copying. Columns
    before `begin` get -inf."""
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

    def __post_init__(self):
        object.__setattr__(self, "slopes", _check_slopes(self.slopes))

    def log_dense(self, rows, columns):
        distance = (rows[:, None] - columns[None, :]).abs().double()
        return -self.slopes.to(rows.device)[:, None, None] * distance

    def reach(self, heads, rows):
        return torch.zeros_like(rows), torch.full_like(rows, torch.iinfo(torch.int64).max)

    def log_piece(self, heads, rows, first, width, causal):
        return _by_distance(self._log_distance, heads, rows, first, width, causal)

    def _log_distance(self, heads: torch.Tensor, distance: torch.Tensor) -> torch.Tensor:
        return -self.slopes[heads.cpu()].to(distance.device)[:, None] * distance


@dataclass(frozen=True)
class Window(Weights):
    """Exact ALiBi cut where the bias falls below -cutoff: ``w = exp(-m |i - j|)`` if ``m |i - j| <= cutoff`` or j is a
    sink, or 0."""

    slopes: torch.Tensor
    cutoff: float
    sinks: int = 0

    def __post_init__(self):
        _check_sinks(self.sinks)
        object.__setattr__(self, "slopes", _check_slopes(self.slopes))
        if not self.cutoff >= 0:
            raise ValueError(f"cutoff must be at least 0 (in units of 1/slope), not {self.cutoff}.")

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
        return _by_distance(self._log_distance, heads, rows, first, width, causal, self.sinks)

    def _log_distance(self, heads: torch.Tensor, distance: torch.Tensor) -> torch.Tensor:
        span = self.tokens[heads.cpu()].to(distance.device)[:, None]
        return Alibi(self.slopes)._log_distance(heads, distance).masked_fill_(distance > span, -math.inf)


@dataclass(frozen=True)
class PositionalLSH(Weights):
    """Weights on the union of S random masks (arXiv 2605.09472), unbiased for ALiBi's L = exp(-m|i-j|) with the sampler
    "gamma" or "systematic". `weights` says which:

    * "count": ``(1/S) sum_s M_s``, the paper's estimate (times each mask's own weight for "systematic");
    * "rb": ``L / P(covered)`` wherever the union covers: the conditional expectation of the count for independent
      masks, unbiased too, on the same pairs, with far less variance (Rao-Blackwell);
    * "exact": L on the union, a window of random reach (biased: nothing makes up for what the union misses).

    Sinks have the weight L under each of them, covered or not.
    """

    slopes: torch.Tensor
    masks: Masks
    sampler: str
    weights: str
    sinks: int = 0

    @classmethod
    def draw(
        cls,
        slopes: torch.Tensor,
        masks: int,
        *,
        seed: int,
        draw: int = 0,
        layer: int = 0,
        sampler: str = "gamma",
        weights: str = "count",
        sinks: int = 0,
    ) -> "PositionalLSH":
        """Draw `masks` masks per head; a pure function of (seed, draw, layer, head) and the options.

        Raises ValueError for masks < 1, sinks < 0, an unknown sampler or weights, or "rb" with the sampler "fixed".
        """
        slopes = _check_slopes(slopes)
        if weights not in UNION_WEIGHTS:
            raise ValueError(f"Unknown weights {weights!r}: choose one of {', '.join(UNION_WEIGHTS)}.")
        for name, word in (("seed", seed), ("draw", draw), ("layer", layer)):
            if not 0 <= word < 2**64:
                raise ValueError(f"{name} must lie in 0 .. 2**64 - 1, not {word}.")
        drawn = draw_masks(slopes, masks, seed=seed, draw=draw, layer=layer, sampler=sampler)
        if weights == "rb":
            log_coverage(torch.zeros(1), masks, sampler)  # says which samplers have one
        return cls(slopes, drawn, sampler, weights, _check_sinks(sinks))

    @property
    def count(self) -> int:
        return self.masks.width.shape[1]

    @property
    def numbers_per_row(self) -> int:
        return self.count

    @property
    def span(self) -> int:
        return math.ceil(float(self.masks.width.max()))

    def log_distance(self, heads: torch.Tensor, distance: torch.Tensor) -> torch.Tensor:
        """log w of a covered pair for "rb" and "exact": distance (N,) or (G, N) tokens -> (G, N) float64."""
        t = self.slopes[heads.cpu()].to(distance.device)[:, None] * distance.double()
        return -t if self.weights == "exact" else -t - log_coverage(t, self.count, self.sampler)

    def log_dense(self, rows, columns):
        heads = torch.arange(self.heads)
        own = self.masks.bucket(heads, rows[None].expand(self.heads, -1))[:, :, None, :]
        other = self.masks.bucket(heads, columns[None].expand(self.heads, -1))[:, None, :, :]
        mask_weight = self.masks.log_weight.to(rows.device)[:, :, None, None].exp()
        union = torch.zeros(self.heads, len(rows), len(columns), dtype=torch.bool, device=rows.device)
        total = torch.zeros(union.shape, dtype=torch.float64, device=rows.device)
        for s in range(self.count):  # one mask at a time: all at once would take S times the memory
            shared = own[..., s] == other[..., s]
            union |= shared
            total += shared * mask_weight[:, s]
        if self.weights == "count":
            log_w = (total / self.count).log_()
        else:
            distance = (rows[:, None] - columns[None, :]).abs()
            log_w = self.log_distance(heads, distance.reshape(-1)).reshape(self.heads, *distance.shape)
            log_w.masked_fill_(~union, -math.inf)
        return torch.where(columns < self.sinks, Alibi(self.slopes).log_dense(rows, columns), log_w)

    def reach(self, heads, rows):
        first = self.masks.starts(heads, rows).amin(-1).clamp_min_(self.sinks)
        return first, self.masks.ends(heads, rows).amax(-1) - 1

    def log_piece(self, heads, rows, first, width, causal):
        start = self.masks.starts(heads, rows).clamp_min_(self.sinks)
        end = None if causal else self.masks.ends(heads, rows)
        if self.weights == "count":
            return self._runs(heads, rows, start, end, first, width)
        log_w = _by_distance(self.log_distance, heads, rows, first, width, causal)
        columns = torch.arange(width, device=rows.device, dtype=torch.int32)
        outside = columns < (start.amin(-1, keepdim=True) - first[:, None, None]).int()
        if end is not None:
            outside |= columns >= (end.amax(-1, keepdim=True) - first[:, None, None]).int()
        return log_w.masked_fill_(outside, -math.inf)

    def _runs(self, heads, rows, start, end, first, width):
        """The count along a row is constant between block edges: write each run once instead of comparing S masks with
        every pair. Sorted starts add a mask's weight, sorted ends take it away; without ends the row itself ends it."""
        groups, length, count = start.shape
        device = rows.device
        offset = first[:, None, None]
        weight = self.masks.log_weight[heads.cpu()].exp().to(device)[:, None, :].expand(-1, length, -1)
        if end is None:
            edges, order = (start - offset).clamp_(0, width).int().sort(-1)
            # a row among the sinks ends before the first column that counts
            stop = torch.maximum((rows[..., None] + 1 - offset).clamp_(0, width).int(), edges[..., -1:])
            if bool((self.masks.log_weight == 0).all()):  # equal weights: the sorted order says nothing
                value = torch.arange(1, count + 1, device=device, dtype=torch.float64).expand(start.shape)
            else:
                value = weight.gather(-1, order).cumsum(-1)
        else:
            edges, order = torch.cat([start, end], -1).sub_(offset).clamp_(0, width).int().sort(-1)
            sign = torch.ones(2 * count, device=device)
            sign[count:] = -1.0
            value = (torch.cat([weight, weight], -1) * sign).gather(-1, order).cumsum(-1)
            # cumsum leaves rounding dust where all masks have ended: the integer count says what is covered
            covered = sign.expand(groups, length, -1).gather(-1, order).cumsum(-1) > 0
            value = value.masked_fill_(~covered, 0.0)
            stop = torch.full_like(edges[..., :1], width)
        nothing = torch.full((groups, length, 1), -math.inf, device=device)
        values = torch.cat([nothing, value.div(count).log_().float(), nothing], -1)
        zero = torch.zeros_like(stop)
        bounds = torch.cat([zero, edges, stop, torch.full_like(stop, width)], -1)
        runs = torch.repeat_interleave(
            values.reshape(-1), bounds.diff(dim=-1).reshape(-1), output_size=groups * length * width
        )
        return runs.view(groups, length, width)
