"""The horizon of masks: the distance at which a key is lost.

A head misses a key at distance d where none of its S masks covers the pair; under the sampler
"gamma" with probability (1 - exp(-m d))^S. No score, however large, brings a missed key back. Exact
ALiBi, too, is blind where exp(-m d) vanishes in the arithmetic of the kernel.
"""

import torch

from kernels.methods.cost import log_coverage

# -log of the largest positive number that rounds to zero: half of the smallest subnormal number
UNDERFLOW = {torch.float16: 25 * 0.6931471805599453, torch.bfloat16: 134 * 0.6931471805599453}
UNDERFLOW[torch.float32] = 150 * 0.6931471805599453


def miss_probability(
    slopes: torch.Tensor, distance: torch.Tensor, masks: int, *, sampler: str = "gamma", near: int = 0
) -> torch.Tensor:
    """Returns the probability that a head misses a key, (H, D) float64.

    Args:
        slopes: (H,), in 1/tokens.
        distance: (D,), in tokens.
        masks: S.
        sampler: a name of `kernels.methods.samplers.SAMPLERS`.
        near: number of nearest keys that every row sees.

    Raises:
        ValueError: for samplers without `log_coverage`.
    """
    slopes, distance = slopes.double().cpu(), distance.double().cpu()
    missed = -torch.expm1(log_coverage(slopes[:, None] * distance, masks, sampler))
    return missed.masked_fill(distance < near, 0.0)


def loss_probability(
    slopes: torch.Tensor, distance: torch.Tensor, masks: int, *, layers: int, sampler: str = "gamma", near: int = 0
) -> torch.Tensor:
    """Returns the probability that every head of every layer misses a key, (D,) float64.

    Masks of different layers and heads are independent. The figure is a lower bound for what a
    model loses, since it may need a certain head.

    Args:
        layers: number of layers.
        slopes, distance, masks, sampler, near: as in `miss_probability`.

    Raises:
        ValueError: for samplers without `log_coverage`.
    """
    return miss_probability(slopes, distance, masks, sampler=sampler, near=near).log().sum(0).mul(layers).exp()


def half_distance(slopes: torch.Tensor, masks: int, *, layers: int = 1, sampler: str = "gamma", near: int = 0) -> float:
    """Returns the distance in tokens at which every head of every layer misses a key with
    probability 1/2. For one head under "gamma" it is -log(1 - 2^(-1/S)) / m.

    Args:
        slopes, masks, layers, sampler, near: as in `loss_probability`.

    Raises:
        ValueError: for samplers without `log_coverage`.
    """
    low, high = 0.0, 1e3 / float(slopes.min())
    for _ in range(100):  # the probability increases with the distance
        middle = torch.tensor([(low + high) / 2], dtype=torch.float64)
        lost = loss_probability(slopes, middle, masks, layers=layers, sampler=sampler, near=near)
        low, high = (float(middle), high) if float(lost) < 0.5 else (low, float(middle))
    return high


def blind_distance(slopes: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Returns the distance beyond which exp(-m d) is zero in a floating-point type, (H,) float64: a
    key with the score of the nearest key has no weight there under exact ALiBi.

    Args:
        slopes: (H,), in 1/tokens.
        dtype: of the probabilities.
    """
    return UNDERFLOW[dtype] / slopes.double().cpu()
