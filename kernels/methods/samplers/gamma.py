"""The paper's sampler (arXiv 2605.09472, 3): independent masks, width ~ Gamma(2, sigma), shift ~
U(0, width)."""

import math

import torch

from kernels.methods.samplers.base import Sampler


class Gamma(Sampler):
    """The first S of 2S masks are the same masks."""

    name = "gamma"
    independent = True

    def draw(self, masks, uniform):
        u, u_2, shift = uniform.view(-1, masks, 3).unbind(-1)
        return -torch.log(u * u_2), shift, torch.zeros_like(shift)

    def log_coverage(self, t, masks):
        """``log(1 - (1 - exp(-t))**masks)``"""
        likely = torch.log(-torch.expm1(masks * torch.log1p(-torch.exp(-t))))
        # beyond t = 30 the coverages by different masks are disjoint events to 13 digits; farther
        # out exp(-t) underflows
        return torch.where(t > 30.0, math.log(masks) - t, likely)

    def lone_coverage(self, t):
        return torch.exp(-t)
