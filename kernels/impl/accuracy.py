"""A kernel beside the oracle in float64: the errors of one call, and the largest that each may
have."""

import contextlib
import warnings
from collections.abc import Callable, Iterator

import torch

from kernels.methods.weights import Weights

# largest error of out and of gradients, relative to their largest value: a few roundings of the
# dtype's products
LIMITS = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
# largest error of the log-sum-exp, in nats, in every dtype: no rounding of a probability enters it,
# so that it shows a pair too many or too few where the rounding of out would hide it
LSE_LIMIT = 1e-4
HEADS, KV_HEADS = 8, 4  # of the calls of `errors`


@contextlib.contextmanager
def poisoned() -> Iterator[None]:
    """Memory that is asked for but not written holds NaN, or the largest number of its type, on
    every device."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of operators that are not deterministic, which is not asked for here
        torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def turns(device: str) -> int:
    """How often a call is made, of which the last is compared: on a GPU kernel `triton` goes the
    way of all later calls at its second (`kernels.impl.triton.launch.Launcher`)."""
    return 2 if device.startswith("cuda") else 1


def relative(got: torch.Tensor, true: torch.Tensor, least: float = 0.0) -> float:
    """Largest absolute error over the largest absolute value, or over `least` if that is larger;
    NaN counts as infinite."""
    off = (got.double() - true).abs().max() / true.abs().max().clamp_min(least)
    return float(off.nan_to_num(torch.inf))


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
    """The relative errors of `attend` (`kernels.attend`, which imports this file) by `kernel`: of
    out and, with `gradients`, of those of q, k and v, and the absolute error of the log-sum-exp;
    None if no key is out of reach."""
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
        short, held = without_unreached(inputs, weights) if gap else (inputs, {})
        if short is None:
            return None
        for _ in range(turns(device)):
            with poisoned():
                got, got_lse = attend(*short, weights, kernel=kernel, return_lse=True, **options, **held)
    off = (got_lse.double() - true_lse)[true_lse.isfinite()].abs().max()
    found = {"out": relative(got, true), "lse": float(off.nan_to_num(torch.inf))}
    if gradients:
        toward, both = make(weights.heads, queries), []
        for name, some in ((kernel, inputs), ("exact", exact)):
            some = [x.detach().requires_grad_() for x in some]
            for _ in range(turns(device)):
                with poisoned():
                    out = attend(*some, weights, kernel=name, **options)
                    gradients = torch.autograd.grad(out, some, toward.to(out.dtype))
            both.append(gradients)
        found |= {name: relative(*pair) for name, *pair in zip(("dq", "dk", "dv"), *both, strict=True)}
    return found


def without_unreached(inputs: list[torch.Tensor], weights: Weights) -> tuple[list[torch.Tensor] | None, dict]:
    """q, k and v without the keys after the sinks that no row reaches, and the option that says
    so."""
    q, k, v = inputs
    heads, begin = torch.arange(weights.heads, device=q.device), k.shape[2] - q.shape[2]
    gap = int(weights.reach(heads, torch.full((len(heads), 1), begin, device=q.device))[0].min()) - weights.sinks
    if gap <= 0:
        return None, {}
    kept = [torch.cat([x[:, :, : weights.sinks], x[:, :, weights.sinks + gap :]], 2) for x in (k, v)]
    return [q, *kept], {"gap": gap}


def limit_of(error: str, limit: float) -> float:
    """The largest value that this error may have where those of out and of the gradients have
    `limit`."""
    return LSE_LIMIT if error == "lse" else limit
