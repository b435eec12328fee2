"""A sampler that the harness lacks, of which nothing is known but how it draws."""

import torch

from kernels.methods.samplers import Sampler


class Antithetic(Sampler):
    """Masks in pairs, of uniforms u and 1 - u."""

    name = "antithetic"

    def draw(self, masks, uniform):
        half = uniform[:, : 3 * ((masks + 1) // 2)].unflatten(1, (-1, 3))
        u, u_2, shift = torch.stack([half, 1 - half], 2).flatten(1, 2)[:, :masks].unbind(-1)
        return -torch.log(u * u_2), shift, torch.zeros_like(shift)
