"""The expected cost of a set of masks, and the window of equal cost.

Pairs are (query, key) with key < query: every method visits the diagonal. All figures are
expectations over draws in closed form (for the systematic sampler, a one-dimensional quadrature),
so that they do not depend on the draw at hand. A sampler without a closed form
(`kernels.methods.samplers`) has no expected cost.

Every later row visits each sink once under either method, and neither masks nor window are charged
for sinks again: the rest is a context without its first `sinks` tokens. A window of equal cost has
the same sinks, which cancel. The near field, the `near` nearest keys of a row, is visited once by
every method.
"""

from collections.abc import Callable

import torch

from kernels.methods.masks import aligned
from kernels.methods.samplers import MATCHES, sampler_of


def log_coverage(distance: torch.Tensor, masks: int, sampler: str) -> torch.Tensor:
    """Log-probability that at least one of the masks connects two tokens; for the sampler "gamma",
    ``log(1 - (1 - exp(-d))**masks)``.

    Args:
        distance: of the tokens, in units of sigma (= slope * tokens), >= 0, of any shape.
        masks: number of masks.
        sampler: a name of `kernels.methods.samplers.SAMPLERS`.

    Returns:
        float64 of the shape of `distance`.

    Raises:
        ValueError: for samplers without such a formula: with "fixed" the probability depends on the
            position of the pair.
    """
    law = sampler_of(sampler)
    if law.log_coverage is None:
        reason = "has no formula" if law.pairs is None else "depends on the position, not on the distance alone"
        raise ValueError(f"The coverage of sampler {sampler!r} {reason}: use weights 'count' or 'exact' with it.")
    return law.log_coverage(distance.double(), masks)


def align_bias(slopes: torch.Tensor, align: int) -> torch.Tensor:
    """Upper bound of the difference between the expected weight of a pair and L = exp(-m d), with
    masks on a grid of `align` tokens: (H,) float64, ``(align m)^2 / 8`` for the heads whose masks
    are on the grid (`kernels.methods.masks.aligned`), 0 for the others.

    The expectation is the linear interpolation of f(x) = exp(-m x) between multiples of `align`. It
    is never below L, equals L at the multiples, and on an interval of length h differs from it by
    at most ``h^2 / 8 max |f''|`` with f'' = m^2 exp(-m x) <= m^2.
    """
    slopes = slopes.double().cpu()
    return torch.where(aligned(slopes, align), (align * slopes).square() / 8, 0.0)


def expected_pairs(
    slopes: torch.Tensor,
    masks: int,
    tokens: int,
    *,
    match: str = "fused",
    sampler: str = "gamma",
    sinks: int = 0,
    align: int = 0,
    near: int = 0,
) -> float:
    """Expected number of visited pairs of all heads in a causal context, each sink once.

    Args:
        slopes: (H,), in 1/tokens.
        masks: number of masks per head.
        tokens: length of the context.
        match: "fused" counts the pairs of the union, "passes" the pairs of each mask.
        sampler: a name of `kernels.methods.samplers.SAMPLERS`.
        sinks: number of first tokens that every row sees.
        align: as in `kernels.methods.masks.draw_masks`. The probability of a pair is then the
            linear interpolation between multiples of `align`.
        near: number of nearest keys that every row sees, itself included; each counts once.

    Raises:
        ValueError: for numbers below 1, an unknown `match` or sampler, and a sampler without a
            formula.
    """
    _check(masks, tokens, match)
    law, slopes = sampler_of(sampler), slopes.double().cpu()
    if match not in law.matches:
        raise ValueError(f"The pairs that sampler {sampler!r} visits ({match}) have no formula: count those of a draw.")
    total = float(sink_pairs(len(slopes), tokens, sinks))
    if law.pairs is not None:
        return law.pairs(slopes, masks, tokens, match, sinks, near) + total
    tokens = max(tokens - sinks, 1)
    distance = torch.arange(1, tokens, dtype=torch.float64)
    rows = tokens - distance  # how many rows have a key at this distance

    def visits(t: torch.Tensor) -> torch.Tensor:
        """How often a pair t sigmas apart is visited."""
        if match == "fused":
            assert law.log_coverage is not None
            return law.log_coverage(t, masks).exp()
        assert law.lone_coverage is not None
        return masks * law.lone_coverage(t)

    for slope, on_grid in zip(slopes, aligned(slopes, align), strict=True):
        if on_grid:
            nearer = distance // align * align
            each = torch.lerp(visits(slope * nearer), visits(slope * (nearer + align)), (distance - nearer) / align)
        else:
            each = visits(slope * distance)
        each[: max(near - 1, 0)] = 1.0
        total += float((rows * each).sum())
    return total


