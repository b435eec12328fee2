"""Metrics and paired differences with confidence intervals.

Prompts and draws of the masks are separate sources of variance: with several draws the draw is the
unit.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

LEVEL = 0.95  # confidence level of every interval
POWER = 0.8  # power with which a detectable difference would be found


@dataclass(frozen=True)
class Metric:
    """A figure with its 95 % interval, or a time with its quartiles, from n samples or repeats."""

    value: int | float
    low: int | float | None
    high: int | float | None
    n: int
    unit: str

    def as_dict(self) -> dict[str, Any]:
        return {"value": self.value, "low": self.low, "high": self.high, "n": self.n, "unit": self.unit}


def proportion(hits: Sequence[float], draws: Sequence[int], *, clustered: bool, unit: str = "fraction") -> Metric:
    """Return the mean of scores from 0 to 1 with its interval.

    For zeros and ones the interval is Wilson's, for other scores that of `_bounded`. With several
    draws it is the t interval over the means of the draws, unless it is narrower than the other:
    agreement of draws carries no information about prompts.

    Args:
        hits: score of each sample.
        draws: draw of each sample.
        clustered: whether draws are the unit.
        unit: unit of the metric.
    """
    scores = np.asarray(hits, dtype=float)
    if _binary(scores):
        from scipy.stats import binomtest  # its import takes longer than many a command runs

        wilson = binomtest(round(scores.sum()), len(scores)).proportion_ci(LEVEL, method="wilson")
        low, high = float(wilson.low), float(wilson.high)
    else:
        low, high, _ = _bounded(scores, 0.0, 1.0)
    if clustered and len(set(draws)) > 1:
        half = _half_width(_group_means(scores, draws))
        low, high = min(low, max(0.0, scores.mean() - half)), max(high, min(1.0, scores.mean() + half))
    return Metric(float(scores.mean()), low, high, len(scores), unit)


def mean(
    values: Sequence[float], draws: Sequence[int], *, clustered: bool, unit: str, least: float = -math.inf
) -> Metric:
    """Return a mean with its t interval; a single value has no interval.

    Args:
        values: value of each sample.
        draws: draw of each sample.
        clustered: whether draws are the unit of the interval, otherwise samples are.
        unit: unit of the metric.
        least: smallest possible value, at which the interval is cut.
    """
    single = np.asarray(values, dtype=float)
    units = _group_means(single, draws) if clustered and len(set(draws)) > 1 else single
    half = _half_width(units) if len(units) > 1 else None
    centre = float(single.mean())
    low, high = (None, None) if half is None else (max(least, centre - half), centre + half)
    return Metric(centre, low, high, len(single), unit)


def jackknife(
    values: Sequence[Any],
    draws: Sequence[int],
    function: Callable[[Sequence[Any]], float],
    *,
    clustered: bool,
    unit: str,
) -> Metric:
    """Return a smooth function of the samples with the t interval of the delete-one jackknife.

    Examples are a ratio of sums and a perplexity. For a mean it is the ordinary t interval.

    Args:
        values: the samples.
        draws: draw of each sample.
        function: samples -> figure.
        clustered: whether a draw is left out at a time, otherwise a sample is.
        unit: unit of the metric.
    """
    groups = np.asarray(draws if clustered and len(set(draws)) > 1 else range(len(values)))
    names = sorted(set(groups.tolist()))
    value = float(function(values))
    if len(names) < 2:
        return Metric(value, None, None, len(values), unit)
    without = [float(function([v for v, g in zip(values, groups, strict=True) if g != name])) for name in names]
    half = _half_width(np.array(without)) * (len(names) - 1)
    return Metric(value, value - half, value + half, len(values), unit)


def ratio(
    sums: Sequence[tuple[float, float]],
    draws: Sequence[int],
    *,
    clustered: bool,
    unit: str,
    figure: Callable[[float], float] = float,
) -> Metric:
    """Return a ratio of two sums over the samples, or a smooth figure of it, with the interval of
    `jackknife`.

    Args:
        sums: (numerator, denominator) of each sample.
        draws, clustered, unit: as in `jackknife`.
        figure: ratio -> figure, for example its exponential.
    """

    def of(subset: Sequence[tuple[float, float]]) -> float:
        return figure(math.fsum(a for a, _ in subset) / math.fsum(b for _, b in subset))

    return jackknife(sums, draws, of, clustered=clustered, unit=unit)


def variance_parts(table: Sequence[Sequence[float]]) -> tuple[float, float, float]:
    """Return the variances of rows, of columns, and of the rest, in a table of one value for each row
    and column: the estimators of the analysis of variance of two crossed random effects, cut at 0.

    S. R. Searle, G. Casella and C. E. McCulloch (1992), Variance Components, chapter 4.

    Args:
        table: at least two rows and two columns.
    """
    values = np.asarray(table, dtype=float)
    rows, columns = values.shape
    of_rows, of_columns = values.mean(1), values.mean(0)
    left = values - of_rows[:, None] - of_columns + values.mean()
    rest = float((left**2).sum()) / ((rows - 1) * (columns - 1))
    row_part = float(of_rows.var(ddof=1)) - rest / columns
    column_part = float(of_columns.var(ddof=1)) - rest / rows
    return max(0.0, row_part), max(0.0, column_part), rest


def quartiles(values: Sequence[float], *, unit: str) -> Metric:
    """Return the median of repeats with the quartiles as interval; a single repeat has none."""
    low, middle, high = np.quantile(np.asarray(values, dtype=float), [0.25, 0.5, 0.75]).tolist()
    several = len(values) > 1
    return Metric(middle, low if several else None, high if several else None, len(values), unit)


@dataclass(frozen=True)
class Difference:
    """A paired difference, this minus reference, on the n common samples, with its interval.

    detectable: smallest true difference that as many samples would show with 80 % power; None if
        they are too few for any difference.
    """

    value: float
    low: float | None
    high: float | None
    detectable: float | None
    n: int

    def as_dict(self) -> dict:
        return dict(vars(self))


def paired_difference(
    this: Mapping[int, float],
    reference: Mapping[int, float],
    draw_of: Mapping[int, int],
    *,
    clustered: bool,
    bounded: bool = False,
) -> Difference | None:
    """Return the difference of two attentions on their common samples; None if there are none.

    The interval is Tango's score interval for zeros and ones, that of `_bounded` for other bounded
    scores, and the t interval for the rest. The t interval does not exist if all differences are
    equal. With several draws the unit is the draw, and the interval is never narrower than the one
    over the prompts.

    Args:
        this: sample -> score.
        reference: sample -> score of the reference.
        draw_of: sample -> draw.
        clustered: whether draws are the unit.
        bounded: whether scores are bounded by 0 and 1.
    """
    keys = sorted(set(this) & set(reference))
    if not keys:
        return None
    scores = np.array([[this[k], reference[k]] for k in keys], dtype=float)
    change = scores[:, 0] - scores[:, 1]
    n, centre = len(keys), float(change.mean())
    bounded = bounded or _binary(scores)
    if n < 2:
        return Difference(centre, None, None, None, n)
    if _binary(scores):
        more, less = int((change > 0).sum()), int((change < 0).sum())
        low, high = tango(more, less, n)
        detectable = _detectable_rate((more + less + 1) / (n + 2), n)
    elif bounded:
        low, high, spread = _bounded(change, -1.0, 1.0)
        detectable = _detectable(spread, n - 1)
    elif (change != change[0]).any():
        half = _half_width(change)
        low, high, detectable = centre - half, centre + half, _detectable(change.std(ddof=1) / math.sqrt(n), n - 1)
    else:
        return Difference(centre, None, None, None, n)
    draws = [draw_of[k] for k in keys]
    if clustered and len(set(draws)) > 1:
        means = _group_means(change, draws)
        half = _half_width(means)
        low, high = min(low, centre - half), max(high, centre + half)
        if detectable is not None:
            spread = means.std(ddof=1) / math.sqrt(len(means))
            detectable = max(detectable, _detectable(spread, len(means) - 1))
    if bounded:
        low, high = max(low, -1.0), min(high, 1.0)
        detectable = None if detectable is None or detectable > 1 else detectable
    return Difference(centre, low, high, detectable, n)


def tango(more: int, less: int, n: int, level: float = LEVEL) -> tuple[float, float]:
    """Return the score interval of a difference of paired proportions, (more - less) / n.

    It lies in [-1, 1], and its width is positive even if all pairs agree or differ in one
    direction.

    Args:
        more: pairs in which only the first is a success.
        less: pairs in which only the second is a success.
        n: number of pairs.
        level: confidence level.

    T. Tango (1998), Equivalence test and confidence interval for the difference in proportions for
    the paired-sample design, Statistics in Medicine 17:891, equations 24 to 26.
    """
    quantile, centre = _normal_quantile(0.5 + level / 2), (more - less) / n

    def score(difference: float) -> float:
        b = (2 * n - more + less) * difference - more - less
        only_less = (math.sqrt(b**2 + 8 * n * less * difference * (1 - difference)) - b) / (4 * n)
        variance = n * (2 * only_less + difference * (1 - difference))
        return (more - less - n * difference) / math.sqrt(variance) if variance > 0 else 0.0

    edge = 1 - 1e-12  # at 1 the variance of the score is zero
    low = -1.0 if less == n else _root(lambda d: score(d) - quantile, -edge, centre)
    high = 1.0 if more == n else _root(lambda d: score(d) + quantile, centre, edge)
    return low, high


def _detectable_rate(discordant: float, n: int) -> float | None:
    """The smallest difference that McNemar's test of n pairs shows with 80 % power, if any.

    discordant: share of discordant pairs, if that is not less than the difference itself.

    R. J. Connor (1987), Sample size for testing differences in proportions for the paired-sample
    design, Biometrics 43:207.
    """
    quantile, power = _normal_quantile(0.5 + LEVEL / 2), _normal_quantile(POWER)

    def surplus(difference: float) -> float:
        share = max(discordant, difference)
        return difference * math.sqrt(n) - quantile * math.sqrt(share) - power * math.sqrt(share - difference**2)

    return _root(surplus, 0.0, 1.0) if surplus(1.0) > 0 else None


def _detectable(spread: float, freedom: int) -> float:
    """The smallest difference that a t interval with this standard error shows with 80 % power."""
    return (_t_quantile(0.5 + LEVEL / 2, freedom) + _t_quantile(POWER, freedom)) * float(spread)


def _bounded(values: np.ndarray, least: float, most: float) -> tuple[float, float, float]:
    """The t interval of a mean of bounded values, low and high, and the mean's standard error.

    Two pseudo-observations are added, one in the middle and half a one at either bound, so that the
    interval has a width even if all values agree. For differences of zeros and ones it is the
    interval of A. Agresti and Y. Min (2005), Simple improved confidence intervals for comparing
    matched proportions, Statistics in Medicine 24:729, with the quantile of t for that of the
    normal distribution.

    values: the values. least, most: their bounds.
    """
    n = len(values)
    middle, reach = (least + most) / 2, (most - least) / 2
    centred = values - middle
    centre = centred.sum() / (n + 2)
    spread = math.sqrt(((centred**2).sum() + reach**2) / (n + 2) - centre**2) / math.sqrt(n + 2)
    half = _t_quantile(0.5 + LEVEL / 2, n + 1) * spread
    return max(least, float(middle + centre - half)), min(most, float(middle + centre + half)), spread


def _binary(scores: np.ndarray) -> bool:
    return bool(((scores == 0) | (scores == 1)).all())


def _group_means(values: np.ndarray, groups: Sequence[int]) -> np.ndarray:
    group_of = np.asarray(groups)
    return np.array([values[group_of == g].mean() for g in sorted(set(group_of.tolist()))])


def _half_width(units: np.ndarray) -> float:
    return _t_quantile(0.5 + LEVEL / 2, len(units) - 1) * float(units.std(ddof=1)) / math.sqrt(len(units))


# scipy.stats would have the quantiles, too, but takes longer to import than a short command runs
@functools.lru_cache(maxsize=1024)
def _normal_quantile(probability: float) -> float:
    from scipy.special import ndtri

    return float(ndtri(probability))


@functools.lru_cache(maxsize=1024)
def _t_quantile(probability: float, freedom: int) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(freedom, probability))


def _root(function: Callable[[float], float], low: float, high: float) -> float:
    from scipy.optimize import brentq

    return float(brentq(function, low, high))
