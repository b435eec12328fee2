"""Kernel `triton`: what it can do, its tables, and the choice between the forward pass and
decoding."""

import math

import torch
from torch.autograd import forward_ad
from torch.autograd.forward_ad import unpack_dual

from kernels.impl.geometry import Places, check_places
from kernels.impl.tables import MOST
from kernels.impl.triton.decode import ROWS
from kernels.impl.triton.launch import capability, tile_of
from kernels.impl.triton.numbers import bias_on, numbers_on
from kernels.impl.triton.ops import decoded, fused, tables_on_device
from kernels.impl.triton.weights import INTERPRETED
from kernels.methods.weights import Weights, no_tables

WIDEST = 128  # head dimension: a tile of 256 does not leave room for a second block


def attend_triton(
    q,
    k,
    v,
    weights: Weights,
    *,
    scale: float,
    causal: bool,
    places: Places,
    gap: int | None,
):
    """q (B, H, Tq, D), k and v (B, Hkv, Tk, D) without an `obstacle`; `gap` the largest of the
    `places`, None where the host does not know it.

    Returns out like q, and lse (B, H, Tq) float32; rows of padding give 0 and -inf.
    """
    compiling = torch.compiler.is_compiling()
    if not compiling and forward_ad._current_level >= 0 and any(unpack_dual(x).tangent is not None for x in (q, k, v)):
        raise ValueError("kernel='triton' has no forward-mode derivatives: use kernel='exact'.")
    queries, keys = q.shape[2], k.shape[2]
    if keys == 0 or queries == 0:
        if isinstance(places, tuple):
            check_places(places, queries, keys, weights.sinks)
        return torch.zeros_like(q), torch.full(q.shape[:3], -math.inf, device=q.device)
    dtype = q.dtype
    if INTERPRETED and dtype == torch.bfloat16:  # its products take the bits of bfloat16 for whole numbers
        q, k, v = q.float(), k.float(), v.float()
    differentiated = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)
    if causal and queries <= ROWS and not differentiated:
        numbers = numbers_on(weights, q.device)
        bias = bias_on(weights, keys + (weights.span if gap is None else gap), numbers)
        out, lse = decoded(q, k, v, numbers, bias, places, scale)
    else:
        if differentiated and len(places) == 3:
            raise ValueError("kernel='triton' has no gradient where keys are left out: pass every key, or no_grad.")
        if gap is None:  # tables are as long as the context
            if compiling:
                raise ValueError("Code that is compiled takes a gap of more than 16 queries as a number: pass an int.")
            places = tuple(map(tuple, places.tolist()))
            gap = max(places[2])
        tokens, tile, origin = keys + gap, tile_of(dtype, capability(q)), 0
        # of a chunk of a long context only its own rows need tables; gradients need those of the
        # keys as well, and of places on a device, or where shapes alone are traced, no number is
        # known
        if isinstance(places, tuple) and not differentiated:
            origin = min(max(min(places[1]), 0), tokens - 1) // tile * tile
        tables = tables_on_device(weights, tokens, tile=tile, causal=causal, device=q.device, origin=origin)
        out, lse = fused(q, k, v, tables, places, scale)
    return (out if out.dtype == dtype else out.to(dtype)), lse


def obstacle(q: torch.Tensor, weights: Weights) -> str | None:
    """Why this kernel cannot compute the call, in a sentence that says what to do; None if it
    can."""
    if weights.law is None:
        return no_tables(weights)
    return hindrance(q.device, q.dtype, q.shape[3], weights.counted)


def hindrance(device: torch.device, dtype: torch.dtype, dim: int, counted: int) -> str | None:
    """The same of any call with this head dimension and this many masks that are counted, 0 of
    other weights."""
    if device.type != "cuda" and not INTERPRETED:
        return (
            "kernel='triton' needs a CUDA GPU: use kernel='sdpa' on the CPU, or set TRITON_INTERPRET=1 before Python "
            "starts to run it, slowly, in Triton's interpreter."
        )
    if dtype not in (torch.float16, torch.bfloat16, torch.float32):
        return f"kernel='triton' takes float16, bfloat16 and float32, not {dtype}: use kernel='exact'."
    if dim > WIDEST:
        return f"kernel='triton' takes head dimensions up to {WIDEST}, not {dim}: use kernel='sdpa'."
    if counted > MOST:
        return (
            f"kernel='triton' counts at most {MOST} masks, not {counted}: use fewer masks, weights 'rb', or "
            "kernel='sdpa'."
        )
    return None