def sink_pairs(heads: int, tokens: int, sinks: int) -> int:
    """Returns the number of pairs of a sink and a later row: ``sum over heads and rows i < tokens of
    min(i, sinks)``.

    Args:
        heads: number of heads.
        tokens: context.
        sinks: first tokens that every row sees.
    """
    count = min(sinks, tokens)
    return heads * (count * (count - 1) // 2 + (tokens - count) * count)


def window_pairs(
    slopes: torch.Tensor, cutoff: float | torch.Tensor, tokens: int, *, sinks: int = 0, near: int = 0
) -> float:
    """Returns the pairs of a window whose edge is not rounded: ``sum over heads and rows i < tokens
    of min(i, d)`` with ``d = max(cutoff / slope, near - 1)``, or with sinks of ``min(i, sinks) +
    min(i - sinks, d)``.

    Args:
        slopes: (H,).
        cutoff: T in units of sigma, one number or (H,).
        tokens: context.
        sinks, near: as in `Window`.
    """
    pairs, tokens = sink_pairs(len(slopes), tokens, sinks), max(tokens - sinks, 1)
    farthest = (cutoff / slopes.double().cpu()).clamp(min=max(near - 1, 0)).clamp(max=tokens - 1.0)
    whole = torch.floor(farthest)
    return pairs + float((whole * (whole + 1) / 2 + (tokens - 1 - whole) * farthest).sum())


def equal_cost_cutoff(
    slopes: torch.Tensor,
    masks: int,
    tokens: int,
    *,
    match: str = "fused",
    sampler: str = "gamma",
    sinks: int = 0,
    align: int = 0,
    near: int = 0,
) -> float:
    """The cutoff T, in units of sigma, at which exact ALiBi cut at ``slope * distance > T`` visits
    as many pairs as `masks` masks, both with the same sinks and near field: ``window_pairs(slopes, T,
    tokens) = expected_pairs(...)``.

    Args:
        slopes, masks, tokens, match, sampler, sinks, align, near: as in `expected_pairs`.

    Raises:
        ValueError: as in `expected_pairs`.
    """
    target = expected_pairs(slopes, masks, tokens, match=match, sampler=sampler, sinks=sinks, align=align, near=near)
    return cutoff_of(slopes, target, tokens, sinks=sinks, near=near)


def cutoff_of(slopes: torch.Tensor, pairs: float, tokens: int, *, sinks: int = 0, near: int = 0) -> float:
    """Returns the cutoff T, in units of sigma, that solves ``window_pairs(slopes, T, tokens) =
    pairs``.

    Args:
        slopes: (H,).
        pairs: of all heads.
        tokens: context.
        sinks, near: of the window.

    Returns:
        T. If the context has fewer pairs, the smallest T at which all are visited; if the near
        field alone has as many, 0.
    """
    # slightly more than the whole context, so that dividing by a slope does not round to one token
    # less
    high = float(slopes.max()) * max(tokens - sinks - 1, 0) * (1 + 1e-12)
    return solve(lambda cutoff: window_pairs(slopes, cutoff, tokens, sinks=sinks, near=near), pairs, high)


def solve(function: Callable[[float], float], value: float, high: float) -> float:
    """Returns x of 0 .. high with ``function(x) = value``; 0 or `high` if the value is beyond those
    there.

    Args:
        function: increasing and continuous.
        value: the value.
        high: the largest x.
    """
    low = 0.0
    if value >= function(high):
        return high
    if value <= function(low):
        return low
    for _ in range(200):  # halvings exhaust float64
        middle = (low + high) / 2
        if function(middle) < value:
            low = middle
        else:
            high = middle
    return high


def sliding_tokens(heads: int, pairs: float, tokens: int, *, sinks: int = 0) -> int:
    """Returns the width W of the sliding window whose number of pairs is nearest to `pairs`. A row
    of every head sees the W nearest keys, itself included, and the sinks.

    With w = W - 1 and N tokens beyond the sinks a head has ``w (w + 1) / 2 + (N - 1 - w) w`` pairs,
    which increases up to w = N - 1 and is solved for w. Of two widths equally near it is the
    smaller.

    Args:
        heads: number of heads.
        pairs: of all heads.
        tokens: context.
        sinks: first tokens that every row sees.
    """
    length = max(tokens - sinks, 1)
    per_head = max(pairs / heads - sink_pairs(1, tokens, sinks), 0.0)
    if per_head >= length * (length - 1) / 2:
        return length
    half = length - 0.5
    width = max(round(half - (half * half - 2 * per_head) ** 0.5), 0)
    near = range(max(width - 1, 0), min(width + 1, length - 1) + 1)
    return 1 + min(near, key=lambda w: abs(w * (2 * length - 1 - w) / 2 - per_head))


def _check(masks: int, tokens: int, match: str) -> None:
    if masks < 1 or tokens < 1:
        raise ValueError(f"masks and tokens must be at least 1, not {masks} and {tokens}.")
    if match not in MATCHES:
        raise ValueError(f"Unknown match {match!r}: choose one of {', '.join(MATCHES)}.")
