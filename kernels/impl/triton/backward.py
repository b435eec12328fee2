"""Kernel `triton`, backward: dq over tiles of rows, dk and dv over tiles of keys, from the forward
pass's tables, and of the sinks over splits of the rows.

With p the attention of a pair and delta = dout . out - dlse of its row, the gradient of the score
is ``p * (dout . v - delta)``. The masks and slopes get no gradient: they are constants.
"""

import torch

from kernels.impl.tables import LOG2E, Tables
from kernels.impl.triton.causal import can_stream
from kernels.impl.triton.causal_backward import causal_gradients
from kernels.impl.triton.delta import delta_of
from kernels.impl.triton.dkdv import key_kernel
from kernels.impl.triton.dq import query_kernel
from kernels.impl.triton.dsinks import sink_gradients
from kernels.impl.triton.launch import constants, geometry_on_device, pointers


def backward(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    dout: torch.Tensor,
    dlse: torch.Tensor,
    tables: Tables,
    pads: list[int],
    starts: list[int],
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns the gradients of q, k and v; padding gets 0.

    Args:
        q, out, dout: (B, H, Tq, D), and k, v: (B, Hkv, Tk, D), with dense last dimensions.
        lse, dlse: (B, H, Tq).
        tables: for all tokens.
        pads, starts: padding slots and the token of the first query, one for each sequence.
        scale: factor of the scores.
    """
    assert tables.origin == 0
    batch, heads, queries, dim = q.shape
    kv_heads, keys, tile = k.shape[1], k.shape[2], tables.tile
    delta = delta_of(out, dout, dlse)
    dq = torch.empty_like(q, memory_format=torch.contiguous_format)
    # one for each query head, summed below over the query heads that share a key head
    dk, dv = (torch.empty(batch, heads, keys, dim, dtype=q.dtype, device=q.device) for _ in range(2))
    # the kernels write the rows and keys of all tokens, also of keys that no row visits; padding is
    # left to this loop
    for sequence, (pad, start) in enumerate(zip(pads, starts, strict=True)):
        dq[sequence, :, : max(0, -start)] = 0.0
        dk[sequence, :, :pad] = dv[sequence, :, :pad] = 0.0
    first_row, end_row = visiting_rows(tables)
    inputs = (q, k, v, dout)
    geometry = geometry_on_device((tuple(pads), tuple(starts)), q.device)
    if can_stream(*inputs, tables=tables, gaps=False):
        causal_gradients(*inputs, lse, delta, dq, dk, dv, end_row, tables, geometry, scale)
    else:
        strides = [stride for x in inputs for stride in x.stride()[:3]]
        sizes = (heads, heads // kv_heads, queries, keys, tables.first.shape[1], tables.bias.shape[-1])
        common = (geometry, *pointers(tables), *strides, *sizes, scale, scale * LOG2E)
        kind = (tables.law, tables.masks, tables.sinks, tables.near, tables.causal, dim, q.dtype, tile)
        query_kernel[((queries + 2 * tile - 2) // tile, batch, heads)](
            *inputs, dq, lse, delta, *common, **constants("dq", *kind)
        )
        key_kernel[(batch, tables.first.shape[1] // tile, heads)](
            *inputs, dk, dv, lse, delta, first_row, end_row, *common, **constants("dkdv", *kind)
        )
    if sinks := min(tables.sinks, keys):
        parts = sink_gradients(
            *inputs, lse, delta, tables.slope, geometry, sinks=sinks, causal=tables.causal, scale=scale
        )
        for sequence, pad in enumerate(pads):
            for whole, part in zip((dk, dv), parts[:, sequence], strict=True):
                whole[sequence, :, pad : pad + sinks] = part[:, : keys - pad]
    if heads != kv_heads:
        dk, dv = (x.view(batch, kv_heads, -1, keys, dim).sum(2, dtype=torch.float32).to(q.dtype) for x in (dk, dv))
    return dq, dk, dv


def visiting_rows(tables: Tables) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the first row that visits each tile of keys, and the row after the last: two (H,
    tiles) int32."""
    heads, padded = tables.first.shape
    begin = torch.arange(0, padded, tables.tile, device=tables.first.device, dtype=torch.int32).expand(heads, -1)
    end = begin + (tables.tile - 1)
    end_row = torch.searchsorted(tables.first, end.contiguous(), right=True)
    first_row = begin if tables.causal else torch.searchsorted(tables.last, begin.contiguous())
    return first_row.int().contiguous(), end_row.int()
