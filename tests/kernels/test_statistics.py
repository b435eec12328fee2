"""Laws of the samplers over many draws: bias, extents, reach, error against S, and distinct draws
for distinct keys.

A head with the same slope is one more independent draw, so many heads make many draws at once.
Tolerances are standard errors of the estimates; seeds are fixed."""

import math

import numpy as np
import pytest
import torch

from kernels import Alibi, PositionalLSH, attend
from kernels.methods.cost import log_coverage
from kernels.methods.masks import draw_masks, uniforms

SIGMA = 16.0
DRAWS = 1600


def many(count, masks=16, sampler="gamma", weights="count", sigma=SIGMA, seed=2):
    slopes = torch.full((count,), 1 / sigma, dtype=torch.float64)
    return PositionalLSH.draw(slopes, masks, seed=seed, sampler=sampler, weights=weights)


def z_scores(sampler, weights):
    """(mean over draws of w - L) in standard errors, for rows spread over a context and distances
    to 5 sigma; bias. Cells that fewer than 20 draws cover or miss have no standard error to speak
    of and are left out."""
    rows = torch.tensor([90, 101, 133, 190])
    distance = torch.arange(0, 90, 3)
    law = torch.exp(-distance.double() / SIGMA)
    drawn = many(DRAWS, sampler=sampler, weights=weights)
    w = torch.stack([drawn.log_dense(row[None], row - distance)[:, 0].exp() for row in rows], 1)
    error, spread = w.mean(0) - law, w.std(0) / DRAWS**0.5
    measured = ((w > 0).sum(0) >= 20) & (((w == 0).sum(0) >= 20) | (w.std(0) > 0.01))
    return (error / spread)[measured], error


@pytest.mark.parametrize(
    "sampler, weights", [("gamma", "count"), ("gamma", "rb"), ("systematic", "count"), ("systematic", "rb")]
)
def test_weights_are_unbiased(sampler, weights):
    z, _ = z_scores(sampler, weights)
    assert len(z) > 60
    assert z.abs().max() < 4.5 and z.square().mean().sqrt() < 1.6


def test_weights_known_to_be_biased_are_flagged():
    z, _ = z_scores("gamma", "exact")
    assert z.abs().max() > 20  # L on the union misses what the union misses
    _, error = z_scores("fixed", "count")
    assert error.abs().max() > 0.5  # hard blocks: no variance at all, and far from L


def test_rao_blackwell_has_less_variance_on_the_same_pairs():
    rows, columns = torch.tensor([200]), torch.arange(150, 200)
    count, rb = (many(400, weights=kind).log_dense(rows, columns).exp()[:, 0] for kind in ("count", "rb"))
    assert torch.equal(count > 0, rb > 0)
    assert bool((rb.var(0) <= count.var(0)).all()) and rb.var(0).mean() < 0.75 * count.var(0).mean()


def test_left_and_right_extents_of_a_block_follow_the_joint_exponential_law():
    masks = many(1200).masks
    rows = torch.full((1200, 1), 2000)
    start, end = masks.starts(torch.arange(1200), rows), masks.ends(torch.arange(1200), rows)
    left, right = (2000 - start).reshape(-1), (end - 1 - 2000).reshape(-1)
    for a in (0, 1, 5, 16, 40):
        for b in (0, 2, 16, 50):
            p = math.exp(-(a + b) / SIGMA)
            seen = ((left >= a) & (right >= b)).double().mean().item()
            assert abs(seen - p) <= 4 * math.sqrt(p * (1 - p) / len(left)) + 1e-12


@pytest.mark.parametrize("masks", [1, 4, 16])
def test_miss_rate_follows_the_closed_form(masks):
    rows = torch.full((3000, 1), 3000)
    start, _ = many(3000, masks=masks).reach(torch.arange(3000), rows)
    for distance in (4, 16, 48, 64):
        p = (1 - math.exp(-distance / SIGMA)) ** masks
        missed = (3000 - start[:, 0] < distance).double().mean().item()
        assert abs(missed - p) <= 4 * math.sqrt(p * (1 - p) / 3000)


def test_coverage_of_systematic_masks_follows_its_table():
    rows = torch.full((3000, 1), 3000)
    start, _ = many(3000, sampler="systematic").reach(torch.arange(3000), rows)
    for distance in (16, 40, 60, 80):
        p = log_coverage(torch.tensor([distance / SIGMA]), 16, "systematic").exp().item()
        seen = (3000 - start[:, 0] >= distance).double().mean().item()
        assert abs(seen - p) <= 4 * math.sqrt(max(p * (1 - p), 1e-4) / 3000)


