"""Expected pairs against draws, windows against brute force, and the window of equal cost."""

import math

import pytest
import torch

from kernels import PositionalLSH, Window, alibi_slopes, equal_cost_cutoff, expected_pairs
from kernels.methods.cost import window_pairs

SLOPES = torch.tensor([0.5, 0.06, 0.004], dtype=torch.float64)
TOKENS = 257


def counted(match, sampler, masks, seed, sinks=0):
    """Pairs that a draw visits: of its union and the sinks, or of the sinks and its blocks beyond
    them one by one."""
    drawn = PositionalLSH.draw(SLOPES, masks, seed=seed, sampler=sampler, sinks=sinks)
    if match == "fused":
        return float(drawn.pairs(TOKENS).sum())
    rows = torch.arange(TOKENS)[None].expand(3, -1)
    start = drawn.masks.starts(torch.arange(3), rows)
    of_sinks = sum(min(i, sinks) for i in range(TOKENS)) * 3
    return float((rows[..., None] - start.clamp_min(sinks)).clamp_min(0).sum()) + of_sinks


@pytest.mark.parametrize("sinks", [0, 40])
@pytest.mark.parametrize("masks", [3, 16])
@pytest.mark.parametrize("match", ["fused", "passes"])
@pytest.mark.parametrize("sampler", ["gamma", "systematic", "fixed"])
def test_expected_pairs_equal_the_mean_over_draws(sampler, match, masks, sinks):
    expected = expected_pairs(SLOPES, masks, TOKENS, match=match, sampler=sampler, sinks=sinks)
    if sampler == "fixed":  # every draw is the same
        assert counted(match, sampler, masks, 0, sinks) == expected
        return
    seen = torch.tensor([counted(match, sampler, masks, seed, sinks) for seed in range(250)], dtype=torch.float64)
    assert abs(seen.mean().item() - expected) <= 4 * seen.std().item() / len(seen) ** 0.5


@pytest.mark.parametrize("sinks", [0, 1, 40, TOKENS, 1000])
def test_union_pairs_of_a_draw_equal_its_dense_matrix(sinks):
    for sampler in ("gamma", "systematic", "fixed"):
        drawn = PositionalLSH.draw(SLOPES, 5, seed=1, sampler=sampler, sinks=sinks)
        assert drawn.pairs(TOKENS).tolist() == (drawn.matrix(TOKENS).tril(-1) > 0).sum((1, 2)).tolist()


@pytest.mark.parametrize("cutoff", [0.0, 0.3, 3.0, 20.0, 1e6])
def test_window_pairs_equal_sums_over_rows(cutoff):
    brute = sum(min(i, cutoff / slope) for slope in SLOPES.tolist() for i in range(TOKENS))
    assert window_pairs(SLOPES, cutoff, TOKENS) == pytest.approx(brute, rel=1e-12)
    window = Window(SLOPES, cutoff)
    whole = [sum(min(i, math.floor(cutoff / slope)) for i in range(TOKENS)) for slope in SLOPES.tolist()]
    assert window.pairs(TOKENS).tolist() == whole
    assert whole == (window.matrix(TOKENS).tril(-1) > 0).sum((1, 2)).tolist()


@pytest.mark.parametrize("sinks", [1, 40, TOKENS, 1000])
@pytest.mark.parametrize("cutoff", [0.0, 0.3, 3.0, 1e6])
def test_pairs_of_a_window_with_sinks_equal_a_count_of_keys(cutoff, sinks):
    def seen(slope: float, whole: bool) -> float:
        """Keys one by one, the part of a key that lies within the reach if its edge is not
        rounded."""
        reach = cutoff / slope
        within = [1.0 if d <= reach else max(0.0, 1 + reach - d) * (not whole) for d in range(TOKENS)]
        return sum(1.0 if j < sinks else within[i - j] for i in range(TOKENS) for j in range(i))

    brute = sum(seen(slope, False) for slope in SLOPES.tolist())
    assert window_pairs(SLOPES, cutoff, TOKENS, sinks=sinks) == pytest.approx(brute, rel=1e-12)
    window = Window(SLOPES, cutoff, sinks)
    assert window.pairs(TOKENS).tolist() == [seen(slope, True) for slope in SLOPES.tolist()]
    assert window.pairs(TOKENS).tolist() == (window.matrix(TOKENS).tril(-1) > 0).sum((1, 2)).tolist()


@pytest.mark.parametrize("sinks", [0, 64])
@pytest.mark.parametrize("sampler", ["gamma", "systematic", "fixed"])
@pytest.mark.parametrize("match", ["fused", "passes"])
def test_equal_cost_cutoff_solves_its_equation(match, sampler, sinks):
    slopes = alibi_slopes(8)
    options = {"match": match, "sampler": sampler, "sinks": sinks}
    cutoff = equal_cost_cutoff(slopes, 4, 5000, **options)
    assert window_pairs(slopes, cutoff, 5000, sinks=sinks) == pytest.approx(
        expected_pairs(slopes, 4, 5000, **options), rel=1e-9
    )


def test_equal_cost_cutoff_stops_at_the_whole_context():
    cutoff = equal_cost_cutoff(SLOPES, 1000, 50, match="passes")
    assert expected_pairs(SLOPES, 1000, 50, match="passes") > 3 * 50 * 49 / 2
    assert Window(SLOPES, cutoff).pairs(50).tolist() == [50 * 49 // 2] * 3
    for heads in (3, 5, 7, 12):  # slopes that are not powers of two: dividing by them rounds
        slopes = alibi_slopes(heads)
        full = Window(slopes, equal_cost_cutoff(slopes, 1000, 127, match="passes"))
        assert full.pairs(127).tolist() == [127 * 126 // 2] * heads
    assert equal_cost_cutoff(SLOPES, 4, 1) == 0.0  # one token has no pairs
    assert equal_cost_cutoff(SLOPES, 4, 50, sinks=50) == 0.0  # nor have sinks any to spare
    beside = equal_cost_cutoff(SLOPES, 1000, 50, match="passes", sinks=7)
    assert Window(SLOPES, beside, 7).pairs(50).tolist() == [50 * 49 // 2] * 3


@pytest.mark.parametrize("masks", [1, 4, 16])
def test_cutoff_at_long_context_is_the_harmonic_number_or_the_masks(masks):
    slopes = torch.tensor([1 / 40, 1 / 60], dtype=torch.float64)
    harmonic = sum(1 / s for s in range(1, masks + 1))
    assert equal_cost_cutoff(slopes, masks, 60_000) == pytest.approx(harmonic, rel=0.02)
    assert equal_cost_cutoff(slopes, masks, 60_000, match="passes") == pytest.approx(masks, rel=0.03)


def test_expected_pairs_do_not_depend_on_a_draw_and_grow_with_masks():
    fused = [expected_pairs(SLOPES, masks, 500) for masks in (1, 2, 4, 8)]
    assert fused == sorted(fused) and len(set(fused)) == 4
    assert expected_pairs(SLOPES, 1, 500) == pytest.approx(expected_pairs(SLOPES, 1, 500, match="passes"))
    assert max(fused) < 3 * 500 * 499 / 2
