"""Random contiguous block-diagonal masks as numbers: (width, shift, log-weight) per head and mask.

Bucket of token i: ``floor((i - shift) / width)``; a mask connects i and j if they share a bucket.
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

# Distance of a block's edge from a whole position below which rounding could decide: 40 times the
# rounding error of a float64 position of ten million tokens.
EDGE_TOLERANCE = 1e-7

# A head's masks are put on a grid if that changes no expected weight by more than this: `aligned`.
MAX_GRID_BIAS = 0.01
OFFSET_KEYS = 2**63  # added to a head's number in the key of its grid's offset: no mask has such a key


@dataclass(frozen=True)
class Masks:
    """One draw of S masks for each of H heads.

    width, shift: (H, S) float64, in tokens.
    log_weight: (H, S) float64, log of the mask's weight in the sum ``L' = (1/S) sum_s
    exp(log_weight_s) M_s``; zero for samplers whose masks are exchangeable.
    grid: (H, 3) float64 if blocks begin and end on a grid of cells: tokens per cell, first token of
    one cell, and the middle of a cell counted from its first token; 1, 0 and 0 for a head without a
    grid. The bucket of a token is then the bucket of its cell's middle, which moves every edge of
    the mask to the nearest edge of a cell.
    """

    width: torch.Tensor
    shift: torch.Tensor
    log_weight: torch.Tensor
    grid: torch.Tensor | None = None

    @property
    def span(self) -> int:
        """Largest number of tokens in a block, rounded up."""
        widest = self.width.amax(1)
        if self.grid is not None:
            widest = widest + torch.where(self.grid[:, 0] > 1, self.grid[:, 0], 0.0)
        return math.ceil(float(widest.max()))

    def some(self, chosen: slice | torch.Tensor) -> "Masks":
        """The chosen masks of every head."""
        return Masks(self.width[:, chosen], self.shift[:, chosen], self.log_weight[:, chosen], self.grid)

    def bucket(self, heads: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Bucket of token rows (G, C) in the masks of heads (G,): (G, C, S) float64, whole
        numbers."""
        return self._bucket_of_rows(rows, *self._of_heads(heads, rows.device))

    def starts(self, heads: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """First token of the block that contains each row, clipped to 0: rows (G, C) of heads (G,)
        -> (G, C, S) int64."""
        numbers = self._of_heads(heads, rows.device)
        return self._first_position(self._bucket_of_rows(rows, *numbers), *numbers).clamp_min_(0).long()

    def ends(self, heads: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """First token of the block after the block that contains each row, not clipped: rows (G, C)
        of heads (G,) -> (G, C, S) int64."""
        numbers = self._of_heads(heads, rows.device)
        return self._first_position(self._bucket_of_rows(rows, *numbers).add_(1), *numbers).long()

    def edges(self, head: torch.Tensor, first: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
        """Blocks of all masks of one head that hold a token from `first` to `last`: (blocks, 2)
        int64, the block's first token, not clipped, and that after its last."""
        width, shift, grid = self._of_heads(head.reshape(1), first.device)
        ends = torch.stack([first, last])[None]
        low, high = self._bucket_of_rows(ends, width, shift, grid)[0].long()
        blocks = high - low + 1
        mask = torch.repeat_interleave(blocks)
        bucket = low[mask] + torch.arange(len(mask), device=first.device) - (blocks.cumsum(0) - blocks)[mask]
        numbers = width[:, :, mask], shift[:, :, mask], grid
        begin, end = (self._first_position(b[None, None].double(), *numbers)[0, 0] for b in (bucket, bucket + 1))
        return torch.stack([begin, end], 1).long()

    @classmethod
    def _first_position(
        cls, bucket: torch.Tensor, width: torch.Tensor, shift: torch.Tensor, grid: torch.Tensor | None
    ) -> torch.Tensor:
        """Smallest whole position whose bucket is at least `bucket`.

        `bucket` alone defines it, and is monotone in the row even in floating point. With random
        masks rounding hardly ever moves the closed form across a token or cell; where it could, the
        closed form is corrected against `bucket`.
        """
        edge = torch.mul(bucket, width).add_(shift)
        if grid is not None:
            edge = edge.sub_(grid[1] + grid[2]).div_(grid[0])  # in cells from here on
        doubtful = bool(((edge - edge.round()).abs_() <= EDGE_TOLERANCE).any())
        edge.ceil_()
        if doubtful:
            edge.sub_(1)
            edge.add_(cls._bucket(_middle(edge, grid), width, shift) < bucket)
            edge.add_(cls._bucket(_middle(edge, grid), width, shift) < bucket)
        return edge if grid is None else edge.mul_(grid[0]).add_(grid[1])

    def _of_heads(
        self, heads: torch.Tensor, device: torch.device
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Width and shift (G, 1, S) of the heads, and their grids (3, G, 1, 1)."""
        heads = heads.cpu()
        width, shift = (x[heads].to(device)[:, None, :] for x in (self.width, self.shift))
        grid = None if self.grid is None else self.grid[heads].to(device).T[..., None, None]
        return width, shift, grid

    @classmethod
    def _bucket_of_rows(
        cls, rows: torch.Tensor, width: torch.Tensor, shift: torch.Tensor, grid: torch.Tensor | None
    ) -> torch.Tensor:
        return cls._bucket(_middle(_cell(rows[..., None].double(), grid), grid), width, shift)

    @staticmethod
    def _bucket(position: torch.Tensor, width: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
        return torch.sub(position, shift).div_(width).floor_()


def _cell(position: torch.Tensor, grid: torch.Tensor | None) -> torch.Tensor:
    """Number of the cell that contains a whole position; without a grid, the position itself."""
    return position if grid is None else ((position - grid[1]) / grid[0]).floor_()


def _middle(cell: torch.Tensor, grid: torch.Tensor | None) -> torch.Tensor:
    """The middle of a cell; without a grid, the position itself."""
    return cell if grid is None else cell * grid[0] + (grid[1] + grid[2])


def aligned(slopes: torch.Tensor, align: int) -> torch.Tensor:
    """The heads, (H,) bool, whose masks are put on a grid of `align` tokens: the expected weight of
    a pair changes by at most ``(align m)^2 / 8 <= MAX_GRID_BIAS``
    (`kernels.methods.cost.align_bias`)."""
    if not align:
        return torch.zeros(len(slopes), dtype=torch.bool)
    return (align * slopes.double().cpu()).square() / 8 <= MAX_GRID_BIAS


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
    share_heads: bool = False,
) -> Masks:
    """Draws masks for each head, a pure function of (seed, draw, layer, head): from the same
    uniform numbers on every machine, so that at most the rounding of a logarithm differs.

    With `align`, each edge of a mask moves to the nearest edge of a cell, and all S masks of a head
    share one offset, uniform over the cell. Two tokens d = align q + r apart then lie q cells
    apart, or q + 1 with probability r / align, and a mask connects the middles of cells x apart
    with probability exp(-m x). So the expected weight of a pair is the linear interpolation of
    exp(-m x) between x = align q and align (q + 1).

    Args:
        slopes: (H,), in 1/tokens.
        masks: number of masks per head.
        seed, draw, layer: words of the key, whole numbers below 2**64.
        sampler: a name of `kernels.methods.samplers.SAMPLERS`.
        align: tokens per cell of the grid on which the blocks of flat heads (`aligned`) begin and
            end; 0 for no grid.
        share_heads: whether every head has the uniform numbers of head 0: the same masks in units of
            its sigma.

    Raises:
        ValueError: for numbers out of range, an unknown sampler, and `align` with a sampler that is
            not random.
    """
    masks, law = check_whole("masks", masks, 1), sampler_of(sampler)
    if check_whole("align", align, 0) == 1 or (align and not law.random):
        offsets = "" if law.random else f", and 0 with the sampler {sampler!r}, which has no offsets"
        raise ValueError(f"align must be 0 or at least 2 tokens{offsets}.")
    words = [check_whole(name, word, 0, 2**64) for name, word in (("seed", seed), ("draw", draw), ("layer", layer))]
    sigma = slopes.double().cpu().reciprocal()[:, None]
    heads = [0 if share_heads else head for head in range(len(sigma))]
    uniform = uniforms([[*words, head] for head in heads], 3 * masks)
    width, shift, log_weight = law.draw(masks, uniform)
    off_grid = Masks(width * sigma, shift * width * sigma, log_weight)
    return replace(off_grid, grid=_grid(slopes, align, words, heads)) if align else off_grid


def _grid(slopes: torch.Tensor, align: int, words: list[int], heads: list[int]) -> torch.Tensor | None:
    """`Masks.grid` of a draw, None if no head is flat enough. The offsets have keys that no mask
    has. heads: the last word of each head's key."""
    flat = aligned(slopes, align)
    if not bool(flat.any()):
        return None
    offset = uniforms([[*words, OFFSET_KEYS + head] for head in heads], 1)[:, 0].mul_(align).floor_()
    grid = torch.stack([torch.full_like(offset, align), offset, torch.full_like(offset, align / 2)], 1)
    return torch.where(flat[:, None], grid, torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64))
