"""Decisions on paired samples: tests of a difference and of equivalence, one correction over all of
them, and the samples that a decision takes. All tests and powers are statsmodels'."""

import gc
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from harness.common.stats import LEVEL, POWER

ALPHA = round(1 - LEVEL, 9)  # of all tests together, after the correction
MAX_UNITS = 10**7  # prompts or draws beyond which a plan names no number


@dataclass(frozen=True)
class PValues:
    """p-values of one pair of attentions; None where a test does not exist.

    difference: of the hypothesis that they do not differ.
    equivalence: of the hypothesis that they differ by the margin or more (TOST).
    """

    difference: float | None
    equivalence: float | None


def paired_tests(
    change: Sequence[float], draws: Sequence[int], *, clustered: bool, margin: float, bounded: bool = False
) -> PValues:
    """Return the tests of paired differences.

    The difference is tested by Student's t, or by the exact test of McNemar if all scores are zeros
    and ones; equivalence by two one-sided t tests. With several draws both are done over samples
    and over the means of the draws, and the larger p-value counts: neither many prompts of a few
    draws nor draws that agree by chance decide. Bounded scores get two more values, 0 and half a
    one at either bound, as their intervals do (`harness.common.stats`), so that equal scores are
    no proof of equality.

    Args:
        change: difference of each sample.
        draws: draw of each sample.
        clustered: whether draws are a source of variance.
        margin: largest difference that does not matter.
        bounded: whether the differences are of scores from 0 to 1.
    """
    with np.errstate(all="ignore"):  # figures that are not finite have no p-value, without a warning
        found = _tests(np.asarray(change, dtype=float), np.asarray(draws), clustered, margin, bounded)
    return PValues(*(p if p is not None and math.isfinite(p) else None for p in found))


def _tests(
    values: np.ndarray, groups: np.ndarray, clustered: bool, margin: float, bounded: bool
) -> tuple[float | None, float | None]:
    from statsmodels.stats.contingency_tables import mcnemar
    from statsmodels.stats.weightstats import DescrStatsW

    if len(values) < 2:
        return None, None
    found = []
    if bounded:
        added = DescrStatsW(np.append(values, [0.0, 1.0, -1.0]), np.append(np.ones(len(values)), [1.0, 0.5, 0.5]))
        p = float(added.ttest_mean(0.0)[1])
        if np.isin(values, (-1.0, 0.0, 1.0)).all():
            more, less = int((values > 0).sum()), int((values < 0).sum())
            p = float(mcnemar([[0, more], [less, 0]], exact=True).pvalue) if more + less else 1.0
        found.append((p, float(added.ttost_mean(-margin, margin)[0])))
    elif (values != values[0]).any():
        found.append(_t_tests(values, margin))
    elif values[0] == 0:
        return 1.0, None
    else:
        return None, None
    names = np.unique(groups)
    if clustered and len(names) > 1:
        means = np.array([values[groups == name].mean() for name in names])
        if (means != means[0]).any():
            found.append(_t_tests(means, margin))
    return float(np.max([p for p, _ in found])), float(np.max([p for _, p in found]))  # nan if one is


def _t_tests(units: np.ndarray, margin: float) -> tuple[float, float]:
    from statsmodels.stats.weightstats import DescrStatsW

    described = DescrStatsW(units)
    return float(described.ttest_mean(0.0)[1]), float(described.ttost_mean(-margin, margin)[0])


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Return the p-values adjusted by Holm's method over all of them; None stays None."""
    from statsmodels.stats.multitest import multipletests

    known = [p for p in p_values if p is not None]
    gc.freeze()  # multipletests collects garbage, which takes longer than all else where many objects live
    try:
        adjusted = iter(multipletests(known, method="holm")[1].tolist() if known else [])
    finally:
        gc.unfreeze()
    return [None if p is None else next(adjusted) for p in p_values]


def prompts_needed(difference: float, discordant: float, *, alpha: float = ALPHA) -> int | None:
    """Return the prompts with which a paired test shows a difference of accuracy with 80 % power.

    Args:
        difference: true difference, from 0 to 1.
        discordant: share of prompts that only one of the two answers, at least the difference.
        alpha: level of the test.
    """
    share = max(discordant, difference)
    return _units(difference, math.sqrt(share - difference**2), alpha)


def draws_needed(
    difference: float, *, between: float, within: float, per_draw: int, alpha: float = ALPHA
) -> int | None:
    """Return the draws of the masks with which a test over draws shows a difference with 80 % power.

    Args:
        difference: true difference.
        between: standard deviation of the true differences of draws.
        within: standard deviation of the differences of prompts within a draw.
        per_draw: prompts in each draw.
        alpha: level of the test.
    """
    return _units(difference, math.sqrt(between**2 + within**2 / per_draw), alpha)


def _units(difference: float, spread: float, alpha: float) -> int | None:
    """The units of this standard deviation whose t test has 80 % power, at least 2."""
    from statsmodels.stats.power import TTestPower

    test, least = TTestPower(), 2
    if spread == 0:
        return least

    def power(units: float) -> float:
        # without the other tail, whose chance is negligible: statsmodels has no number for it at times
        return float(test.power(difference / spread, units, alpha / 2, alternative="larger"))

    low, high = least, least
    while power(high) < POWER:
        low, high = high, 2 * high
        if high > MAX_UNITS:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if power(middle) < POWER else (low, middle)
    return high


def variance_parts(change: Sequence[float], draws: Sequence[int]) -> tuple[float, float]:
    """Return the standard deviations between and within draws of paired differences.

    They are the estimates of the one-way analysis of variance, for draws of almost equal size; the
    first is 0 where the draws differ no more than their prompts explain.

    Args:
        change: difference of each sample.
        draws: draw of each sample.
    """
    values, groups = np.asarray(change, dtype=float), np.asarray(draws)
    parts = [values[groups == name] for name in np.unique(groups)]
    inner = len(values) - len(parts)
    within = sum(float(((p - p.mean()) ** 2).sum()) for p in parts) / inner if inner else 0.0
    if len(parts) < 2:
        return 0.0, math.sqrt(within)
    outer = float(np.var([p.mean() for p in parts], ddof=1))
    return math.sqrt(max(0.0, outer - within * len(parts) / len(values))), math.sqrt(within)
