"""The paper's bounds on the spectral error of S independent masks under the weights "count"
(arXiv 2605.09472, section 4), as the authors' code evaluates them.

They hold for masks without a near field, sinks or a grid, and for both causal and bidirectional
attention.
"""

import math


def psi(sigma: float) -> float:
    """Returns the constant Psi of a head with sigma = 1/slope: 1 + sigma + coth(1 / (2 sigma)), the
    last term of which is ||L||_2 of an unbounded sequence."""
    return 1 + sigma + (1 + math.exp(-1 / sigma)) / -math.expm1(-1 / sigma)


def spectral_expectation_bound(sigma: float, tokens: int, masks: int) -> float:
    """Returns an upper bound of E ||L' - L||_2.

    Args:
        sigma: 1/slope of the head, in tokens.
        tokens: n.
        masks: S.
    """
    rate = math.log(tokens) / masks
    return psi(sigma) * (math.sqrt(rate) + rate)


def spectral_tail_bound(sigma: float, tokens: int, masks: int, error: float) -> float:
    """Returns an upper bound of the probability that ||L' - L||_2 is at least `error`; it may
    exceed 1 and then says nothing.

    Args:
        sigma: 1/slope of the head, in tokens.
        tokens: n.
        masks: S.
        error: the spectral error.
    """
    scale = 4 * psi(sigma)
    exponent = math.log(tokens) - masks * error**2 / (scale * (scale + error))
    return math.exp(min(exponent, 700.0))
