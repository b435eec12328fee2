"""kernel="auto": on a CUDA device the fused Triton kernel, once it has shown there that it is
right; else sdpa.

What a compiler makes of a kernel depends on the device, the dtype, the head dimension and the law
of the weights. So before its first call of each kind in a process the fused kernel computes one
short case of that kind and is held against the oracle. Where it fails or does not compile, sdpa
takes its place with a warning: no number comes from a kernel that is wrong on the machine at hand.
"""

import functools
import warnings
from collections.abc import Callable

import torch

from kernels.common.dtypes import dtype_name
from kernels.impl import accuracy
from kernels.methods.laws import Kind
from kernels.methods.plsh import PositionalLSH
from kernels.methods.slopes import alibi_slopes
from kernels.methods.weights import Alibi, Weights, Window

TOKENS, LEFT_OUT = 200, 64  # of the short case: a few tiles of every kernel
MANY = 32  # queries, with more of which all calls are of one kind
CLASSES: dict[str, type[Weights]] = {"alibi": Alibi, "window": Window, "plsh": PositionalLSH}  # by `Weights.kind`
CHOSEN: set[str] = set()  # what "auto" has come to, for whoever wants to record it


def choose(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, weights: Weights, causal: bool, gapped: bool, attend: Callable
) -> str:
    """The kernel for a call: "triton" or "sdpa". attend: `kernels.attend`, which computes the short
    case."""
    if torch.compiler.is_compiling():
        return "triton" if q.device.type == "cuda" and _fused(q, k, v, weights, causal, gapped, attend) else "sdpa"
    differentiated = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)
    call = (q.device, q.dtype, q.shape[3], min(q.shape[2], MANY), causal, differentiated, gapped)
    kept = vars(weights).setdefault("_chosen", {})
    chosen = kept.get(call)
    if chosen is None:
        fused = q.device.type == "cuda" and _fused(q, k, v, weights, causal, gapped, attend)
        chosen = kept[call] = "triton" if fused else "sdpa"
    CHOSEN.add(chosen)
    return chosen


def _fused(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, weights: Weights, causal: bool, gapped: bool, attend: Callable
) -> bool:
    try:
        from kernels.impl.triton.attend import unsupported_call
        from kernels.impl.triton.decode import ROWS
    except ImportError:  # there is no triton for this system
        return False
    differentiated = torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v))
    if unsupported_call(q, weights) or (differentiated and gapped):
        return False
    return is_right(
        attend,
        str(q.device),
        dtype_name(q.dtype),
        q.shape[3],
        weights.kind,
        ROWS if causal and q.shape[2] <= ROWS and not differentiated else TOKENS - LEFT_OUT,
        causal,
        differentiated,
        gapped,
    )


def like(kind: Kind, heads: int, *, near: bool) -> Weights:
    """Weights of that kind (`Weights.kind`); `near`: that reach a few tokens only."""
    slopes = alibi_slopes(heads)
    return CLASSES[kind.method].example(slopes / slopes.min() if near else slopes, kind)


def broken(device: str) -> bool:
    """Whether nothing runs on a GPU any more in this process, as after an access to memory that is
    not there."""
    if not device.startswith("cuda"):
        return False
    try:
        torch.cuda.synchronize(device)
    except RuntimeError:
        return True
    return False


@torch.compiler.assume_constant_result
def is_right(*call) -> bool:
    """Whether the fused kernel computes this kind of call right, found out once in a process. Warns
    if it does not, and raises RuntimeError where no other kernel could take its place on this
    GPU."""
    return _found_right(*call)


@functools.cache
def _found_right(
    attend: Callable,
    device: str,
    dtype: str,
    dim: int,
    kind: Kind,
    queries: int,
    causal: bool,
    differentiated: bool,
    gap: bool,
) -> bool:
    options = {"queries": queries, "causal": causal, "gap": gap, "gradients": differentiated}
    number, weights = getattr(torch, dtype), like(kind, accuracy.HEADS, near=gap)
    try:
        with torch.enable_grad():
            tokens = TOKENS + weights.sinks
            errors = accuracy.errors(attend, weights, "triton", device, tokens, dim, number, options)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # a compiler's or a driver's, of any class
        message = (str(error).strip().splitlines() or [""])[-1]
        reason = f"did not run here ({type(error).__name__}: {message})"
        if broken(device):
            raise RuntimeError(
                f"kernel=triton broke the GPU's context: use kernel=sdpa in a new process. It {reason}."
            ) from error
    else:
        if errors is None:
            reason = "could not be checked: no key of the short case is out of reach"
        else:
            limits = {name: accuracy.limit_of(name, accuracy.LIMITS[number]) for name in errors}
            wrong = {name: error for name, error in errors.items() if not error <= limits[name]}
            if not wrong:
                return True
            excess = ", ".join(f"{name} {error:.1e} > {limits[name]:.0e}" for name, error in wrong.items())
            reason = f"was off from the oracle: {excess}"
    warnings.warn(
        f"kernel='auto' uses sdpa: kernel='triton' for {kind} in {dtype}, head dimension {dim}, {reason}. Run "
        "`python -m kernels.check` and report what it says.",
        stacklevel=3,
    )
    return False
