"""Slopes against the paper's lists and against the code of the checkpoints' families."""

import pytest
import torch

from kernels import alibi_slopes

EIGHT = [1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32, 1 / 64, 1 / 128, 1 / 256]


def same(slopes, expected):
    return torch.allclose(slopes, torch.tensor(expected, dtype=torch.float64), rtol=1e-14, atol=0)


def test_lists_of_the_paper():
    assert same(alibi_slopes(8), EIGHT)
    half = 2**-0.5
    assert same(alibi_slopes(16), [half**h for h in range(1, 17)])
    assert alibi_slopes(16)[[1, 3, 15]].tolist() == pytest.approx([1 / 2, 1 / 4, 1 / 256])


def test_twelve_heads_take_the_eight_and_every_second_of_sixteen():
    assert same(alibi_slopes(12), EIGHT + [2**-0.5, 2**-1.5, 2**-2.5, 2**-3.5])


def test_bias_max_is_the_last_exponent():
    assert same(alibi_slopes(8, bias_max=16), [4.0**-h for h in range(1, 9)])


def test_slope_is_positive_and_never_one():
    """Lists that start at slope 1, or subtract a negative slope, are in circulation; this
    convention is neither."""
    for heads in (1, 6, 8, 32, 40):
        assert alibi_slopes(heads).min() > 0 and alibi_slopes(heads).max() < 1


def test_both_orders_are_the_same_numbers():
    for heads in range(1, 257):
        assert torch.equal(alibi_slopes(heads), alibi_slopes(heads, order="mpt"))


@pytest.mark.parametrize("heads", [1, 6, 8, 12, 16, 25, 32, 40, 71, 112])
def test_slopes_of_the_families_in_transformers(heads):
    from transformers.models.bloom.modeling_bloom import build_alibi_tensor
    from transformers.models.mpt.modeling_mpt import build_mpt_alibi_tensor

    ours = alibi_slopes(heads).float()
    mpt = build_mpt_alibi_tensor(heads, 9).reshape(heads, 9)  # slope * (j - 8)
    assert torch.allclose(mpt[:, -1] - mpt[:, -2], ours, rtol=1e-6)
    scaled = build_mpt_alibi_tensor(heads, 9, alibi_bias_max=16).reshape(heads, 9)
    wide = alibi_slopes(heads, bias_max=16, order="mpt").float()
    assert torch.allclose(scaled[:, -1] - scaled[:, -2], wide, rtol=1e-6)
    bloom = build_alibi_tensor(torch.ones(1, 9, dtype=torch.long), heads, torch.float32).reshape(heads, 9)  # slope * j
    assert torch.allclose(bloom[:, 1], ours, rtol=1e-6)
