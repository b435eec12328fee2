"""Intervals against published numbers and against what they promise."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats as scipy_stats

from harness.common.stats import mean, paired_difference, proportion, tango, variance_parts


@pytest.mark.parametrize(
    # Newcombe (1998), Statistics in Medicine 17:857, table I, method 3
    ("hits", "n", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_interval_is_the_published_one(hits, n, low, high):
    found = proportion([1.0] * hits + [0.0] * (n - hits), [0] * n, clustered=False)
    assert (round(found.low, 4), round(found.high, 4)) == (low, high)
    assert found.n == n


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
    assert (clustered.low, clustered.high) == (alone.low, alone.high)
    assert clustered.low < 0.95


def test_intervals_cover_the_truth_when_draws_differ():
    """Samples within a draw share its luck: 95 % intervals over draws must cover, those over
    samples fall short."""
    rng = np.random.default_rng(0)
    covered = {True: 0, False: 0}
    for _ in range(400):
        rates = rng.beta(4, 2, size=8)  # a draw's own accuracy; mean 2/3
        draws = np.repeat(np.arange(8), 20)
        hits = (rng.random(160) < rates[draws]).astype(float)
        for clustered in covered:
            found = proportion(hits, draws.tolist(), clustered=clustered)
            covered[clustered] += found.low <= 2 / 3 <= found.high
    assert covered[True] / 400 > 0.92
    assert covered[False] / 400 < 0.75


def test_mean_of_a_known_sample():
    found = mean([1.0, 2.0, 3.0, 4.0], [0] * 4, clustered=False, unit="nats")
    assert found.value == 2.5
    assert found.low == pytest.approx(2.5 - 3.18245 * 0.645497, abs=1e-4)
    assert mean([1.0], [0], clustered=False, unit="nats").low is None
    assert mean([0.0, 0.1], [0, 0], clustered=False, unit="nats", least=0.0).low == 0.0


def test_paired_difference_uses_common_samples_only():
    found = paired_difference(
        {0: 1.0, 1: 0.0, 9: 1.0}, {0: 0.0, 1: 0.0, 5: 1.0}, dict.fromkeys(range(10), 0), clustered=False
    )
    assert found.n == 2
    assert found.value == 0.5
    assert paired_difference({0: 1.0}, {1: 1.0}, {}, clustered=False) is None


def test_identical_scores_are_not_proof_of_no_difference():
    same = {i: 1.0 for i in range(100)}
    found = paired_difference(same, same, dict.fromkeys(same, 0), clustered=False)
    assert found.value == 0.0
    assert found.low < 0 < found.high
    assert 0.01 < found.detectable < 0.1


def test_detectable_difference_is_detected_with_the_stated_power():
    """Paired scores that truly differ by the detectable amount are told apart from zero in about 80
    % of the cases."""
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
    assert np.mean(stated) < drop
    assert detected / 300 > 0.8


@pytest.mark.parametrize(
    ("more", "less", "n", "level", "low", "high"),
    [
        # Tango (1998), Statistics in Medicine 17:891, section 6.1, soft contact lenses: the lower
        # limit, 90 %
        (0, 1, 44, 0.90, -0.096, None),
        # Fagerland, Lydersen and Laake (2014), Statistics in Medicine 33:2850, airway
        # hyper-responsiveness
        (1, 7, 21, 0.95, -0.517, -0.026),
    ],
)
def test_tangos_interval_is_the_published_one(more, less, n, level, low, high):
    found = tango(more, less, n, level)
    assert round(found[0], 3) == low
    assert high is None or round(found[1], 3) == high


@pytest.mark.parametrize("n", [2, 8, 160, 10_000])
def test_tangos_interval_where_it_has_a_closed_form(n):
    """With z the quantile: all pairs alike, +- z2 / (n + z2); all different in one direction, from
    (n - z2) / (n + z2) to 1."""
    z2 = scipy_stats.norm.ppf(0.975) ** 2
    assert tango(0, 0, n) == pytest.approx((-z2 / (n + z2), z2 / (n + z2)))
    assert tango(n, 0, n) == pytest.approx(((n - z2) / (n + z2), 1.0))
    assert tango(0, n, n) == pytest.approx((-1.0, (z2 - n) / (n + z2)))


def test_tangos_interval_decides_as_mcnemars_test_and_stays_in_its_bounds():
    for more, less in [(a, b) for a in range(13) for b in range(13 - a)]:
        low, high = tango(more, less, 12)
        mirrored = tango(less, more, 12)
        assert -1 <= low < high <= 1
        assert low <= (more - less) / 12 <= high
        assert (low, high) == pytest.approx((-mirrored[1], -mirrored[0]))
        mcnemar = (more - less) ** 2 / max(more + less, 1)
        assert (low > 0 or high < 0) == (mcnemar > scipy_stats.chi2.ppf(0.95, 1))


@pytest.mark.parametrize("draws", [1, 4])
@pytest.mark.parametrize("value", [1.0, -1.0, 0.0])
def test_no_differences_are_certain_because_they_are_all_equal(value, draws):
    this, other = {i: max(value, 0.0) for i in range(8)}, {i: max(-value, 0.0) for i in range(8)}
    found = paired_difference(this, other, {i: i % draws for i in range(8)}, clustered=draws > 1)
    assert (found.low, found.high) == tango(8 * (value > 0), 8 * (value < 0), 8)
    assert found.value == value
    assert found.high - found.low > 0.6
    assert 0.5 < found.detectable < 1


def test_differences_of_scores_between_zero_and_one_are_bounded_and_never_certain():
    draw_of = {i: i % 2 for i in range(6)}
    for clustered in (False, True):
        half = paired_difference(
            dict.fromkeys(range(6), 0.75), dict.fromkeys(range(6), 0.25), draw_of, clustered=clustered, bounded=True
        )
        assert half.low < 0.2
        assert 0.5 < half.high <= 1
        assert half.detectable > 0.3
        wide = paired_difference(
            dict(enumerate([1, 0.5, 1, 1, 1, 0.9])),
            dict.fromkeys(range(6), 0.0),
            draw_of,
            clustered=clustered,
            bounded=True,
        )
        assert -1 <= wide.low < wide.value < wide.high == 1.0
    # without bounds nothing says how far other samples may lie
    free = paired_difference(dict.fromkeys(range(6), 7.5), dict.fromkeys(range(6), 7.0), draw_of, clustered=False)
    assert (free.value, free.low, free.high, free.detectable) == (0.5, None, None, None)


def test_bounded_differences_of_zeros_and_ones_have_the_interval_of_agresti_and_min():
    """Their adjusted Wald interval of 40 and 20 discordant of 160 pairs, as PropCIs 0.3 has it
    (normal quantile)."""
    change = [1.0] * 40 + [-1.0] * 20 + [0.0] * 100
    this, other = {i: max(c, 0.0) for i, c in enumerate(change)}, {i: max(-c, 0.0) for i, c in enumerate(change)}
    this[0] = 1 - 1e-12  # not a zero or a one
    found = paired_difference(this, other, dict.fromkeys(this, 0), clustered=False, bounded=True)
    wider = scipy_stats.t.ppf(0.975, 161) / scipy_stats.norm.ppf(0.975)
    centre, half = 20 / 162, (0.216017 - 0.030896) / 2 * wider
    assert (found.low, found.high) == pytest.approx((centre - half, centre + half), abs=2e-6)


def test_draws_that_disagree_keep_the_interval_in_its_bounds():
    this = {i: float(i % 2) for i in range(8)}
    found = paired_difference(this, dict.fromkeys(range(8), 0.0), {i: i % 2 for i in range(8)}, clustered=True)
    assert (found.low, found.high) == (-1.0, 1.0)
    assert found.detectable is None


def test_scores_that_agree_do_not_make_a_mean_certain():
    for value in (0.0, 0.5, 1.0):
        found = proportion([value] * 8, range(8), clustered=False, unit="score")
        assert 0 <= found.low <= value <= found.high <= 1
        assert found.high - found.low > 0.2


@pytest.mark.parametrize("n", [8, 20, 160, 1000])
def test_detectable_difference_has_its_power_where_all_agreed(n):
    """Exact power of the interval's decision, if samples are lost at the detectable rate, and at
    half of it."""
    same = dict.fromkeys(range(n), 1.0)
    found = paired_difference(same, same, dict.fromkeys(same, 0), clustered=False).detectable
    least = next(lost for lost in range(n + 1) if tango(0, lost, n)[1] < 0)
    assert scipy_stats.binom.sf(least - 1, n, found) > 0.8 > scipy_stats.binom.sf(least - 1, n, found / 2)


def test_too_few_samples_show_no_difference_at_all():
    found = paired_difference({0: 1.0, 1: 1.0, 2: 1.0}, {0: 0.0, 1: 0.0, 2: 0.0}, {0: 0, 1: 0, 2: 0}, clustered=False)
    assert found.detectable is None
    assert found.low < 0 < found.high


def test_variance_parts_are_those_of_a_mixed_model():
    """Balanced crossed effects: restricted maximum likelihood, by statsmodels, where no part is 0."""
    statsmodels = pytest.importorskip("statsmodels.formula.api")
    generator = np.random.default_rng(4)
    rows, columns = generator.normal(0, 2, (12, 1)), generator.normal(0, 1, (1, 8))
    table = 5 + rows + columns + generator.normal(0, 0.5, (12, 8))
    at = np.indices(table.shape).reshape(2, -1)
    data = pd.DataFrame({"y": table.ravel(), "row": at[0], "column": at[1], "all": 0})
    parts = {"row": "0 + C(row)", "column": "0 + C(column)"}
    fit = statsmodels.mixedlm("y ~ 1", data, groups=data["all"], vc_formula=parts, re_formula="0").fit()
    expected = [*(dict(zip(fit.model.exog_vc.names, fit.vcomp, strict=True))[n] for n in ("row", "column")), fit.scale]
    assert variance_parts(table) == pytest.approx(expected, rel=1e-3)


def test_variance_parts_recover_their_truth():
    generator, found = np.random.default_rng(5), []
    for _ in range(300):
        rows, columns = generator.normal(0, 2, (10, 1)), generator.normal(0, 1, (1, 8))
        found.append(variance_parts(rows + columns + generator.normal(0, 0.5, (10, 8))))
    # standard errors of the means: variance * sqrt(2 / degrees of freedom / 300)
    for average, truth, freedom in zip(np.mean(found, 0), (4, 1, 0.25), (9, 7, 63), strict=True):
        assert abs(average - truth) < 4.5 * 1.1 * truth * (2 / freedom / 300) ** 0.5
