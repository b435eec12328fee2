"""ALiBi slopes (Press, Smith, Lewis 2022, arXiv 2108.12409): head h weighs distance D by
exp(-slope_h * D)."""

import math

import torch

ORDERS = ("press", "mpt")


def alibi_slopes(heads: int, *, bias_max: float = 8.0, order: str = "press") -> torch.Tensor:
    """Slopes m > 0 of the heads, in 1/tokens; the bias of a pair is ``-m * |i - j|``.

    For a power of two, ``m_h = 2 ** (-bias_max * h / heads)``, h = 1..heads. For other head counts
    `order` defines the list. Both orders give the same numbers for every head count (tested), so
    that either reads a checkpoint of either family; they are separate because each is checked
    against the code of its family.

    Args:
        heads: number of heads.
        bias_max: exponent of the flattest slope, 2 ** -bias_max.
        order: "press" takes the slopes of the next lower power of two, then every second slope of
            its double (arXiv 2108.12409, as in BLOOM and Falcon); "mpt" takes the slopes of the
            next higher power of two, the even-numbered ones first, cut to `heads` (as in MPT).

    Returns:
        (heads,) float64.

    Raises:
        ValueError: for heads < 1, bias_max <= 0 or an unknown order.
    """
    if heads < 1:
        raise ValueError(f"heads must be at least 1, not {heads}.")
    if bias_max <= 0:
        raise ValueError(f"bias_max must be positive, not {bias_max}: slopes are 2 ** (-bias_max * h / heads).")
    if order not in ORDERS:
        raise ValueError(f"Unknown slope order {order!r}: choose one of {', '.join(ORDERS)}.")

    def geometric(count: int) -> torch.Tensor:
        return 2.0 ** (-bias_max * torch.arange(1, count + 1, dtype=torch.float64) / count)

    lower = 2 ** math.floor(math.log2(heads))
    if lower == heads:
        return geometric(heads)
    if order == "press":
        return torch.cat([geometric(lower), geometric(2 * lower)[::2][: heads - lower]])
    upper = geometric(2 * lower)
    return torch.cat([upper[1::2], upper[::2]])[:heads]
