"""Masks on a grid: their edges, the expectation of their weights, their cost, and every kernel
under them."""

import math

import pytest
import torch

from kernels import PositionalLSH, attend, expected_pairs
from kernels.impl.flex import score_of
from kernels.methods.cost import align_bias
from kernels.methods.masks import aligned, draw_masks
from tests.kernels.cases import KERNELS

ALIGN = 16
SLOPES = torch.tensor([0.5, 1 / 60, 1 / 200, 1 / 64])  # the first is too steep
FLAT = torch.tensor([False, True, True, True])
HEADS = torch.arange(4)


def drawn(masks=8, align=ALIGN, slopes=SLOPES, seed=3, **options):
    return PositionalLSH.draw(slopes, masks, seed=seed, align=align, **options)


def interpolated(slope: float, distance: torch.Tensor) -> torch.Tensor:
    """exp(-slope x) between the multiples of ALIGN, as straight lines."""
    nearer = distance // ALIGN * ALIGN
    part = (distance - nearer) / ALIGN
    return (1 - part) * torch.exp(-slope * nearer) + part * torch.exp(-slope * (nearer + ALIGN))


def test_edges_are_the_nearest_of_the_grid_and_steep_heads_have_none():
    """By the edges of the same masks without a grid: each moves to the nearest edge of a cell, and
    no other is made."""
    on, off = drawn().masks, draw_masks(SLOPES, 8, seed=3)
    assert torch.equal(on.width, off.width) and torch.equal(on.shift, off.shift)
    assert (on.grid[:, 0] > 1).tolist() == FLAT.tolist() == aligned(SLOPES, ALIGN).tolist()
    rows = torch.arange(3000)[None].expand(4, -1)
    start, free = on.starts(HEADS, rows), off.starts(HEADS, rows)
    assert torch.equal(start[0], free[0])
    for head in range(1, 4):
        offset = float(on.grid[head, 1])
        for s in range(8):
            width, shift = float(off.width[head, s]), float(off.shift[head, s])
            edges = [shift + k * width for k in range(math.ceil(3000 / width) + 1)]
            moved = {offset + ALIGN * round((edge - offset) / ALIGN) for edge in edges}
            assert set(start[head, :, s].tolist()) - {0} == {int(x) for x in moved if 0 < x < 3000}


@pytest.mark.parametrize("sampler", ["gamma", "systematic"])
def test_starts_and_ends_are_those_of_the_buckets(sampler):
    for first in (0, 9 * 10**6):
        rows = (first + torch.arange(2000))[None].expand(4, -1)
        masks = drawn(16, sampler=sampler).masks
        own, start, end = masks.bucket(HEADS, rows), masks.starts(HEADS, rows), masks.ends(HEADS, rows)
        for s in range(16):
            clipped = start[..., s] == 0
            inside = masks.bucket(HEADS, start[..., s])[..., s] == own[..., s]
            before = masks.bucket(HEADS, start[..., s] - 1)[..., s] < own[..., s]
            assert bool((inside | clipped).all()) and bool((before | clipped).all())
            assert bool((masks.bucket(HEADS, end[..., s])[..., s] > own[..., s]).all())
            assert bool((masks.bucket(HEADS, end[..., s] - 1)[..., s] == own[..., s]).all())


def test_the_count_is_one_number_for_each_pair_of_cells():
    weights = drawn()
    matrix = weights.matrix(200)
    for head in range(1, 4):
        cell = (torch.arange(200) - int(weights.masks.grid[head, 1])) // ALIGN
        first = torch.tensor([int((cell == c).nonzero()[0]) for c in cell])
        assert torch.equal(matrix[head], matrix[head][first][:, first])
        assert len(matrix[head].unique()) > 3


