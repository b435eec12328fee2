"""The check that comes before every speed: a forward over the same tokens, under the same weights
and by the same kernel as those that are timed afterwards, every layer of it held against the dense
oracle."""

from typing import Any

import torch

from kernels import Alibi, Weights, attend
from kernels.impl.accuracy import LIMITS, relative

SAMPLED = 8  # consecutive rows checked at each quarter of the sequence
CACHED = 5  # how many times the kernel's limit two forwards of all layers may differ by


class Oracle:
    """Stands in place of `kernels.attend` during a forward without padding and without a cache, and
    compares sampled rows of every layer, first sequence, with kernel `exact` on the same q, k and
    v: in float64 for a float32 model, in float32 for a model in half precision.

    error: largest absolute difference over the largest absolute value, the worst layer's.
    alibi_difference: root mean square of what the weights change of exact ALiBi, both by the
    oracle, relative to exact ALiBi's.
    """

    def __init__(self) -> None:
        self.error = 0.0
        self.limit = 0.0
        self._changed = self._whole = 0.0

    @property
    def alibi_difference(self) -> float:
        return (self._changed / self._whole) ** 0.5

    def __call__(self, q, k, v, weights: Weights, **options) -> torch.Tensor:
        out = attend(q, k, v, weights, **options)
        self.limit = LIMITS[q.dtype]
        compute = torch.float64 if q.dtype == torch.float32 else torch.float32
        for at, stop in sampled_rows(q.shape[2]):
            rows, keys, values = (x[:1].to(compute) for x in (q[:, :, at:stop], k[:, :, :stop], v[:, :, :stop]))
            dense: dict[str, Any] = {"kernel": "exact", "scale": options["scale"], "q_offset": at}
            own = attend(rows, keys, values, weights, **dense)
            exact = own if isinstance(weights, Alibi) else attend(rows, keys, values, Alibi(weights.slopes), **dense)
            self.error = max(self.error, relative(out[:1, :, at:stop], own))
            self._changed += float((own - exact).double().square().sum())
            self._whole += float(exact.double().square().sum())
        return out

    def require(self) -> None:
        """FloatingPointError if the kernel is off by more than its dtype's roundings explain."""
        if not self.error <= self.limit:
            raise FloatingPointError(
                f"The kernel's attention differs from the oracle's by {self.error:.1e} of its largest value, more than "
                f"{self.limit:.0e}: no speed is recorded. Choose another kernel, for example kernel=sdpa."
            )


def sampled_rows(tokens: int) -> list[tuple[int, int]]:
    return [(tokens * quarter // 4 - SAMPLED, tokens * quarter // 4) for quarter in (1, 2, 3, 4)]


def cached_error(got: torch.Tensor, true: torch.Tensor, dtype: torch.dtype) -> float:
    """Largest difference of two forwards' logits (batch, tokens, vocabulary), relative to the
    largest logit. FloatingPointError if it is more than roundings explain."""
    error, limit = relative(got, true.double()), CACHED * LIMITS[dtype]
    if not error <= limit:
        raise FloatingPointError(
            f"Logits from the KV cache differ from those of one forward over all tokens by {error:.1e} of the largest, "
            f"more than {limit:.0e}: no speed is recorded."
        )
    return error
