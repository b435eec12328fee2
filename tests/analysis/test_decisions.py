"""PValues of pairs, their correction, and the samples that a decision takes: against SciPy, statsmodels
and figures computed by hand."""

import math

import numpy as np
import pytest
from scipy import stats

from harness.analysis.decisions import PValues, draws_needed, holm, paired_tests, prompts_needed, variance_parts


def test_holm_by_hand():
    # sorted .005 .01 .03 .04, times 4 3 2 1, none smaller than the one before
    assert holm([0.01, 0.04, None, 0.03, 0.005]) == pytest.approx([0.03, 0.06, None, 0.06, 0.02], abs=1e-12)
    assert holm([]) == [] and holm([None]) == [None]
    assert holm([0.6, 0.9]) == [1.0, 1.0]


def test_equivalence_is_two_one_sided_t_tests():
    change = np.array([0.1, -0.1, 0.2, -0.15, 0.05, 0.0])
    lower = stats.ttest_1samp(change, -0.12, alternative="greater").pvalue
    upper = stats.ttest_1samp(change, 0.12, alternative="less").pvalue
    found = paired_tests(change, [0] * 6, clustered=False, margin=0.12)
    assert found.equivalence == pytest.approx(max(lower, upper), rel=1e-12)
    assert found.difference == pytest.approx(stats.ttest_1samp(change, 0).pvalue, rel=1e-12)


def test_equivalence_by_hand():
    # mean 0, standard error 1/sqrt(3): t = margin * sqrt(3) with 3 degrees of freedom
    found = paired_tests([1.0, 1.0, -1.0, -1.0], [0] * 4, clustered=False, margin=2.0)
    assert found.equivalence == pytest.approx(float(stats.t.sf(2 * math.sqrt(3), 3)), rel=1e-12)


def test_mcnemar_by_hand():
    change = [1.0] + [-1.0] * 9 + [0.0] * 30  # two-sided binomial: 2 (1 + 10) / 2^10
    found = paired_tests(change, [0] * 40, clustered=False, margin=0.02, bounded=True)
    assert found.difference == pytest.approx(22 / 1024, rel=1e-12)


@pytest.mark.parametrize("count, equal", [(20, False), (400, True)])
def test_equal_scores_prove_equality_only_by_their_number(count, equal):
    found = paired_tests([0.0] * count, [0] * count, clustered=False, margin=0.02, bounded=True)
    assert found.difference == 1
    assert found.equivalence is not None and (found.equivalence < 0.001) == equal


def test_draws_decide_where_they_differ_more_than_prompts():
    rng = np.random.default_rng(0)
    draws = np.arange(160) % 8
    change = rng.normal(0.3, 0.05, 160) + rng.normal(0, 0.5, 8)[draws]
    means = [change[draws == d].mean() for d in range(8)]
    found = paired_tests(change, draws, clustered=True, margin=0.1)
    assert found.difference == pytest.approx(stats.ttest_1samp(means, 0).pvalue, rel=1e-9)
    assert found.difference > stats.ttest_1samp(change, 0).pvalue


def test_prompts_decide_where_draws_agree_by_chance():
    change = np.array([1.0, -1.0, -1.0, 1.0] * 10)
    draws = np.repeat(np.arange(20), 2)  # every draw has the mean 0
    found = paired_tests(change, draws, clustered=True, margin=0.2)
    assert found.difference == pytest.approx(1.0)
    assert found.equivalence == pytest.approx(
        max(
            stats.ttest_1samp(change, -0.2, alternative="greater").pvalue,
            stats.ttest_1samp(change, 0.2, alternative="less").pvalue,
        ),
        rel=1e-9,
    )


def test_without_a_spread_there_is_no_test():
    assert paired_tests([0.0, 0.0], [0, 1], clustered=False, margin=1) == PValues(1.0, None)
    assert paired_tests([0.5, 0.5], [0, 1], clustered=False, margin=1) == PValues(None, None)
    assert paired_tests([0.5], [0], clustered=False, margin=1, bounded=True) == PValues(None, None)


def test_equal_masks_are_called_different_no_more_often_than_said():
    rng, draws = np.random.default_rng(1), np.arange(64) % 8
    rejected = 0
    for _ in range(300):
        change = rng.normal(0, 0.2, 8)[draws] + rng.normal(0, 0.3, 64)
        rejected += paired_tests(change, draws, clustered=True, margin=0.1).difference < 0.05
    assert rejected <= stats.binom.ppf(0.999, 300, 0.05)


def test_the_planned_prompts_have_the_power():
    difference, discordant = 0.1, 0.3
    n = prompts_needed(difference, discordant)
    rng, found, repeats = np.random.default_rng(2), 0, 2000
    chances = [(discordant + difference) / 2, (discordant - difference) / 2, 1 - discordant]
    counts = rng.multinomial(n, chances, size=repeats)
    for more, less, _ in counts:  # the normal test of McNemar
        found += abs(more - less) / math.sqrt(more + less) > stats.norm.ppf(0.975)
    assert found / repeats == pytest.approx(0.8, abs=4 * math.sqrt(0.16 / repeats))


def test_the_planned_draws_have_the_power():
    n = draws_needed(0.1, between=0.15, within=0.4, per_draw=10)
    rng, repeats = np.random.default_rng(3), 4000
    means = 0.1 + rng.normal(0, 0.15, (repeats, n)) + rng.normal(0, 0.4, (repeats, n, 10)).mean(2)
    found = (stats.ttest_1samp(means, 0, axis=1).pvalue < 0.05).mean()
    assert found >= 0.8 - 4 * math.sqrt(0.16 / repeats)
    fewer = (stats.ttest_1samp(means[:, : n // 2], 0, axis=1).pvalue < 0.05).mean()
    assert fewer < 0.7


@pytest.mark.parametrize("alpha", [0.05, 0.00013])
def test_plans_follow_the_formula_of_large_samples(alpha):
    """n = (z_alpha/2 + z_power)^2 variance / difference^2, with a few units more for Student's t."""
    quantiles = stats.norm.isf(alpha / 2) + stats.norm.ppf(0.8)
    for share in (0.02, 0.05, 0.1, 0.2, 0.4, 1.0):
        n = quantiles**2 * (share - 0.02**2) / 0.02**2
        assert n <= prompts_needed(0.02, share, alpha=alpha) <= n + 10


def test_a_stricter_level_takes_more_and_an_impossible_plan_names_no_number():
    assert prompts_needed(0.02, 0.1, alpha=0.0005) > prompts_needed(0.02, 0.1)
    assert prompts_needed(1.0, 1.0) == 2
    assert prompts_needed(1e-5, 0.5) is None


def test_parts_of_the_variance_by_hand():
    # means 2 and 6 with variance 8, within each draw 2: 8 - 2/2 is left between draws
    between, within = variance_parts([1.0, 3.0, 5.0, 7.0], [0, 0, 1, 1])
    assert (between, within) == pytest.approx((math.sqrt(7), math.sqrt(2)))
    assert variance_parts([1.0, 3.0, 1.0, 3.0], [0, 0, 1, 1])[0] == 0


def test_figures_that_are_not_finite_have_no_test():
    assert paired_tests([math.inf, 1.0, 2.0], [0, 0, 0], clustered=False, margin=1) == PValues(None, None)