def test_expectation_is_the_interpolation_by_all_offsets():
    """Two tokens that lie in cells q apart are connected with probability exp(-m align q): the mean
    over the offsets is the interpolation, to rounding, and the bound on what it is off holds and is
    nearly reached."""
    offsets, distance = torch.arange(ALIGN), torch.arange(150)
    for slope in SLOPES[FLAT].tolist():
        cell = [(x - offsets[:, None]) // ALIGN for x in (1000, 1000 + distance)]
        mean = torch.exp(-slope * ALIGN * (cell[1] - cell[0]).double()).mean(0)
        assert (mean - interpolated(slope, distance.double())).abs().max() < 1e-14
        off = mean - torch.exp(-slope * distance.double())
        bound = float(align_bias(torch.tensor([slope]), ALIGN)[0])
        assert bound == pytest.approx((ALIGN * slope) ** 2 / 8) and bound <= 0.01
        assert off.min() > -1e-14 and 0.8 * bound < off.max() <= bound
    assert align_bias(SLOPES, ALIGN)[0] == 0 and not bool(align_bias(SLOPES, 0).any())


@pytest.mark.parametrize("sampler", ["gamma", "systematic"])
def test_weights_have_the_expectation_over_many_draws(sampler):
    """Heads of one slope are so many draws."""
    slope, draws = 1 / 60, 6000
    weights = drawn(16, slopes=torch.full((draws,), slope), sampler=sampler)
    rows, distance = torch.tensor([300, 307, 341]), torch.arange(0, 200, 4)
    w = torch.stack([weights.log_dense(row[None], row - distance)[:, 0].exp() for row in rows], 1)
    error, spread = w.mean(0) - interpolated(slope, distance.double()), w.std(0) / draws**0.5
    z = (error / spread)[spread > 1e-9]
    assert len(z) > 100 and z.abs().max() < 4.5 and z.square().mean().sqrt() < 1.6
    of_law = (w.mean(0) - torch.exp(-slope * distance.double()))[:, 2] / spread[:, 2]
    assert of_law.min() > 3  # half a cell apart the two are told from one another


def test_offsets_are_uniform_and_those_of_no_other_draw():
    one = [drawn(2, slopes=torch.full((4000,), 1 / 200), seed=seed).masks.grid[:, 1] for seed in (1, 2)]
    for offset in one:
        seen = torch.bincount(offset.long(), minlength=ALIGN).double()
        assert len(seen) == ALIGN and float(((seen - 250).square() / 250).sum()) < 37.7  # 0.1 % of chi-square, 15 free
    assert abs(float((one[0] == one[1]).double().mean()) - 1 / ALIGN) < 4 * (1 / ALIGN / 4000) ** 0.5
    few, many = drawn(8).masks, drawn(16).masks
    assert torch.equal(few.grid, many.grid) and torch.equal(few.width, many.width[:, :8])
    assert drawn(slopes=SLOPES[:1]).masks.grid is None  # no head takes it


@pytest.mark.parametrize("match", ["fused", "passes"])
@pytest.mark.parametrize("sampler", ["gamma", "systematic"])
def test_expected_pairs_are_the_mean_over_draws(sampler, match):
    tokens = 257
    rows = torch.arange(tokens)[None].expand(4, -1)

    def pairs(seed: int) -> float:
        weights = drawn(5, sampler=sampler, seed=seed)
        if match == "fused":
            return float(weights.pairs(tokens).sum())
        return float((rows[..., None] - weights.masks.starts(HEADS, rows)).sum())

    seen = torch.tensor([pairs(seed) for seed in range(250)], dtype=torch.float64)
    expected = expected_pairs(SLOPES, 5, tokens, match=match, sampler=sampler, align=ALIGN)
    assert abs(seen.mean().item() - expected) <= 4 * seen.std().item() / len(seen) ** 0.5
    assert expected != expected_pairs(SLOPES, 5, tokens, match=match, sampler=sampler)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("sinks, causal", [(0, True), (3, True), (0, False)])
@pytest.mark.parametrize("sampler", ["gamma", "systematic"])
def test_kernels_agree_with_the_oracle(sampler, sinks, causal, kernel):
    generator = torch.Generator().manual_seed(1)
    q, k, v = (torch.randn(2, heads, 700, 8, generator=generator) for heads in (4, 2, 2))
    weights = drawn(sampler=sampler, sinks=sinks)
    found = attend(q, k, v, weights, kernel=kernel, causal=causal, return_lse=True)
    want = attend(q.double(), k.double(), v.double(), weights, kernel="exact", causal=causal, return_lse=True)
    assert all((a - b).abs().max() < 2e-5 for a, b in zip(found, want, strict=True))
    token = torch.arange(700)
    first, last = weights.reach(HEADS, token[None].expand(4, -1))
    reached = (token >= first[..., None]) & (token <= last[..., None])
    assert torch.equal((weights.matrix(700) > 0)[..., sinks:], reached[..., sinks:])
    assert int((token - first).max()) < weights.span


def test_halves_of_the_masks_have_the_grid_of_the_whole():
    whole, halves = drawn(), drawn().halves()
    assert all(torch.equal(half.masks.grid, whole.masks.grid) and half.count == 4 for half in halves)


def test_flex_counts_on_the_grid_what_the_definition_does():
    """By its score function, which it would compile, at pairs that the union covers."""
    token, weights = torch.arange(300), drawn(4)
    log_w = weights.log_dense(token, token)
    score = score_of(weights, token, 300, 0)(0.0, 0, HEADS[:, None, None], token[:, None], token)
    assert (score - log_w)[log_w > -math.inf].abs().max() < 1e-5


@pytest.mark.parametrize(
    "options, hint",
    [
        ({"weights": "rb"}, "Use weights='count' with align"),
        ({"weights": "exact"}, "Use weights='count' with align"),
        ({"sampler": "fixed"}, "align must be 0 or at least 2 tokens, and 0 with the sampler 'fixed'"),
        ({"align": 1}, "align must be 0 or at least 2"),
        ({"align": -4}, "align must be at least 0"),
        ({"align": 2.5}, "align must be a whole number"),
    ],
)
def test_what_a_grid_cannot_be_combined_with(options, hint):
    with pytest.raises(ValueError, match=hint):
        drawn(**options)
