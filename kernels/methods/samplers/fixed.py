"""The authors' ablation: every mask has width 2 sigma and shift 0. Biased: whether a pair is
covered depends on its position."""

import torch

from kernels.methods.samplers.base import Sampler


class Fixed(Sampler):
    name = "fixed"
    random = False

    def draw(self, masks, uniform):
        width = torch.full((len(uniform), masks), 2.0, dtype=torch.float64)
        return width, torch.zeros_like(width), torch.zeros_like(width)

    def pairs(self, slopes, masks, tokens, match, sinks, near):
        position = torch.arange(tokens, dtype=torch.float64)
        width = 2.0 / slopes[:, None]
        start = torch.ceil(torch.floor(position / width) * width).clamp_min(sinks)
        nearest = (position - max(near - 1, 0)).clamp_min(sinks)  # first key of the near field
        beyond = (nearest - start).clamp_min(0).sum() * (masks if match == "passes" else 1)
        return float(beyond + len(slopes) * (position - nearest).clamp_min(0).sum())
