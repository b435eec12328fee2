"""Widths on an importance-weighted lattice, each with equispaced shifts: unbiased, with far less
variance."""

import functools
import math
from typing import Any

import torch

from kernels.methods.samplers.base import Sampler

FLOAT64: dict[str, Any] = {"dtype": torch.float64, "device": "cpu"}

# Mean width of the proposal Exp(spread), in sigmas: 2 places the knots of the piecewise-linear
# interpolant of exp(-x) according to its curvature, and keeps the expected pairs of S masks equal
# to those of the gamma sampler.
WIDTH_SPREAD = 2.0


class Systematic(Sampler):
    name = "systematic"

    def draw(self, masks, uniform):
        widths, shifts = shape_of(masks)
        width, log_weight = width_at((torch.arange(widths, device=uniform.device) + uniform[:, :1]) / widths)
        phase = (torch.arange(shifts, device=uniform.device) + uniform[:, 1 : 1 + widths, None]) / shifts
        return width.repeat_interleave(shifts, 1), phase.flatten(1), log_weight.repeat_interleave(shifts, 1)

    def log_coverage(self, t, masks):
        grid, log_p = _coverage_on(masks, t.device)
        place = (torch.searchsorted(grid, t, right=True) - 1).clamp_(0, len(grid) - 2)
        part = ((t - grid[place]) / (grid[place + 1] - grid[place])).clamp_max_(1.0)
        return torch.lerp(log_p[place], log_p[place + 1], part)

    def lone_coverage(self, t):
        """E[max(0, 1 - t / x)] over a mask's width x, summed over wider ones."""
        x, _ = width_at((torch.arange(20_000, **FLOAT64) + 0.5) / 20_000)
        narrower = torch.searchsorted(x, t, right=True)
        inverse = torch.cat([x.reciprocal().flip(0).cumsum(0).flip(0), torch.zeros(1, **FLOAT64)])
        return (len(x) - narrower - t * inverse[narrower]) / len(x)


def shape_of(masks: int) -> tuple[int, int]:
    """Returns numbers of widths G and of shifts per width R with G * R = masks. R grows with the
    number of masks, and is the largest divisor of it up to a power of two. (One width with R
    equispaced shifts approximates its triangle by a staircase.)"""
    most = max(1, 2 ** round(math.log2(max(masks, 2)) / 2 - 0.25))
    shifts = next(r for r in range(min(most, masks), 0, -1) if masks % r == 0)
    return masks // shifts, shifts


def width_at(uniform: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the width, in units of sigma, at a uniform number of (0, 1), and the log of its
    importance weight. Widths x come from Exp(spread) instead of Gamma(2, 1), so that the weight is
    ``spread * x * exp(-x (1 - 1/spread))``."""
    x = -WIDTH_SPREAD * torch.log1p(-uniform)
    return x, torch.log(WIDTH_SPREAD * x) - x * (1.0 - 1.0 / WIDTH_SPREAD)


@functools.lru_cache(maxsize=32)
def _coverage_on(masks: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """`_coverage` on a device, where it is kept: a copy from the host at every call would stall the
    stream."""
    with torch.inference_mode(False):
        grid, log_p = (x.to(device) for x in _coverage(masks))
    return grid, log_p


@functools.lru_cache(maxsize=32)
def _coverage(masks: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns distances in sigmas, and the log-probability that the union covers each of them: an
    integral over the sampler's one uniform number, on a grid that is finer towards 1, where the
    widest mask grows."""
    tail = torch.linspace(0.0, 30.0, 2001, **FLOAT64)  # 1 - exp(-30) is still below 1 in float64
    node = -torch.expm1(-(tail[1:] + tail[:-1]) / 2)
    mass = torch.exp(-tail[:-1]) - torch.exp(-tail[1:])
    grid = torch.cat([torch.arange(0.0, 8.0, 1 / 64, **FLOAT64), torch.arange(8.0, 60.0, 1 / 8, **FLOAT64)])
    widths, shifts = shape_of(masks)
    missed = torch.ones(len(grid), len(node), **FLOAT64)
    for k in range(widths):
        x, _ = width_at((k + node) / widths)
        # with R equispaced shifts of a width x, a row's farthest block start is uniform over the
        # last x/R of its reach
        missed *= 1.0 - ((1.0 - grid[:, None] / x) * shifts).clamp_(0.0, 1.0)
    covered = (1.0 - missed) @ mass / mass.sum()
    return grid, covered.clamp_(torch.finfo(torch.float64).tiny, 1.0).log()
