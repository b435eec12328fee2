"""Windows of their own length in each head, and the staggered window, by counts and by drawn masks."""

import pytest
import torch

from kernels import Alibi, PositionalLSH, Window, alibi_slopes, attend
from kernels.methods.cost import window_pairs
from kernels.methods.stagger import EULER, staggered_cutoff_of, staggered_cutoffs, staggered_pairs
from tests.kernels.cases import KERNELS

SLOPES = alibi_slopes(4)


def seen_pairs(slopes, cutoffs, tokens, near=0):
    return sum(
        slope * (i - j) <= cutoff or i - j < near
        for slope, cutoff in zip(slopes.tolist(), cutoffs.tolist(), strict=True)
        for i in range(tokens)
        for j in range(i)
    )


@pytest.mark.parametrize("kernel", ["exact", *KERNELS])
def test_each_head_has_a_length_of_its_own(kernel):
    lengths, sinks = torch.tensor([1, 7, 64, 20]), 2
    window = Window.of_tokens(SLOPES, lengths, sinks)
    assert torch.equal(window.tokens, lengths - 1) and torch.equal(window.pack()[:, 1], lengths - 1.0)
    assert window.span == 63
    q, k, v = torch.randn(3, 1, 4, 90, 8, generator=torch.Generator().manual_seed(0)).unbind(0)
    distance = torch.arange(90)[:, None] - torch.arange(90)
    outside = (distance < 0) | ((distance >= lengths[:, None, None]) & (torch.arange(90) >= sinks))
    scores = q @ k.mT / 8**0.5 - SLOPES.float()[:, None, None] * distance
    expected = torch.softmax(scores.masked_fill(outside, -torch.inf), -1) @ v
    torch.testing.assert_close(attend(q, k, v, window, kernel=kernel), expected, atol=2e-5, rtol=1e-4)


def test_lengths_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="at least 1"):
        Window.of_tokens(SLOPES, torch.tensor([1, 0, 2, 3]))
    with pytest.raises(ValueError, match="4 heads need a cutoff each"):
        Window(SLOPES, torch.ones(3))
    with pytest.raises(ValueError, match="cutoff must be at least 0"):
        Window(SLOPES, torch.tensor([1.0, 2.0, torch.nan, 3.0]))


@pytest.mark.parametrize("layers, heads", [(1, 8), (2, 8), (3, 8), (6, 4), (32, 32)])
def test_cutoffs_are_the_quantiles_of_the_reach_of_masks(layers, heads):
    harmonic = sum(1 / s for s in range(1, 17))  # the mean reach of 16 masks
    cutoffs = staggered_cutoffs(harmonic, layers, heads)
    levels = (1 - torch.exp(-cutoffs)) ** 16  # P(reach <= t)
    count = layers * heads
    torch.testing.assert_close(
        levels.flatten().sort().values, (torch.arange(count, dtype=torch.float64) + 0.5) / count, rtol=1e-9, atol=0
    )
    strata = torch.floor(levels * layers)
    assert torch.equal(strata.sort(0).values, torch.arange(layers).double()[:, None].expand(-1, heads))


def test_their_spread_is_that_of_drawn_unions():
    slopes = torch.full((4000,), 1 / 64, dtype=torch.float64)
    drawn = PositionalLSH.draw(slopes, 16, seed=5)
    rows = torch.full((4000, 1), 20_000)
    reach = ((20_000 - drawn.reach(torch.arange(4000), rows)[0][:, 0]).double() / 64).sort().values
    cutoffs = staggered_cutoffs(sum(1 / s for s in range(1, 17)), 8, 8).flatten().sort().values
    for share in (0.1, 0.5, 0.9):
        expected = torch.quantile(reach, share)
        # the standard error of a quantile over the density of the law there, about 3 and 2 %
        assert torch.quantile(cutoffs, share) == pytest.approx(float(expected), rel=0.05)


def test_a_long_window_is_staggered_by_a_gumbel_law():
    below, above = (staggered_cutoffs(t, 2, 4) for t in (30.0, 30.0 + 1e-9))
    torch.testing.assert_close(below, above, rtol=0, atol=1e-6)
    assert staggered_cutoffs(500.0, 2, 4).mean() - (staggered_cutoffs(400.0, 2, 4).mean()) == pytest.approx(100)
    assert bool((staggered_cutoffs(0.0, 2, 4) == 0).all()) and pytest.approx(0.57721566) == EULER


@pytest.mark.parametrize("near", [0, 16])
def test_it_visits_the_pairs_of_the_window_that_it_replaces(near):
    layers, tokens = 3, 150
    wanted = window_pairs(SLOPES, 2.0, tokens, near=near)
    mean = staggered_cutoff_of(SLOPES, wanted, tokens, layers=layers, near=near)
    assert staggered_pairs(SLOPES, mean, tokens, layers=layers, near=near) == pytest.approx(wanted, rel=1e-9)
    cutoffs = staggered_cutoffs(mean, layers, 4)
    counted = sum(seen_pairs(SLOPES, layer, tokens, near) for layer in cutoffs) / layers
    assert abs(counted - wanted) / (4 * tokens) < 0.5  # a head's edge is rounded to a token
    assert len(cutoffs.flatten().unique()) == 12
    whole = staggered_cutoff_of(SLOPES, 1e9, tokens, layers=layers)
    q, k, v = torch.randn(3, 1, 4, tokens, 8, generator=torch.Generator().manual_seed(0)).unbind(0)
    for layer in staggered_cutoffs(whole, layers, 4):
        torch.testing.assert_close(attend(q, k, v, Window(SLOPES, layer)), attend(q, k, v, Alibi(SLOPES)))