@pytest.mark.parametrize("masks", [4, 16, 64])
def test_union_reaches_a_harmonic_number_of_sigmas(masks):
    rows = torch.full((800, 1), 20_000)
    start, _ = many(800, masks=masks, sigma=64.0).reach(torch.arange(800), rows)
    harmonic = sum(1 / s for s in range(1, masks + 1))
    assert (20_000 - start).double().mean().item() / 64 == pytest.approx(harmonic, rel=0.06)


def relative_error(masks, sampler="gamma", weights="count", heads=16, tokens=640):
    """rms relative error of each draw against exact ALiBi on rows beyond 6 sigma; q, k, v standard
    normal."""
    generator = torch.Generator().manual_seed(masks)
    q, k, v = (torch.randn(1, heads, tokens, 64, generator=generator) for _ in range(3))
    drawn = many(heads, masks=masks, sampler=sampler, weights=weights, seed=4)
    exact = attend(q, k, v, Alibi(drawn.slopes), kernel="sdpa")[:, :, 96:]
    got = attend(q, k, v, drawn, kernel="sdpa")[:, :, 96:]
    return ((got - exact).square().mean() / exact.square().mean()).sqrt().item()


def test_error_falls_as_one_over_the_root_of_masks():
    masks = [8, 16, 32, 64, 128]
    error = [relative_error(s) for s in masks]
    slope = np.polyfit(np.log(masks), np.log(error), 1)[0]
    assert -0.62 <= slope <= -0.40
    assert all(0.8 <= e * s**0.5 <= 1.25 for e, s in zip(error, masks, strict=True))


def test_systematic_and_rao_blackwell_masks_err_less():
    assert relative_error(16, sampler="systematic") <= 0.16
    assert relative_error(16, weights="rb") <= 0.8 * relative_error(16)


@pytest.mark.parametrize(
    ("key", "numbers"),
    [
        ((0, 0, 0, 0), ["0x1.3b52be2690344p-1", "0x1.79e85a6ab83a0p-1", "0x1.55e43f8183d36p-1"]),
        ((2**64 - 1, 7, 3, 111), ["0x1.a5c4cf7c5c15ap-3", "0x1.b98ee46823debp-2", "0x1.12be82d1efc7ap-3"]),
        ((9, 1, 2, 2**63 + 4), ["0x1.ed159ca6ec69fp-2", "0x1.0ff07b75c429ap-1"]),
        ((2**33, 2**32 - 1, 0, 5), ["0x1.06e57720e4020p-1", "0x1.7de341cb1860cp-4"]),
    ],
)
def test_draws_stay_what_they_were_in_all_committed_records(key, numbers):
    """The numbers of this project's own Philox, which drew the masks of the records before NumPy's
    did."""
    assert uniforms([key], len(numbers))[0].tolist() == [float.fromhex(x) for x in numbers]


def test_a_key_is_the_halves_of_its_words():
    """Words of 64 bits and of few bits enter SeedSequence alike, as two words of 32 bits."""
    words = np.random.default_rng(5).integers(0, 2**64, (12, 4), dtype=np.uint64)
    words[:4] >>= np.uint64(54)  # as small as seeds and layers are
    words[4:6] = [[0] * 4, [2**64 - 1] * 4]
    for row, key in zip(uniforms(words.tolist(), 6), words.tolist(), strict=True):
        halves = [half for word in key for half in (word % 2**32, word // 2**32)]
        raw = np.random.Philox(np.random.SeedSequence(halves)).random_raw(6)
        assert np.array_equal(row.numpy(), ((raw >> np.uint64(11)) + 0.5) / 2**53)


def test_distinct_keys_give_distinct_draws():
    """Seeds, draws, layers and heads never stand in for one another, nor do the halves of a seed."""
    slopes = torch.ones(1000, dtype=torch.float64)
    drawn = [draw_masks(slopes, 1, seed=s, draw=d, layer=la) for s in (0, 2**32) for d in range(3) for la in range(3)]
    for numbers in (torch.cat([m.width for m in drawn]), torch.cat([m.shift for m in drawn])):
        assert len(numbers.unique()) == 18_000
