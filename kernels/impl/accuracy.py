"""A kernel compared with the oracle in float64: the errors of one call, and their limits."""

import contextlib
import warnings
from collections.abc import Callable, Iterator

import torch

from kernels.methods.weights import Weights

# limit of the errors of out and of the gradients, relative to their largest value: a few roundings
# of the dtype's products
LIMITS = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
# limit of the error of the log-sum-exp, in nats, in every dtype: no rounding of a probability
# enters it, so that it shows a single wrong pair, which the rounding of out may hide
LSE_LIMIT = 1e-4
HEADS, KV_HEADS = 8, 4  # of the calls in `errors`


@contextlib.contextmanager
def poisoned() -> Iterator[None]:
    """A context in which uninitialised memory holds NaN, or the largest number of its type, on
    every device."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about operators that are not deterministic
        torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def turns(device: str) -> int:
    """How often to make a call before its last result is compared: on a GPU, kernel `triton`
    launches from its second call on in another way (`kernels.impl.triton.launch.Launcher`)."""
    return 2 if device.startswith("cuda") else 1


def relative(got: torch.Tensor, true: torch.Tensor, least: float = 0.0) -> float:
    """Returns the largest absolute error relative to the largest absolute value of `true`. NaN
    counts as infinite.

    Args:
        got: result to judge.
        true: reference, float64, of the same shape.
        least: smallest denominator.
    """
    error = (got.double() - true).abs().max() / true.abs().max().clamp_min(least)
    return float(error.nan_to_num(torch.inf))


def errors(
    attend: Callable,
    weights: Weights,
    kernel: str,
    device: str,
    tokens: int,
    dim: int,
    dtype: torch.dtype,
    options: dict,
) -> dict[str, float] | None:
    """Compares one random call by a kernel with the oracle.

    Args:
        attend: `kernels.attend`, which imports this module.
        weights: of the call.
        kernel: compared with "exact" in float64.
        device, tokens, dim, dtype: of q, k and v.
        options: of `attend`; further `queries`, `tokens` in place of the argument, `gradients`,
            whether to compare them, and `gap`, whether to evict the keys that no row reaches.

    Returns:
        the errors by name: "out", "dq", "dk" and "dv" relative, "lse" absolute. None if the call
        asks for a gap and every key is within reach.
    """
    options = dict(options)
    queries, tokens = options.pop("queries"), options.pop("tokens", tokens)
    gradients, gap = options.pop("gradients", False), options.pop("gap", False)
    generator = torch.Generator().manual_seed(0)

    def make(heads: int, length: int) -> torch.Tensor:
        return torch.randn(2, heads, length, dim, generator=generator).to(device, dtype)

    kv_heads = weights.heads * KV_HEADS // HEADS
    inputs = [make(weights.heads, queries), make(kv_heads, tokens), make(kv_heads, tokens)]
    exact = [x.double() for x in inputs]
    with torch.no_grad():
        true, true_lse = attend(*exact, weights, kernel="exact", return_lse=True, **options)
        kept, gap_option = without_unreached(inputs, weights) if gap else (inputs, {})
        if kept is None:
            return None
        for _ in range(turns(device)):
            with poisoned():
                got, got_lse = attend(*kept, weights, kernel=kernel, return_lse=True, **options, **gap_option)
    lse_error = (got_lse.double() - true_lse)[true_lse.isfinite()].abs().max()
    by_name = {"out": relative(got, true), "lse": float(lse_error.nan_to_num(torch.inf))}
    if gradients:
        grad_out, both = make(weights.heads, queries), []
        for name, tensors in ((kernel, inputs), ("exact", exact)):
            leaves = [x.detach().requires_grad_() for x in tensors]
            for _ in range(turns(device)):
                with poisoned():
                    out = attend(*leaves, weights, kernel=name, **options)
                    grads = torch.autograd.grad(out, leaves, grad_out.to(out.dtype))
            both.append(grads)
        by_name |= {name: relative(*pair) for name, *pair in zip(("dq", "dk", "dv"), *both, strict=True)}
    return by_name


def without_unreached(inputs: list[torch.Tensor], weights: Weights) -> tuple[list[torch.Tensor] | None, dict]:
    """Returns q, k and v without the keys after the sinks that no row reaches, and the option `gap`
    of `attend`; None and no option if every key is within reach."""
    q, k, v = inputs
    heads, begin = torch.arange(weights.heads, device=q.device), k.shape[2] - q.shape[2]
    gap = int(weights.reach(heads, torch.full((len(heads), 1), begin, device=q.device))[0].min()) - weights.sinks
    if gap <= 0:
        return None, {}
    kept = [torch.cat([x[:, :, : weights.sinks], x[:, :, weights.sinks + gap :]], 2) for x in (k, v)]
    return [q, *kept], {"gap": gap}


def limit_of(error: str, limit: float) -> float:
    """The limit of an error by its name; `limit` is that of out and of the gradients."""
    return LSE_LIMIT if error == "lse" else limit
