"""Intervals. Prompts and mask draws are separate sources of variance: with several draws the draw is the unit."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

LEVEL = 0.95
POWER = 0.8


@dataclass(frozen=True)
class Metric:
    """A figure with its 95 % interval, or a time with its quartiles; n is the number of samples or repeats it is made
    of."""

    value: float
    low: float | None
    high: float | None
    n: int
    unit: str

    def as_dict(self) -> dict:
        return {"value": self.value, "low": self.low, "high": self.high, "n": self.n, "unit": self.unit}


def proportion(hits: Sequence[float], draws: Sequence[int], *, clustered: bool, unit: str = "fraction") -> Metric:
    """A rate of zeros and ones. One attention without randomness: the Wilson interval. Several draws (`clustered`):
    the t interval over the draws' means, but never narrower than Wilson's, since draws that agree say nothing of the
    prompts."""
    hits = np.asarray(hits, dtype=float)
    wilson = stats.binomtest(round(hits.sum()), len(hits)).proportion_ci(LEVEL, method="wilson")
    low, high = float(wilson.low), float(wilson.high)
    if clustered and len(set(draws)) > 1:
        half = _half_width(_group_means(hits, draws))
        low, high = min(low, max(0.0, hits.mean() - half)), max(high, min(1.0, hits.mean() + half))
    return Metric(float(hits.mean()), low, high, len(hits), unit)


def mean(
    values: Sequence[float], draws: Sequence[int], *, clustered: bool, unit: str, least: float = -math.inf
) -> Metric:
    """A mean with its t interval, over draws' means if `clustered`, over samples otherwise; none from a single value.
    The interval is cut at `least`, the smallest value that can be."""
    values = np.asarray(values, dtype=float)
    units = _group_means(values, draws) if clustered and len(set(draws)) > 1 else values
    half = _half_width(units) if len(units) > 1 else None
    centre = float(values.mean())
    low, high = (None, None) if half is None else (max(least, centre - half), centre + half)
    return Metric(centre, low, high, len(values), unit)


def jackknife(
    values: Sequence[Any],
    draws: Sequence[int],
    function: Callable[[Sequence[Any]], float],
    *,
    clustered: bool,
    unit: str,
) -> Metric:
    """Any smooth function of the samples (a ratio of sums, a perplexity) with the delete-one jackknife's t interval:
    a draw is left out at a time if `clustered`, a sample otherwise. Of a mean it is the t interval."""
    groups = np.asarray(draws if clustered and len(set(draws)) > 1 else range(len(values)))
    names = sorted(set(groups.tolist()))
    value = float(function(values))
    if len(names) < 2:
        return Metric(value, None, None, len(values), unit)
    without = [float(function([v for v, g in zip(values, groups, strict=True) if g != name])) for name in names]
    half = _half_width(np.array(without)) * (len(names) - 1)
    return Metric(value, value - half, value + half, len(values), unit)


def quartiles(values: Sequence[float], *, unit: str) -> Metric:
    """The median of repeats of a measurement, with the quartiles in the interval's place; none from a single repeat."""
    low, middle, high = np.quantile(np.asarray(values, dtype=float), [0.25, 0.5, 0.75]).tolist()
    return Metric(middle, *((low, high) if len(values) > 1 else (None, None)), len(values), unit)


@dataclass(frozen=True)
class Difference:
    """A paired difference (this minus reference) on the samples both have, with its interval, and the smallest true
    difference that as many samples would show with 80 % power."""

    value: float
    low: float | None
    high: float | None
    detectable: float | None
    n: int

    def as_dict(self) -> dict:
        return dict(vars(self))


def paired_difference(
    this: Mapping[int, float], reference: Mapping[int, float], draw_of: Mapping[int, int], *, clustered: bool
) -> Difference | None:
    """Difference of two attentions sample by sample (key -> score); None without common samples.

    With several draws the unit is the draw. Where the scores are zeros and ones and hardly any sample differs, the
    observed spread says too little: the spread is taken no smaller than that of one discordant sample more than was
    seen.
    """
    keys = sorted(set(this) & set(reference))
    if not keys:
        return None
    change = np.array([this[k] - reference[k] for k in keys])
    n, centre = len(keys), float(change.mean())
    if n < 2:
        return Difference(centre, None, None, None, n)
    binary = all(v in (0.0, 1.0) for k in keys for v in (this[k], reference[k]))
    spread = change.std(ddof=1) / math.sqrt(n)
    if binary:
        discordant = (float(np.abs(change).sum()) + 1) / (n + 1)
        spread = max(spread, math.sqrt(max(discordant - centre**2, 0.0) / n))
    freedom = n - 1
    draws = [draw_of[k] for k in keys]
    if clustered and len(set(draws)) > 1:
        means = _group_means(change, draws)
        freedom = len(means) - 1
        spread = max(spread, means.std(ddof=1) / math.sqrt(len(means)))
    quantile = float(stats.t.ppf(0.5 + LEVEL / 2, freedom))
    power = float(stats.t.ppf(POWER, freedom))
    half = quantile * spread
    return Difference(centre, centre - half, centre + half, (quantile + power) * spread, n)


def _group_means(values: np.ndarray, groups: Sequence[int]) -> np.ndarray:
    groups = np.asarray(groups)
    return np.array([values[groups == g].mean() for g in sorted(set(groups.tolist()))])


def _half_width(units: np.ndarray) -> float:
    quantile = float(stats.t.ppf(0.5 + LEVEL / 2, len(units) - 1))
    return quantile * float(units.std(ddof=1)) / math.sqrt(len(units))
