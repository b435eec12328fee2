"""The worst case of approximate weights: the largest total variation between exact and approximate
attention in a row, over all scores between -r and r.

Let L and L' be a row's exact and approximate weights, w = L'/L, and x = exp(s) in [exp(-r),
exp(r)]. The exact attention is p = x L / Z with Z = sum x L, and p' = x L' / (M Z), where M is the
mean of w under p. The total variation is

    TV = sum over w > M of x L (w - M) / (M Z).

For a given M this is a fractional linear program in x with one equation, sum x L (w - M) = 0. The
keys with w > M add a gain g = x L (w - M) for a mass x L, those with w < M take the same amount;
the cheapest mass for a gain is a fractional knapsack, filled from the largest |w - M| on. So the
masses a(y) and b(y) for a gain y are convex and piecewise linear, y / (a(y) + b(y)) is largest at
one of their corners, and a search over M remains.

Without a bound on the scores only the keys of the largest and the smallest w matter: with kappa
their ratio the total variation comes close to (sqrt(kappa) - 1) / (sqrt(kappa) + 1), which is 1 for
weights that leave out a key.
"""

import numpy as np
import torch

GRID, REFINEMENTS = 33, 25
STEPS, RATE = 150, 0.05  # of the gradient


def largest_variation(log_exact: np.ndarray, log_changed: np.ndarray, score_range: float) -> float:
    """Return the largest total variation of a row over all scores in [-r, r].

    Args:
        log_exact: log L (keys,), finite.
        log_changed: log L' (keys,); -inf for a key that is left out.
        score_range: r.
    """
    weight = np.exp(log_exact - log_exact.max())
    ratio = np.exp(log_changed - log_exact)
    order = np.argsort(ratio)
    weight, ratio = weight[order], ratio[order]
    low = np.exp(-2.0 * score_range)  # x is defined up to a factor: it lies in [low, 1]
    least, most = _mean_ratios(weight, ratio, low)
    if not most > least * (1 + 1e-12):
        return 0.0

    def value(mean: float) -> float:
        return _variation_at(weight, ratio, low, mean)

    means = np.geomspace(least, most, GRID + 2)[1:-1]
    values = [value(m) for m in means]
    best = int(np.argmax(values))
    ends = (least if best == 0 else means[best - 1], most if best == GRID - 1 else means[best + 1])
    return max(values[best], _golden(value, *np.log(ends)))


def _mean_ratios(weight: np.ndarray, ratio: np.ndarray, low: float) -> tuple[float, float]:
    """Return the smallest and the largest mean of w under p: all keys up to, or from, some w on
    have x = 1, the others `low`. Keys are in order of w."""
    sums = []
    for x in (weight, weight * ratio):
        first = np.concatenate([[0.0], np.cumsum(x)])
        last = np.concatenate([np.cumsum(x[::-1])[::-1], [0.0]])
        sums.append((first + low * last, low * first + last))
    (mass_below, mass_above), (changed_below, changed_above) = sums
    return float((changed_below / mass_below).min()), float((changed_above / mass_above).max())


def _variation_at(weight: np.ndarray, ratio: np.ndarray, low: float, mean: float) -> float:
    """Return the largest total variation among x with this mean of w; 0 if there are none."""
    split, equal = np.searchsorted(ratio, mean), np.searchsorted(ratio, mean, side="right")
    lower = _knapsack(weight[:split], mean - ratio[:split], low)
    upper = _knapsack(weight[equal:][::-1], ratio[equal:][::-1] - mean, low)
    begin, end = max(lower[0][0], upper[0][0]), min(lower[0][-1], upper[0][-1])
    if begin > end:
        return 0.0
    gains = np.concatenate([lower[0], upper[0], [begin, end]])
    gains = gains[(gains >= begin) & (gains <= end)]
    masses = np.interp(gains, *lower) + np.interp(gains, *upper) + low * weight[split:equal].sum()
    return float((gains / masses).max() / mean)


def _knapsack(weight: np.ndarray, gain: np.ndarray, low: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the corners (gain, mass) of the cheapest mass for a gain, keys in order of falling gain
    per mass. Every key has at least the share `low`."""
    more = (1 - low) * weight
    return (
        low * (weight * gain).sum() + np.concatenate([[0.0], np.cumsum(more * gain)]),
        low * weight.sum() + np.concatenate([[0.0], np.cumsum(more)]),
    )


def _golden(value, begin: float, end: float) -> float:
    """Return the largest value that a golden section of log M between two bounds meets."""
    share = (5**0.5 - 1) / 2
    inner = [end - share * (end - begin), begin + share * (end - begin)]
    found = [value(float(np.exp(x))) for x in inner]
    best = max(found)
    for _ in range(REFINEMENTS):
        if found[0] > found[1]:
            end, inner[1], found[1] = inner[1], inner[0], found[0]
            inner[0] = end - share * (end - begin)
            found[0] = value(float(np.exp(inner[0])))
        else:
            begin, inner[0], found[0] = inner[0], inner[1], found[1]
            inner[1] = begin + share * (end - begin)
            found[1] = value(float(np.exp(inner[1])))
        best = max(best, *found)
    return best


def variation(log_exact: torch.Tensor, log_changed: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """Return the total variation (rows,) between exact and approximate attention.

    Args:
        log_exact, log_changed: log-weights (rows, keys).
        scores: (rows, keys).
    """
    return ((scores + log_changed).softmax(-1) - (scores + log_exact).softmax(-1)).abs().sum(-1) / 2


def adversary(
    log_exact: torch.Tensor, log_changed: torch.Tensor, score_range: float, *, dim: int, seed: int
) -> torch.Tensor:
    """Return the total variation (rows,) that queries and keys found by gradient reach.

    Queries and keys are vectors of one length, so that their scores lie in [-r, r]; the keys are
    common to all rows. The ascent goes up the mean over rows.

    Args:
        log_exact, log_changed: log-weights (rows, keys).
        score_range: r.
        dim: dimension of queries and keys.
        seed: of the vectors at the start.
    """
    generator = torch.Generator().manual_seed(seed)
    shapes = [(n, dim) for n in log_exact.shape]
    vectors = [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]
    optimiser = torch.optim.Adam(vectors, lr=RATE)
    best = torch.zeros(len(log_exact))
    for _ in range(STEPS):
        q, k = (torch.nn.functional.normalize(x, dim=-1) for x in vectors)
        found = variation(log_exact, log_changed, score_range * q @ k.T)
        if found.mean() > best.mean():
            best = found.detach()
        optimiser.zero_grad()
        (-found.mean()).backward()
        optimiser.step()
    return best
