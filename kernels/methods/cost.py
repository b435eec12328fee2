"""What a set of masks costs in expectation, and the window that costs the same.

Pairs are (query, key) with key < query: the diagonal is in every method. All figures are
expectations over draws, in closed form (the systematic sampler: a one-dimensional quadrature), so
that they do not depend on the draw at hand. A sampler without such a form
(`kernels.methods.samplers`) has none.

Sinks are visited once by every later row under either method, and no mask, nor the window, is
charged for them again: what is left is a context without its first `sinks` tokens. A window of
equal cost has the same sinks, which cancel.
"""

import torch

from kernels.methods.masks import aligned
from kernels.methods.samplers import MATCHES, sampler_of


def log_coverage(distance: torch.Tensor, masks: int, sampler: str) -> torch.Tensor:
    """Log-probability that at least one of the masks connects two tokens `distance` apart.

    Args: distance in units of sigma (= slope * tokens), >= 0, any shape. Returns float64 of that
    shape. For "gamma" this is ``log(1 - (1 - exp(-d))**masks)``. Raises ValueError for samplers
    that have no such formula: with "fixed" the probability depends on the position of the pair.
    """
    law = sampler_of(sampler)
    if law.log_coverage is None:
        reason = "has no formula" if law.pairs is None else "depends on the position, not on the distance alone"
        raise ValueError(f"The coverage of sampler {sampler!r} {reason}: use weights 'count' or 'exact' with it.")
    return law.log_coverage(distance.double(), masks)


def align_bias(slopes: torch.Tensor, align: int) -> torch.Tensor:
    """How far the expected weight of a pair may be from L = exp(-m d) with masks on a grid of
    `align` tokens, by head (H,) float64: ``(align m)^2 / 8`` for the heads that it takes
    (`kernels.methods.masks.aligned`), 0 for the others.

    The expectation is the linear interpolation of exp(-m x) between multiples of `align`: never
    below L, equal to it at the multiples, and within an interval of length h at most ``h^2 / 8 max
    |f''|`` off, f'' = m^2 exp(-m x) <= m^2.
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
) -> float:
    """Expected visited pairs of all heads over a causal context of `tokens`: of the union
    ("fused"), or of the S blocks counted one by one ("passes"); with each sink once. `align` as in
    `draw_masks`: what a pair's probability is between the multiples of it is then their linear
    interpolation."""
    _check(masks, tokens, match)
    law, slopes = sampler_of(sampler), slopes.double().cpu()
    if match not in law.matches:
        raise ValueError(f"The pairs that sampler {sampler!r} visits ({match}) have no formula: count those of a draw.")
    total = float(sink_pairs(len(slopes), tokens, sinks))
    if law.pairs is not None:
        return law.pairs(slopes, masks, tokens, match, sinks) + total
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
        total += float((rows * each).sum())
    return total


def sink_pairs(heads: int, tokens: int, sinks: int) -> int:
    """``sum over heads and rows i < tokens of min(i, sinks)``: how often a sink is seen by a later
    row."""
    seen = min(sinks, tokens)
    return heads * (seen * (seen - 1) // 2 + (tokens - seen) * seen)


def window_pairs(slopes: torch.Tensor, cutoff: float, tokens: int, *, sinks: int = 0) -> float:
    """``sum over heads and rows i < tokens of min(i, cutoff / slope)``: the pairs of a window, its
    edge not rounded; with sinks, ``min(i, sinks) + min(i - sinks, cutoff / slope)``."""
    pairs, tokens = sink_pairs(len(slopes), tokens, sinks), max(tokens - sinks, 1)
    farthest = torch.clamp(cutoff / slopes.double().cpu(), max=tokens - 1.0)
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
) -> float:
    """The cutoff T at which exact ALiBi cut at ``slope * distance > T`` visits as many pairs as
    `masks` masks do, both with the same sinks.

    Solves ``window_pairs(slopes, T, tokens) = expected_pairs(...)`` by `cutoff_of`. Returns T in
    units of sigma.
    """
    target = expected_pairs(slopes, masks, tokens, match=match, sampler=sampler, sinks=sinks, align=align)
    return cutoff_of(slopes, target, tokens, sinks=sinks)


def cutoff_of(slopes: torch.Tensor, pairs: float, tokens: int, *, sinks: int = 0) -> float:
    """The cutoff T, in units of sigma, at which a window visits so many pairs:
    ``window_pairs(slopes, T, tokens) = pairs``, or the smallest that sees every pair where there
    are fewer."""
    # a hair more than the whole context, so that dividing by a slope again does not round to one
    # token less
    low, high = 0.0, float(slopes.max()) * max(tokens - sinks - 1, 0) * (1 + 1e-12)
    if pairs >= window_pairs(slopes, high, tokens, sinks=sinks):
        return high
    for _ in range(200):  # the function is increasing and continuous; 200 halvings exhaust float64
        middle = (low + high) / 2
        if window_pairs(slopes, middle, tokens, sinks=sinks) < pairs:
            low = middle
        else:
            high = middle
    return high


def _check(masks: int, tokens: int, match: str) -> None:
    if masks < 1 or tokens < 1:
        raise ValueError(f"masks and tokens must be at least 1, not {masks} and {tokens}.")
    if match not in MATCHES:
        raise ValueError(f"Unknown match {match!r}: choose one of {', '.join(MATCHES)}.")
