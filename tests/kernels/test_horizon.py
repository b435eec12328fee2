"""The horizon of masks against its closed form, against counts over drawn masks, and against the
arithmetic of torch."""

import math

import pytest
import torch

from kernels import PositionalLSH, alibi_slopes
from kernels.methods import horizon


@pytest.mark.parametrize("masks", [1, 4, 16, 64, 256, 1024])
def test_half_distance_of_one_head_has_a_closed_form(masks):
    sigma = 256.0
    expected = -sigma * math.log(1 - 2 ** (-1 / masks))
    assert horizon.half_distance(torch.tensor([1 / sigma]), masks) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("sampler", ["gamma", "systematic"])
def test_missed_keys_are_as_frequent_as_predicted(sampler):
    """400 draws of 8 masks, one row each: the share that misses a key is binomial."""
    slopes, draws, row = torch.tensor([1 / 40, 1 / 150]), 400, 5000
    distance = torch.tensor([10, 60, 120, 300, 500])
    predicted = horizon.miss_probability(slopes, distance, 8, sampler=sampler)
    missed = torch.zeros(2, 5)
    for draw in range(draws):
        weights = PositionalLSH.draw(slopes, 8, seed=11, draw=draw, sampler=sampler)
        first = weights.reach(torch.arange(2), torch.full((2, 1), row))[0]
        missed += row - distance < first
    error = (predicted * (1 - predicted) / draws).sqrt().clamp_min(1 / draws)
    assert (((missed / draws - predicted) / error).abs() < 4.5).all()


def test_all_heads_of_all_layers_miss_independently():
    slopes, distance = alibi_slopes(8), torch.tensor([100.0, 700.0])
    single = horizon.miss_probability(slopes, distance, 4)
    lost = horizon.loss_probability(slopes, distance, 4, layers=3)
    assert lost.tolist() == pytest.approx((single.prod(0) ** 3).tolist(), rel=1e-9)
    assert horizon.half_distance(slopes, 4, layers=3) > horizon.half_distance(slopes, 4)


def test_the_near_field_is_never_missed():
    missed = horizon.miss_probability(alibi_slopes(4), torch.tensor([63, 64]), 1, near=64)
    assert (missed[:, 0] == 0).all()
    assert (missed[:, 1] > 0).all()
    assert horizon.half_distance(torch.tensor([2.0]), 1, near=64) == pytest.approx(64)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_blindness_is_where_the_weight_rounds_to_zero(dtype):
    slopes = torch.tensor([0.25, 1 / 256])
    for slope, distance in zip(slopes.tolist(), horizon.blind_distance(slopes, dtype).tolist(), strict=True):
        below, above = (
            torch.tensor(math.exp(-slope * distance * part), dtype=torch.float64) for part in (0.999, 1.001)
        )
        assert below.to(dtype) > 0
        assert above.to(dtype) == 0
