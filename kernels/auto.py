"""kernel="auto": on a CUDA device the fused Triton kernel, once it has passed a check there; else
sdpa.

The code that a compiler generates depends on the device, the dtype, the head dimension and the law
of the weights. So before the first call of each kind in a process, the fused kernel computes one
short case of that kind and is compared with the oracle. If it fails or does not compile, sdpa takes
its place with a warning: no number comes from a kernel that is wrong on the machine at hand.
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

CASE_TOKENS, CASE_GAP = 200, 64  # keys and evicted tokens of the short case: a few tiles of every kernel
MAX_DISTINCT_QUERIES = 32  # calls with more queries are all of one kind
CLASSES: dict[str, type[Weights]] = {"alibi": Alibi, "window": Window, "plsh": PositionalLSH}  # by `Kind.method`
CHOSEN: set[str] = set()  # the kernels that "auto" has chosen in this process, for records


def choose(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, weights: Weights, causal: bool, gapped: bool, attend: Callable
) -> str:
    """Returns the kernel for a call, "triton" or "sdpa".

    Args:
        q, k, v, weights, causal: as in `kernels.attend`.
        gapped: whether tokens were evicted from the keys.
        attend: `kernels.attend`, which computes the short case.

    Raises:
        RuntimeError: if the fused kernel left the GPU unusable for this process.
    """
    if torch.compiler.is_compiling():
        return "triton" if q.device.type == "cuda" and _fused(q, k, v, weights, causal, gapped, attend) else "sdpa"
    differentiated = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)
    call = (q.device, q.dtype, q.shape[3], min(q.shape[2], MAX_DISTINCT_QUERIES), causal, differentiated, gapped)
    cache = vars(weights).setdefault("_chosen", {})
    chosen = cache.get(call)
    if chosen is None:
        fused = q.device.type == "cuda" and _fused(q, k, v, weights, causal, gapped, attend)
        chosen = cache[call] = "triton" if fused else "sdpa"
    CHOSEN.add(chosen)
    return chosen


def _fused(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, weights: Weights, causal: bool, gapped: bool, attend: Callable
) -> bool:
    try:
        from kernels.impl.triton.attend import unsupported_call
        from kernels.impl.triton.decode import MAX_QUERIES
    except ImportError:  # Triton exists on Linux only
        return False
    differentiated = torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v))
    if unsupported_call(q, weights) or (differentiated and gapped):
        return False
    return passes_self_check(
        attend,
        str(q.device),
        dtype_name(q.dtype),
        q.shape[3],
        tuple(weights.kind),
        MAX_QUERIES if causal and q.shape[2] <= MAX_QUERIES and not differentiated else CASE_TOKENS - CASE_GAP,
        causal,
        differentiated,
        gapped,
    )


def probe_weights(kind: Kind, heads: int, *, steep: bool) -> Weights:
    """Returns weights on which a kernel is checked.

    Args:
        kind: of the weights.
        heads: number of heads.
        steep: whether they reach a few tokens beyond sinks and near field only.
    """
    slopes = alibi_slopes(heads)
    return CLASSES[kind.method].example(slopes / slopes.min() if steep else slopes, kind)


def context_is_broken(device: str) -> bool:
    """Whether the GPU is unusable for this process, as after an access to unmapped memory."""
    if not device.startswith("cuda"):
        return False
    try:
        torch.cuda.synchronize(device)
    except RuntimeError:
        return True
    return False


@torch.compiler.assume_constant_result
def passes_self_check(*call) -> bool:
    """Whether the fused kernel agrees with the oracle on this kind of call, checked once per
    process. Warns if it does not. Raises RuntimeError if the GPU is unusable afterwards, so that no
    other kernel could take its place."""
    return _self_check(*call)


@functools.cache
def _self_check(
    attend: Callable,
    device: str,
    dtype: str,
    dim: int,
    kind: tuple,
    queries: int,
    causal: bool,
    differentiated: bool,
    gap: bool,
) -> bool:
    options = {"queries": queries, "causal": causal, "gap": gap, "gradients": differentiated}
    torch_dtype, weights = getattr(torch, dtype), probe_weights(Kind(*kind), accuracy.HEADS, steep=gap)
    try:
        with torch.enable_grad():
            tokens = CASE_TOKENS + weights.sinks + weights.near
            errors = accuracy.errors(attend, weights, "triton", device, tokens, dim, torch_dtype, options)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # a compiler's or a driver's, of any class
        message = (str(error).strip().splitlines() or [""])[-1]
        reason = f"did not run here ({type(error).__name__}: {message})"
        if context_is_broken(device):
            raise RuntimeError(
                f"kernel=triton broke the GPU's context: use kernel=sdpa in a new process. It {reason}."
            ) from error
    else:
        if errors is None:
            reason = "could not be checked: no key of the short case is out of reach"
        else:
            limits = {name: accuracy.limit_of(name, accuracy.LIMITS[torch_dtype]) for name in errors}
            wrong = {name: error for name, error in errors.items() if not error <= limits[name]}
            if not wrong:
                return True
            excess = ", ".join(f"{name} {error:.1e} > {limits[name]:.0e}" for name, error in wrong.items())
            reason = f"was off from the oracle: {excess}"
    warnings.warn(
        f"kernel='auto' uses sdpa: kernel='triton' for {Kind(*kind)} in {dtype}, head dimension {dim}, {reason}. Run "
        "`python -m kernels.check` and report what it says.",
        stacklevel=3,
    )
    return False
