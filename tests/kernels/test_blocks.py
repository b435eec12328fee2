"""Starts and ends of blocks are what the buckets say, near and far from the first token."""

import pytest
import torch

from kernels import PositionalLSH

SLOPES = torch.tensor([8.0, 0.84, 0.5, 1 / 64, 1 / 256, 2.0**-16])


@pytest.mark.parametrize("sampler", ["gamma", "systematic", "fixed"])
@pytest.mark.parametrize("first", [0, 10**5, 9 * 10**6])
def test_starts_and_ends_are_those_of_the_buckets(sampler, first):
    heads = torch.arange(len(SLOPES))
    rows = (first + torch.arange(4000))[None].expand(len(SLOPES), -1)
    for seed in range(2):
        masks = PositionalLSH.draw(SLOPES, 16, seed=seed, sampler=sampler).masks
        own = masks.bucket(heads, rows)

        def bucket(position: torch.Tensor, masks=masks) -> torch.Tensor:
            return torch.floor((position.double() - masks.shift[:, None, :]) / masks.width[:, None, :])

        start, end = masks.starts(heads, rows), masks.ends(heads, rows)
        clipped = start == 0
        assert bool(((bucket(start) == own) | clipped).all()) and bool(((bucket(start - 1) < own) | clipped).all())
        assert bool((bucket(end) > own).all()) and bool((bucket(end - 1) <= own).all())
        assert bool((start <= rows[..., None]).all()) and bool((end > rows[..., None]).all())
