"""Random contiguous block-diagonal masks as numbers: (width, shift, log-weight) per head and mask.

Bucket of token i: ``floor((i - shift) / width)``; a mask connects i and j when they share a bucket. With
``width ~ Gamma(2, sigma)`` and ``shift ~ U(0, width)``, ``E[mask] = exp(-|i - j| / sigma)`` (arXiv 2605.09472, 3).
"""

import math
from dataclasses import dataclass

import torch

from kernels.philox import uniforms
from kernels.weights import check_whole

SAMPLERS = ("gamma", "systematic", "fixed")

# Mean width of the systematic sampler in units of the mean that plain importance sampling of Gamma(2) would use: 2 puts
# the knots of the piecewise-linear interpolant of exp(-x) where its curvature asks for them, and keeps the expected
# pairs of S masks at those of the gamma sampler.
SYSTEMATIC_SPREAD = 2.0

# How near a block's edge may come to a whole position before rounding could decide: 40 times the rounding error of a
# float64 position of ten million tokens.
DOUBT = 1e-7


@dataclass(frozen=True)
class Masks:
    """One draw of S masks for each of H heads. All (H, S) float64: width and shift in tokens, log of the mask's weight
    in the sum ``L' = (1/S) sum_s exp(log_weight_s) M_s`` (zero for samplers whose masks are exchangeable)."""

    width: torch.Tensor
    shift: torch.Tensor
    log_weight: torch.Tensor

    def bucket(self, heads: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Bucket of token rows (G, C) in the masks of heads (G,): (G, C, S) float64, whole numbers."""
        return self._bucket(rows[..., None].double(), *self._of(heads, rows.device))

    def starts(self, heads: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """First token of the block that holds each row, clipped to 0: rows (G, C) -> (G, C, S) int64."""
        width, shift = self._of(heads, rows.device)
        own = self._bucket(rows[..., None].double(), width, shift)
        return self._first_of(own, width, shift).clamp_min_(0).long()

    def ends(self, heads: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """First token of the block after the one that holds each row, not clipped: (G, C, S) int64."""
        width, shift = self._of(heads, rows.device)
        own = self._bucket(rows[..., None].double(), width, shift)
        return self._first_of(own.add_(1), width, shift).long()

    def some(self, chosen: slice | torch.Tensor) -> "Masks":
        """The chosen masks of every head."""
        return Masks(self.width[:, chosen], self.shift[:, chosen], self.log_weight[:, chosen])

    @classmethod
    def _first_of(cls, bucket: torch.Tensor, width: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
        """Smallest whole position whose bucket is at least this one. It is defined by `bucket` alone, which is monotone
        in the row even in floating point: where rounding could move the closed form across a token, hardly ever with
        random masks, it is corrected against `bucket`."""
        edge = torch.mul(bucket, width).add_(shift)
        doubtful = bool(((edge - edge.round()).abs_() <= DOUBT).any())
        edge.ceil_()
        if doubtful:
            edge.sub_(1)
            edge.add_(cls._bucket(edge, width, shift) < bucket)
            edge.add_(cls._bucket(edge, width, shift) < bucket)
        return edge

    def _of(self, heads: torch.Tensor, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        width, shift = self.width[heads.cpu()], self.shift[heads.cpu()]
        return width.to(device)[:, None, :], shift.to(device)[:, None, :]

    @staticmethod
    def _bucket(position: torch.Tensor, width: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
        return torch.sub(position, shift).div_(width).floor_()


def draw_masks(
    slopes: torch.Tensor, masks: int, *, seed: int, draw: int = 0, layer: int = 0, sampler: str = "gamma"
) -> Masks:
    """Draw `masks` masks for each head, a pure function of (seed, draw, layer, head): on every machine from the same
    uniform numbers, so that at most the rounding of a logarithm differs.

    "gamma" is the paper's sampler, "systematic" places widths on an importance-weighted lattice and gives each width
    equispaced shifts (unbiased, far less variance), "fixed" is the authors' ablation (width 2 sigma, shift 0; biased).
    For "gamma" and "fixed" the first S of 2S masks are the same masks.
    """
    masks = check_whole("masks", masks, 1)
    if sampler not in SAMPLERS:
        raise ValueError(f"Unknown sampler {sampler!r}: choose one of {', '.join(SAMPLERS)}.")
    words = [check_whole(name, word, 0, 2**64) for name, word in (("seed", seed), ("draw", draw), ("layer", layer))]
    sigma = slopes.double().cpu().reciprocal()[:, None]
    if sampler == "fixed":
        width = (2.0 * sigma).repeat(1, masks)
        return Masks(width, torch.zeros_like(width), torch.zeros_like(width))
    uniform = uniforms([[*words, head] for head in range(len(sigma))], 3 * masks)
    width, shift, log_weight = (_gamma if sampler == "gamma" else _systematic)(masks, uniform)
    return Masks(width * sigma, shift * width * sigma, log_weight)


def systematic_shape(masks: int) -> tuple[int, int]:
    """(widths G, shifts per width R) of the systematic sampler, G * R = masks: more shifts where there are more masks,
    and the largest count that divides `masks` (a width with R equispaced shifts is a staircase of its triangle)."""
    wanted = max(1, 2 ** round(math.log2(max(masks, 2)) / 2 - 0.25))
    shifts = next(r for r in range(min(wanted, masks), 0, -1) if masks % r == 0)
    return masks // shifts, shifts


def systematic_width(uniform: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Width in units of sigma at a uniform of (0, 1), and the log of its importance weight: widths are drawn from
    Exp(spread) in place of Gamma(2, 1), so the weight is ``spread * x * exp(-x (1 - 1/spread))``."""
    x = -SYSTEMATIC_SPREAD * torch.log1p(-uniform)
    return x, torch.log(SYSTEMATIC_SPREAD * x) - x * (1.0 - 1.0 / SYSTEMATIC_SPREAD)


def _gamma(masks: int, uniform: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    u, u_2, shift = uniform.view(-1, masks, 3).unbind(-1)
    return -torch.log(u * u_2), shift, torch.zeros_like(shift)


def _systematic(masks: int, uniform: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    widths, shifts = systematic_shape(masks)
    width, log_weight = systematic_width((torch.arange(widths, device=uniform.device) + uniform[:, :1]) / widths)
    phase = (torch.arange(shifts, device=uniform.device) + uniform[:, 1 : 1 + widths, None]) / shifts
    return width.repeat_interleave(shifts, 1), phase.flatten(1), log_weight.repeat_interleave(shifts, 1)
