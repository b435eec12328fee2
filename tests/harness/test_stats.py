"""Intervals against published numbers and against what they promise."""

import numpy as np
import pytest

from harness.stats import mean, paired_difference, proportion


@pytest.mark.parametrize(
    # Newcombe (1998), Statistics in Medicine 17:857, table I, method 3
    ("hits", "n", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_interval_is_the_published_one(hits, n, low, high):
    found = proportion([1.0] * hits + [0.0] * (n - hits), [0] * n, clustered=False)
    assert (round(found.low, 4), round(found.high, 4)) == (low, high) and found.n == n


def test_t_interval_of_draw_means():
    """Four draws with means 0.2, 0.4, 0.6, 0.8: t(3) = 3.1824, sd = 0.2582, se = 0.1291."""
    hits = [1.0] * 2 + [0.0] * 8 + [1.0] * 4 + [0.0] * 6 + [1.0] * 6 + [0.0] * 4 + [1.0] * 8 + [0.0] * 2
    draws = [d for d in range(4) for _ in range(10)]
    found = proportion(hits, draws, clustered=True)
    assert found.value == 0.5
    assert found.low == pytest.approx(0.5 - 3.1824 * 0.1291, abs=1e-3)
    assert found.high == pytest.approx(0.5 + 3.1824 * 0.1291, abs=1e-3)


def test_draws_that_agree_do_not_make_prompts_certain():
    hits, draws = [1.0] * 40, [i % 8 for i in range(40)]
    clustered, alone = proportion(hits, draws, clustered=True), proportion(hits, draws, clustered=False)
    assert (clustered.low, clustered.high) == (alone.low, alone.high) and clustered.low < 0.95


def test_intervals_cover_the_truth_when_draws_differ():
    """Samples within a draw share its luck: 95 % intervals over draws must cover, those over samples fall short."""
    rng = np.random.default_rng(0)
    covered = {True: 0, False: 0}
    for _ in range(400):
        rates = rng.beta(4, 2, size=8)  # a draw's own accuracy; mean 2/3
        draws = np.repeat(np.arange(8), 20)
        hits = (rng.random(160) < rates[draws]).astype(float)
        for clustered in covered:
            found = proportion(hits, draws.tolist(), clustered=clustered)
            covered[clustered] += found.low <= 2 / 3 <= found.high
    assert covered[True] / 400 > 0.92 and covered[False] / 400 < 0.75


def test_mean_of_a_known_sample():
    found = mean([1.0, 2.0, 3.0, 4.0], [0] * 4, clustered=False, unit="nats")
    assert found.value == 2.5 and found.low == pytest.approx(2.5 - 3.18245 * 0.645497, abs=1e-4)
    assert mean([1.0], [0], clustered=False, unit="nats").low is None
    assert mean([0.0, 0.1], [0, 0], clustered=False, unit="nats", least=0.0).low == 0.0


def test_paired_difference_uses_common_samples_only():
    found = paired_difference(
        {0: 1.0, 1: 0.0, 9: 1.0}, {0: 0.0, 1: 0.0, 5: 1.0}, dict.fromkeys(range(10), 0), clustered=False
    )
    assert found.n == 2 and found.value == 0.5
    assert paired_difference({0: 1.0}, {1: 1.0}, {}, clustered=False) is None


def test_identical_scores_are_not_proof_of_no_difference():
    same = {i: 1.0 for i in range(100)}
    found = paired_difference(same, same, dict.fromkeys(same, 0), clustered=False)
    assert found.value == 0.0 and found.low < 0 < found.high and 0.01 < found.detectable < 0.1


def test_detectable_difference_is_detected_with_the_stated_power():
    """Paired scores that truly differ by the detectable amount are told apart from zero in about 80 % of the cases."""
    rng = np.random.default_rng(1)
    n, drop = 400, 0.05
    detected, stated = 0, []
    for _ in range(300):
        reference = np.ones(n)
        this = (rng.random(n) >= drop).astype(float)
        found = paired_difference(
            dict(enumerate(this)), dict(enumerate(reference)), dict.fromkeys(range(n), 0), clustered=False
        )
        detected += found.high < 0
        stated.append(found.detectable)
    assert np.mean(stated) < drop and detected / 300 > 0.8
