"""The check before timing: every layer of a forward is compared with the dense oracle.

Tokens, weights and kernel are those that are timed afterwards.
"""

from typing import Any

import torch

from kernels import Alibi, Weights, attend
from kernels.impl.accuracy import LIMITS, relative

ROWS_PER_QUARTER = 8  # consecutive rows, checked at each quarter of the sequence
CACHED_FACTOR = 5  # limit of the logits' difference, in multiples of the kernel's limit


class Oracle:
    """Replaces `kernels.attend` in a forward without padding and cache, and measures its error.

    It compares some rows of the first sequence in every layer with kernel `exact`: in float64 for a
    float32 model, in float32 for half precision.

    error: largest absolute difference over the largest absolute value, of the worst layer.
    alibi_difference: root mean square of the difference from exact ALiBi, both by the oracle,
        relative to exact ALiBi's.
    """

    def __init__(self) -> None:
        self.error = 0.0
        self.limit = 0.0
        self._changed = self._total = 0.0

    @property
    def alibi_difference(self) -> float:
        """The relative difference from exact ALiBi."""
        return (self._changed / self._total) ** 0.5

    def __call__(self, q, k, v, weights: Weights, **options) -> torch.Tensor:
        output = attend(q, k, v, weights, **options)
        self.limit = LIMITS[q.dtype]
        compute = torch.float64 if q.dtype == torch.float32 else torch.float32
        for at, stop in sampled_rows(q.shape[2]):
            rows, keys, values = (x[:1].to(compute) for x in (q[:, :, at:stop], k[:, :, :stop], v[:, :, :stop]))
            dense: dict[str, Any] = {"kernel": "exact", "scale": options["scale"], "q_offset": at}
            expected = attend(rows, keys, values, weights, **dense)
            alibi = weights if isinstance(weights, Alibi) else Alibi(weights.slopes)
            exact = expected if alibi is weights else attend(rows, keys, values, alibi, **dense)
            self.error = max(self.error, relative(output[:1, :, at:stop], expected))
            self._changed += float((expected - exact).double().square().sum())
            self._total += float(exact.double().square().sum())
        return output

    def check_limit(self) -> None:
        """Raise FloatingPointError if the error exceeds the rounding limit of the dtype."""
        if not self.error <= self.limit:
            raise FloatingPointError(
                f"The kernel's attention differs from the oracle's by {self.error:.1e} of its largest value, more than "
                f"{self.limit:.0e}: no speed is recorded. Choose another kernel, for example kernel=sdpa."
            )


def sampled_rows(tokens: int) -> list[tuple[int, int]]:
    """Return the ranges (first, stop) of rows to check."""
    return [(tokens * quarter // 4 - ROWS_PER_QUARTER, tokens * quarter // 4) for quarter in (1, 2, 3, 4)]


def cached_error(cached: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> float:
    """Return the largest difference of logits, relative to the largest logit.

    Args:
        cached: logits (batch, tokens, vocabulary) of forwards with the KV cache.
        expected: logits of one forward over all tokens.
        dtype: dtype of the model.

    Raises:
        FloatingPointError: if the difference exceeds the rounding limit.
    """
    error, limit = relative(cached, expected.double()), CACHED_FACTOR * LIMITS[dtype]
    if not error <= limit:
        raise FloatingPointError(
            f"Logits from the KV cache differ from those of one forward over all tokens by {error:.1e} of the largest, "
            f"more than {limit:.0e}: no speed is recorded."
        )
    return error
