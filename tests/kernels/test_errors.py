"""The user's mistakes are ValueErrors whose sentence says what to change."""

import math

import pytest
import torch

from kernels import Alibi, PositionalLSH, Window, alibi_slopes, attend, equal_cost_cutoff, expected_pairs
from kernels.methods.cost import log_coverage
from kernels.methods.masks import draw_masks

SLOPES = alibi_slopes(4)


def call(q=(1, 4, 9, 8), k=(1, 4, 9, 8), v=None, dtypes=(torch.float32,) * 3, weights=None, **options):
    shapes = (q, k, k if v is None else v)
    q, k, v = (torch.zeros(shape, dtype=dtype) for shape, dtype in zip(shapes, dtypes, strict=True))
    return attend(q, k, v, weights or Alibi(SLOPES), **options)


@pytest.mark.parametrize(
    "mistake, hint",
    [
        ({"kernel": "flash"}, "choose one of auto, exact, sdpa"),
        ({"q": (4, 9, 8)}, r"q must be \(batch, heads, queries, head_dim\)"),
        ({"v": (1, 4, 9, 6)}, r"k, v \(batch, kv_heads, keys, head_dim\)"),
        ({"q": (2, 4, 9, 8)}, "must be .*got"),
        ({"q": (1, 4, 9, 16)}, "must be .*got"),
        ({"k": (1, 3, 9, 8)}, "3 key heads do not divide 4"),
        ({"weights": Alibi(alibi_slopes(6))}, "have 6 slopes, q has 4 heads"),
        ({"dtypes": (torch.float32, torch.float32, torch.bfloat16)}, "must share one floating dtype"),
        ({"dtypes": (torch.int64,) * 3}, "floating dtype"),
        ({"padding": torch.tensor([0, 0])}, "one count in 0 .. 9 for each of the 1"),
        ({"padding": torch.tensor([10])}, "in 0 .. 9"),
        ({"padding": torch.tensor([-1])}, "in 0 .. 9"),
        ({"q": (1, 4, 10, 8)}, "pass k and v of the whole sequence"),
        ({"q_offset": 1}, "q_offset that belongs to them"),
        ({"q_offset": -1}, "do not lie among the 9 keys"),
        ({"q_offset": torch.tensor([0, 0])}, "one for each of the 1 sequences"),
        ({"q_offset": 0.5}, "q_offset must be whole numbers, not torch.float32"),
        ({"padding": torch.tensor([1.9])}, "padding must be whole numbers"),
        ({"gap": 2.5}, "gap must be whole numbers"),
        ({"weights": "alibi"}, r"weights must be Alibi\(...\), .* not 'alibi'"),
        ({"q": (0, 4, 9, 8), "k": (0, 4, 9, 8)}, "Batch, heads and head_dim must be at least 1"),
        ({"k": (1, 0, 9, 8)}, "Batch, heads and head_dim must be at least 1"),
        ({"q": (1, 4, 9, 0), "k": (1, 4, 9, 0)}, "Batch, heads and head_dim must be at least 1"),
    ],
)
def test_attend(mistake, hint):
    with pytest.raises(ValueError, match=hint):
        call(**mistake)
    assert call().shape == (1, 4, 9, 8)  # the call without the mistake is right


def test_tensors_on_several_devices():
    q = torch.zeros(1, 4, 9, 8)
    with pytest.raises(ValueError, match="must be on one device; got cpu, meta, cpu"):
        attend(q, q.to("meta"), q, Alibi(SLOPES))


@pytest.mark.parametrize(
    "options, hint",
    [
        ({"heads": 0}, "heads must be at least 1"),
        ({"heads": 8, "bias_max": 0.0}, "bias_max must be positive"),
        ({"heads": 8, "order": "bloom"}, "choose one of press, mpt"),
    ],
)
def test_slopes(options, hint):
    heads = options.pop("heads")
    with pytest.raises(ValueError, match=hint):
        alibi_slopes(heads, **options)


@pytest.mark.parametrize("slopes", [[], [0.5, 0.0], [0.5, -0.25], [math.nan], [math.inf], [[0.5]]], ids=str)
@pytest.mark.parametrize("make", [Alibi, lambda s: Window(s, 3.0), lambda s: PositionalLSH.draw(s, 4, seed=0)])
def test_slopes_of_weights(make, slopes):
    with pytest.raises(ValueError, match="finite positive numbers, one per head"):
        make(torch.tensor(slopes))


@pytest.mark.parametrize(
    "sinks, hint", [(-1, "sinks must be at least 0"), (2.5, "whole number"), (True, "whole number")]
)
def test_sinks_of_a_window(sinks, hint):
    with pytest.raises(ValueError, match=hint):
        Window(SLOPES, 3.0, sinks)
    assert type(Window(SLOPES, 3.0, torch.tensor(4)).sinks) is int


@pytest.mark.parametrize("cutoff", [-0.5, math.nan])
def test_window(cutoff):
    with pytest.raises(ValueError, match="cutoff must be at least 0"):
        Window(SLOPES, cutoff)


@pytest.mark.parametrize(
    "options, hint",
    [
        ({"masks": 0}, "masks must be at least 1"),
        ({"sampler": "sobol"}, "choose one of gamma, systematic, fixed"),
        ({"sampler": "sobol", "weights": "rb"}, "choose one of gamma, systematic, fixed"),
        ({"weights": "mean"}, "choose one of count, rb, exact"),
        ({"weights": "rb", "sampler": "fixed"}, "use weights 'count' or 'exact'"),
        ({"masks": 0, "weights": "rb"}, "masks must be at least 1"),
        ({"masks": 4.5}, "masks must be a whole number, not 4.5"),
        ({"sinks": 2.5}, "sinks must be a whole number, not 2.5"),
        ({"sinks": -1}, "sinks must be at least 0"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"seed": 0.5}, "seed must be a whole number"),
        ({"draw": 2**64}, "draw must be below 18446744073709551616"),
        ({"layer": -3}, "layer must be at least 0"),
    ],
)
def test_draws(options, hint):
    masks = options.pop("masks", 4)
    with pytest.raises(ValueError, match=hint):
        PositionalLSH.draw(SLOPES, masks, **{"seed": 0, **options})


def test_draw_masks_and_coverage():
    with pytest.raises(ValueError, match="masks must be at least 1"):
        draw_masks(SLOPES, 0, seed=0)
    with pytest.raises(ValueError, match="choose one of gamma"):
        draw_masks(SLOPES, 4, seed=0, sampler="sobol")
    with pytest.raises(ValueError, match="depends on the position"):
        log_coverage(torch.ones(1), 4, "fixed")


@pytest.mark.parametrize("function", [expected_pairs, equal_cost_cutoff])
@pytest.mark.parametrize(
    "masks, tokens, options, hint",
    [
        (0, 10, {}, "at least 1"),
        (4, 0, {}, "at least 1"),
        (4, 10, {"match": "union"}, "choose one of fused, passes"),
        (4, 10, {"sampler": "sobol"}, "choose one of gamma, systematic, fixed"),
    ],
)
def test_cost(function, masks, tokens, options, hint):
    with pytest.raises(ValueError, match=hint):
        function(SLOPES, masks, tokens, **options)
