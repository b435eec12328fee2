"""A slope window whose length varies over layers and heads as the reach of random masks does.

The reach of a row under c independent masks, in units of sigma, is at most t with probability
``(1 - exp(-t))^c``; its mean is ``psi(c + 1) + gamma``, for whole c the harmonic number H_c. A
staggered window of mean length T is cut in each layer and head at one quantile of this law, with c
such that the mean is T. So a key beyond T sigmas is seen by some layers and heads, as under masks,
but always by the same.
"""

import torch

from kernels.methods.cost import solve, window_pairs

EULER = 0.5772156649015329
LARGEST_MEAN = 30.0  # beyond it the law is log(c) plus a Gumbel variable of mean EULER, to 13 digits


def staggered_cutoffs(cutoff: float, layers: int, heads: int) -> torch.Tensor:
    """Returns the cutoffs of all layers and heads in units of sigma, (layers, heads) float64:
    ``-log(1 - u^(1/c))`` with

    ``u = ((layer + head) mod layers + (head + 1/2) / heads) / layers``,

    layers and heads counted from 0. All u are the midpoints of layers * heads equal parts of (0, 1),
    and over the layers each head has one of every `layers`-th part.

    Args:
        cutoff: T, the mean of the law.
        layers, heads: numbers of the model.
    """
    layer, head = torch.meshgrid(torch.arange(layers), torch.arange(heads), indexing="ij")
    u = ((layer + head) % layers + (head.double() + 0.5) / heads) / layers
    if cutoff <= 0:
        return torch.zeros_like(u)
    if cutoff > LARGEST_MEAN:
        return cutoff - EULER - (-u.log()).log()
    count = solve(lambda c: float(torch.digamma(torch.tensor(c + 1, dtype=torch.float64))) + EULER, cutoff, 2e13)
    return -torch.log(-torch.expm1(u.log() / count))


def staggered_pairs(
    slopes: torch.Tensor, cutoff: float, tokens: int, *, layers: int, sinks: int = 0, near: int = 0
) -> float:
    """Returns the pairs of all heads of a staggered window, as `kernels.methods.cost.window_pairs`
    counts them, averaged over the layers.

    Args:
        slopes: (H,).
        cutoff: T in units of sigma.
        tokens: context.
        layers: number of layers.
        sinks, near: of the window.
    """
    cutoffs = staggered_cutoffs(cutoff, layers, len(slopes)).flatten()
    return window_pairs(slopes.repeat(layers), cutoffs, tokens, sinks=sinks, near=near) / layers


def staggered_cutoff_of(
    slopes: torch.Tensor, pairs: float, tokens: int, *, layers: int, sinks: int = 0, near: int = 0
) -> float:
    """Returns the mean length T of a staggered window with this number of pairs, as
    `kernels.methods.cost.cutoff_of` does for a window of one length.

    Args:
        slopes: (H,).
        pairs: of all heads of a layer, the mean over layers.
        tokens: context.
        layers: number of layers.
        sinks, near: of the window.
    """
    # at the largest T even the smallest quantile reaches through the whole context
    least = float(staggered_cutoffs(2 * LARGEST_MEAN, layers, len(slopes)).min()) - 2 * LARGEST_MEAN
    high = float(slopes.max()) * max(tokens - sinks - 1, 0) * (1 + 1e-12) + LARGEST_MEAN - least

    def visited(cutoff: float) -> float:
        return staggered_pairs(slopes, cutoff, tokens, layers=layers, sinks=sinks, near=near)

    return solve(visited, pairs, high)
