"""Random contiguous block-diagonal masks as numbers: (width, shift, log-weight) per head and mask.

Bucket of token i: ``floor((i - shift) / width)``; a mask connects i and j when they share a bucket.
With ``width ~ Gamma(2, sigma)`` and ``shift ~ U(0, width)``, ``E[mask] = exp(-|i - j| / sigma)``
(arXiv 2605.09472, 3).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.random import Philox, SeedSequence

from kernels.methods.checks import check_whole
from kernels.methods.samplers import sampler_of

# How near a block's edge may come to a whole position before rounding could decide: 40 times the
# rounding error of a float64 position of ten million tokens.
DOUBT = 1e-7

# A head's masks are aligned to a grid where that moves no weight by more than this: `aligned`.
FLAT = 0.01
OFFSETS = 2**63  # of the grids, among the numbers of heads that key a draw


@dataclass(frozen=True)
class Masks:
    """One draw of S masks for each of H heads. All (H, S) float64: width and shift in tokens, log
    of the mask's weight in the sum ``L' = (1/S) sum_s exp(log_weight_s) M_s`` (zero for samplers
    whose masks are exchangeable).

    grid: (H, 3) float64 if blocks begin and end on a grid of cells: tokens of a cell, first token
    of one of them, and the middle of a cell from its first token, a half of it; 1, 0 and 0 for a
    head without. A token's bucket is then that of the middle of its cell, which moves every edge of
    the mask to the nearest edge of a cell.
    """

    width: torch.Tensor
    shift: torch.Tensor
    log_weight: torch.Tensor
    grid: torch.Tensor | None = None

    @property
    def span(self) -> int:
        """How many tokens the widest block can hold at most, rounded up."""
        most = self.width.amax(1)
        if self.grid is not None:
            most = most + torch.where(self.grid[:, 0] > 1, self.grid[:, 0], 0.0)
        return math.ceil(float(most.max()))

    def some(self, chosen: slice | torch.Tensor) -> "Masks":
        """The chosen masks of every head."""
        return Masks(self.width[:, chosen], self.shift[:, chosen], self.log_weight[:, chosen], self.grid)

    def bucket(self, heads: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Bucket of token rows (G, C) in the masks of heads (G,): (G, C, S) float64, whole
        numbers."""
        return self._own(rows, *self._of(heads, rows.device))

    def starts(self, heads: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """First token of the block that holds each row, clipped to 0: rows (G, C) -> (G, C, S)
        int64."""
        numbers = self._of(heads, rows.device)
        return self._first_of(self._own(rows, *numbers), *numbers).clamp_min_(0).long()

    def ends(self, heads: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """First token of the block after the one that holds each row, not clipped: (G, C, S)
        int64."""
        numbers = self._of(heads, rows.device)
        return self._first_of(self._own(rows, *numbers).add_(1), *numbers).long()

    @classmethod
    def _first_of(
        cls, bucket: torch.Tensor, width: torch.Tensor, shift: torch.Tensor, grid: torch.Tensor | None
    ) -> torch.Tensor:
        """Smallest whole position whose bucket is at least this one. It is defined by `bucket`
        alone, which is monotone in the row even in floating point: where rounding could move the
        closed form across a token, or a cell, hardly ever with random masks, it is corrected
        against `bucket`."""
        edge = torch.mul(bucket, width).add_(shift)
        if grid is not None:
            edge = edge.sub_(grid[1] + grid[2]).div_(grid[0])  # in cells, as all that follows
        doubtful = bool(((edge - edge.round()).abs_() <= DOUBT).any())
        edge.ceil_()
        if doubtful:
            edge.sub_(1)
            edge.add_(cls._bucket(_middle(edge, grid), width, shift) < bucket)
            edge.add_(cls._bucket(_middle(edge, grid), width, shift) < bucket)
        return edge if grid is None else edge.mul_(grid[0]).add_(grid[1])

    def _of(self, heads: torch.Tensor, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Width and shift (G, 1, S) of the heads, and the grid (3, G, 1, 1)."""
        heads = heads.cpu()
        width, shift = (x[heads].to(device)[:, None, :] for x in (self.width, self.shift))
        grid = None if self.grid is None else self.grid[heads].to(device).T[..., None, None]
        return width, shift, grid

    @classmethod
    def _own(
        cls, rows: torch.Tensor, width: torch.Tensor, shift: torch.Tensor, grid: torch.Tensor | None
    ) -> torch.Tensor:
        return cls._bucket(_middle(_cell(rows[..., None].double(), grid), grid), width, shift)

    @staticmethod
    def _bucket(position: torch.Tensor, width: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
        return torch.sub(position, shift).div_(width).floor_()


def _cell(position: torch.Tensor, grid: torch.Tensor | None) -> torch.Tensor:
    """Number of the cell that holds a whole position; without a grid, the position itself."""
    return position if grid is None else ((position - grid[1]) / grid[0]).floor_()


def _middle(cell: torch.Tensor, grid: torch.Tensor | None) -> torch.Tensor:
    """The position that stands for a cell."""
    return cell if grid is None else cell * grid[0] + (grid[1] + grid[2])


def aligned(slopes: torch.Tensor, align: int) -> torch.Tensor:
    """The heads (H,) bool whose masks a grid of `align` tokens takes: those where the weight that
    it makes of L is off by at most FLAT, ``(align m)^2 / 8 <= FLAT``
    (`kernels.methods.cost.align_bias`)."""
    return (align * slopes.double().cpu()).square() / 8 <= FLAT if align else torch.zeros(len(slopes), dtype=torch.bool)


def uniforms(keys: Sequence[Sequence[int]], count: int) -> torch.Tensor:
    """`count` uniform numbers of (0, 1) with 53 bits each for every key: (N, count) float64.

    A key is a tuple of words below 2**64, for a mask (seed, draw, layer, head). Each word enters
    NumPy's SeedSequence as its lower and upper 32 bits, whatever its size, and the 128 bits of the
    sequence key a Philox4x64-10 generator (Salmon, Moraes, Dror and Shaw, "Parallel random numbers:
    as easy as 1, 2, 3", SC 2011): a pure function of the key, the same on every machine. torch's
    own generator keeps only 32 bits of a seed.
    """
    halves = np.array(keys, dtype="<u8").view("<u4")
    raw = np.stack([Philox(SeedSequence(key)).random_raw(count) for key in halves])
    return torch.from_numpy(((raw >> np.uint64(11)) + 0.5) * 2.0**-53)


def draw_masks(
    slopes: torch.Tensor,
    masks: int,
    *,
    seed: int,
    draw: int = 0,
    layer: int = 0,
    sampler: str = "gamma",
    align: int = 0,
) -> Masks:
    """Draw `masks` masks for each head, a pure function of (seed, draw, layer, head): on every
    machine from the same uniform numbers, so that at most the rounding of a logarithm differs.

    sampler: a name of `kernels.methods.samplers.SAMPLERS`.

    align: tokens of a cell of the grid on which the blocks of flat heads (`aligned`) begin and end,
    0 for none. The masks are those without a grid, each edge moved to the nearest edge of a cell,
    and all S masks of a head have one offset, uniform over the cell: with it two tokens d = align q
    + r apart lie q cells apart, or q + 1 with probability r / align, and a mask connects middles of
    cells that are x apart with probability exp(-m x). So the expectation of a pair's weight is the
    linear interpolation of exp(-m x) between x = align q and align (q + 1).
    """
    masks, law = check_whole("masks", masks, 1), sampler_of(sampler)
    if check_whole("align", align, 0) == 1 or (align and not law.random):
        offsets = "" if law.random else f", and 0 with the sampler {sampler!r}, which has no offsets"
        raise ValueError(f"align must be 0 or at least 2 tokens{offsets}.")
    words = [check_whole(name, word, 0, 2**64) for name, word in (("seed", seed), ("draw", draw), ("layer", layer))]
    sigma = slopes.double().cpu().reciprocal()[:, None]
    uniform = uniforms([[*words, head] for head in range(len(sigma))], 3 * masks)
    width, shift, log_weight = law.draw(masks, uniform)
    drawn = Masks(width * sigma, shift * width * sigma, log_weight)
    return replace(drawn, grid=_grid(slopes, align, words)) if align else drawn


def _grid(slopes: torch.Tensor, align: int, words: list[int]) -> torch.Tensor | None:
    """`Masks.grid` of a draw, its offsets from numbers that no mask has; None where no head is flat
    enough."""
    flat = aligned(slopes, align)
    if not bool(flat.any()):
        return None
    offset = uniforms([[*words, OFFSETS + head] for head in range(len(flat))], 1)[:, 0].mul_(align).floor_()
    grid = torch.stack([torch.full_like(offset, align), offset, torch.full_like(offset, align / 2)], 1)
    return torch.where(flat[:, None], grid, torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64))
