"""Kernel `triton`: the calls it supports, and the choice between the forward pass and decoding."""

import math

import torch
from torch.autograd import forward_ad
from torch.autograd.forward_ad import unpack_dual

from kernels.impl.geometry import CallGeometry, check_geometry, host_geometry
from kernels.impl.tables import MAX_MASKS
from kernels.impl.triton.decode import MAX_QUERIES
from kernels.impl.triton.launch import capability, tile_of
from kernels.impl.triton.ops import attend_decoding, attend_on_tables, tables_on_device
from kernels.impl.triton.packed import bias_on_device, packed_on_device
from kernels.impl.triton.weights import INTERPRETED
from kernels.methods.weights import Weights, no_tables

MAX_HEAD_DIM = 128  # a tile of 256 leaves no room for a second block on a multiprocessor


def attend_triton(
    q,
    k,
    v,
    weights: Weights,
    *,
    scale: float,
    causal: bool,
    geometry: CallGeometry,
    gap: int | None,
):
    """Computes attention by the fused kernels.

    Args:
        q: (B, H, Tq, D); with the weights, it must pass `unsupported_call`.
        k, v: (B, Hkv, Tk, D).
        weights, scale, causal: as in `kernels.attend`.
        geometry: of the call; not checked on a device.
        gap: the largest gap of the geometry, None if the host does not know it.

    Returns:
        out like q, and the log-sum-exp (B, H, Tq) float32; rows of padding give 0 and -inf.

    Raises:
        ValueError: for forward-mode derivatives, for gradients where keys are left out, for a gap
            that compiled code does not know as a number, and for a geometry that does not fit.
    """
    compiling = torch.compiler.is_compiling()
    if not compiling and forward_ad._current_level >= 0 and any(unpack_dual(x).tangent is not None for x in (q, k, v)):
        raise ValueError("kernel='triton' has no forward-mode derivatives: use kernel='exact'.")
    queries, keys = q.shape[2], k.shape[2]
    if keys == 0 or queries == 0:
        if isinstance(geometry, tuple):
            check_geometry(geometry, queries, keys, weights.sinks)
        return torch.zeros_like(q), torch.full(q.shape[:3], -math.inf, device=q.device)
    dtype = q.dtype
    if INTERPRETED and dtype == torch.bfloat16:  # its products take the bits of bfloat16 for whole numbers
        q, k, v = q.float(), k.float(), v.float()
    differentiated = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)
    if causal and queries <= MAX_QUERIES and not differentiated:
        packed = packed_on_device(weights, q.device)
        bias = bias_on_device(weights, keys + (weights.span if gap is None else gap), packed)
        out, lse = attend_decoding(q, k, v, packed, bias, geometry, scale)
    else:
        if differentiated and len(geometry) == 3:
            raise ValueError("kernel='triton' has no gradient where keys are left out: pass every key, or no_grad.")
        if gap is None:  # tables are as long as the context
            if compiling:
                raise ValueError("Code that is compiled takes a gap of more than 16 queries as a number: pass an int.")
            geometry = host_geometry(geometry)
            gap = max(geometry[2])
        tokens, tile, origin = keys + gap, tile_of(dtype, capability(q)), 0
        # a chunk of a long context needs tables for its own rows only; gradients need tables for
        # the rows of all keys, and so does a geometry whose numbers are on a device or traced
        if isinstance(geometry, tuple) and not differentiated:
            origin = min(max(min(geometry[1]), 0), tokens - 1) // tile * tile
        tables = tables_on_device(weights, tokens, tile=tile, causal=causal, device=q.device, origin=origin)
        out, lse = attend_on_tables(q, k, v, tables, geometry, scale)
    return (out if out.dtype == dtype else out.to(dtype)), lse


def unsupported_call(q: torch.Tensor, weights: Weights) -> str | None:
    """Returns why this kernel does not support the call, in a sentence that says what to do; None
    if it does."""
    if weights.law is None:
        return no_tables(weights)
    return unsupported_reason(q.device, q.dtype, q.shape[3], weights.counted)


def unsupported_reason(device: torch.device, dtype: torch.dtype, dim: int, counted: int) -> str | None:
    """Returns why this kernel supports no call of this kind, in a sentence that says what to do;
    None if it does.

    Args:
        device, dtype: of q, k and v.
        dim: head dimension.
        counted: masks counted pair by pair (`Weights.counted`).
    """
    if device.type != "cuda" and not INTERPRETED:
        return (
            "kernel='triton' needs a CUDA GPU: use kernel='sdpa' on the CPU, or set TRITON_INTERPRET=1 before Python "
            "starts to run it, slowly, in Triton's interpreter."
        )
    if dtype not in (torch.float16, torch.bfloat16, torch.float32):
        return f"kernel='triton' takes float16, bfloat16 and float32, not {dtype}: use kernel='exact'."
    if dim > MAX_HEAD_DIM:
        return f"kernel='triton' takes head dimensions up to {MAX_HEAD_DIM}, not {dim}: use kernel='sdpa'."
    if counted > MAX_MASKS:
        return (
            f"kernel='triton' counts at most {MAX_MASKS} masks, not {counted}: use fewer masks, weights 'rb', or "
            "kernel='sdpa'."
        )
    return None
