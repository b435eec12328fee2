"""Kernel `triton`, backward, for causal calls on Hopper: dq by tiles of rows, dk and dv by tiles of
keys, each in one loop over tiles that the copy engine fetches, as in
`kernels.impl.triton.causal`."""

import functools

import torch
import triton
import triton.language as tl

from kernels.impl.tables import LOG2E, Tables
from kernels.impl.triton.causal import (
    STEP,
    descriptor,
    key_step,
    position_factors,
    sink_step,
    streamed_constants,
    weigh_step,
)
from kernels.impl.triton.launch import Launcher, pointers, strides_of
from kernels.impl.triton.tiles import row_values, sequence_geometry
from kernels.impl.triton.weights import UNSPECIALIZED, head_tables, scales
from kernels.methods.laws import Law


@triton.jit
def attention_of(score, factor, lse, LAW: tl.constexpr):
    """Attention of pairs, from base-2 scores, factors of their exponentials, and the log-sum-exp,
    which broadcasts against the scores."""
    p = tl.exp2(score - lse)
    if scales(LAW):
        p = p * factor
    return p


@triton.jit(do_not_specialize=UNSPECIALIZED)
def causal_query_kernel(
    Q, K, V, Dout, Dq, Lse, Delta, Geometry, Order, First, Slope, Bias, Bitplanes, PivotBlocks, ByteWeights,
    heads, group, queries, keys, padded, scale, scale2,
    LAW: tl.constexpr, MASKS: tl.constexpr, SINKS: tl.constexpr, NEAR: tl.constexpr, WIDE: tl.constexpr,
    TILE: tl.constexpr, STEP: tl.constexpr, STAGES: tl.constexpr, PRECISION: tl.constexpr, ASM: tl.constexpr,
):  # fmt: skip
    """Grid (tiles of rows, batch, heads). Q, K, V, Dout, Dq: tensor descriptors of (batch, heads,
    slots, DIM). Lse, Delta: (batch, heads, queries) dense. Geometry: as in `sequence_geometry`,
    without gaps. The other pointers are those of `Tables` for all rows."""
    sequence = tl.program_id(1)
    head = tl.load(Order + tl.program_id(2))
    start, tokens, slot_offset, _ = sequence_geometry(Geometry, sequence, tl.num_programs(1), keys, False)
    tile = tl.maximum(start, 0) // TILE + tl.num_programs(0) - 1 - tl.program_id(0)
    i0 = tile * TILE
    if i0 >= start + queries:
        return

    # the rows, and the columns that each of them visits
    offsets, step = tl.arange(0, TILE), tl.arange(0, STEP)
    rows = i0 + offsets
    row_mask = (rows >= start) & (rows < start + queries)
    kv_head = head // group
    q = Q.load([sequence, head, i0 - start, 0]).reshape([TILE, WIDE])
    dout = Dout.load([sequence, head, i0 - start, 0]).reshape([TILE, WIDE])
    row_base = (sequence * heads + head).to(tl.int64) * queries - start
    lse, delta = row_values(Lse, Delta, row_base, rows, row_mask, LAW, MASKS)
    head_first = First + head.to(tl.int64) * padded
    lowest = tl.load(head_first + i0) // STEP * STEP
    first = tl.load(head_first + rows)
    visited = tl.maximum(rows - first + 1, 0).to(tl.uint32)
    slope, _, byte_weights, bitplanes, pivot_block = head_tables(
        head.to(tl.int64), tile, Slope, Bias, ByteWeights, Bitplanes, PivotBlocks, padded // TILE, 0,
        LAW, MASKS, NEAR, TILE,
    )  # fmt: skip
    row_factors, block_starts = position_factors(rows, i0, slope, pivot_block, LAW, MASKS, TILE, True, q.dtype)
    key_lse = lse
    if LAW == "linear":  # scores of keys that are no sinks lack the row's part of the bias
        key_lse = lse + slope * offsets.to(tl.float32)
    dq = tl.zeros([TILE, WIDE], tl.float32)

    # the keys, from the diagonal leftwards
    last = i0 + TILE - STEP
    for t in tl.range(0, (last - lowest) // STEP + 1, num_stages=STAGES, disable_licm=True):
        k, v, score, factor = key_step(
            q, K, V, sequence, kv_head, slot_offset, last - t * STEP, step, i0, offsets, first, visited, row_factors,
            block_starts, slope, bitplanes, byte_weights, scale2, LAW, MASKS, NEAR, WIDE, TILE, STEP, PRECISION, ASM,
        )  # fmt: skip
        p = attention_of(score, factor, key_lse[:, None], LAW)
        dp = tl.dot(dout, tl.trans(v), input_precision=PRECISION)
        dq = tl.dot((p * (dp - delta[:, None])).to(k.dtype), k, dq, input_precision=PRECISION)

    # the sinks
    if SINKS > 0:
        head_slope = tl.load(Slope + head)
        for j0 in tl.range(0, SINKS, STEP, num_stages=1):
            k, v, score, factor = sink_step(
                q, K, V, sequence, kv_head, slot_offset, j0, step, i0, rows, head_slope, scale2,
                LAW, MASKS, SINKS, WIDE, STEP, PRECISION,
            )  # fmt: skip
            p = attention_of(score, factor, lse[:, None], LAW)
            dp = tl.dot(dout, tl.trans(v), input_precision=PRECISION)
            dq = tl.dot((p * (dp - delta[:, None])).to(k.dtype), k, dq, input_precision=PRECISION)

    Dq.store([sequence, head, i0 - start, 0], (dq * scale).to(q.dtype).reshape([1, 1, TILE, WIDE]))


@triton.jit(do_not_specialize=UNSPECIALIZED)
def causal_key_kernel(
    Q, K, V, Dout, Dk, Dv, Lse, Delta, EndRow, Geometry, Order, First, Slope, Bias, Bitplanes, PivotBlocks, ByteWeights,
    heads, group, queries, keys, padded, scale, scale2,
    LAW: tl.constexpr, MASKS: tl.constexpr, NEAR: tl.constexpr, WIDE: tl.constexpr, TILE: tl.constexpr,
    STEP: tl.constexpr, STAGES: tl.constexpr, PRECISION: tl.constexpr, ASM: tl.constexpr,
):  # fmt: skip
    """Grid (batch, tiles of keys, heads). Dk, Dv: tensor descriptors of (batch, heads, keys, DIM),
    one for each query head. EndRow: (heads, tiles) int32, the row after the last that visits the
    tile. Sinks get 0: `kernels.impl.triton.dsinks` computes their gradients."""
    sequence = tl.program_id(0)
    head = tl.load(Order + tl.program_id(2))
    start, tokens, slot_offset, _ = sequence_geometry(Geometry, sequence, tl.num_programs(0), keys, False)
    tile = tl.program_id(1)
    j0 = tile * TILE
    if j0 >= tokens:
        return

    # the keys and values, and the tables of their tile
    offsets, step, end = tl.arange(0, TILE), tl.arange(0, STEP), start + queries
    columns, kv_head = j0 + offsets, head // group
    k = K.load([sequence, kv_head, slot_offset + j0, 0]).reshape([TILE, WIDE])
    v = V.load([sequence, kv_head, slot_offset + j0, 0]).reshape([TILE, WIDE])
    row_base = (sequence * heads + head).to(tl.int64) * queries - start
    head_first = First + head.to(tl.int64) * padded
    slope, _, byte_weights, bitplanes, pivot_block = head_tables(
        head.to(tl.int64), tile, Slope, Bias, ByteWeights, Bitplanes, PivotBlocks, padded // TILE, 0,
        LAW, MASKS, NEAR, TILE,
    )  # fmt: skip
    pivot_block += 2 * MASKS  # a block that reaches from a row after the tile into it contains the tile's last token
    key_factors, block_ends = position_factors(columns, j0, slope, pivot_block, LAW, MASKS, TILE, False, k.dtype)
    dk = tl.zeros([TILE, WIDE], tl.float32)
    dv = tl.zeros([TILE, WIDE], tl.float32)

    # the rows, from the diagonal on
    begin = tl.maximum(j0, start // STEP * STEP)
    stop = tl.minimum(tl.load(EndRow + head.to(tl.int64) * (padded // TILE) + tile), end)
    for i0 in tl.range(begin, stop, STEP, num_stages=STAGES, disable_licm=True):
        rows = i0 + step
        row_mask = (rows >= start) & (rows < end)
        q = Q.load([sequence, head, i0 - start, 0]).reshape([STEP, WIDE])
        dout = Dout.load([sequence, head, i0 - start, 0]).reshape([STEP, WIDE])
        lse, delta = row_values(Lse, Delta, row_base, rows, row_mask, LAW, MASKS)
        first = tl.load(head_first + rows)
        visited = tl.maximum(rows - first + 1, 0).to(tl.uint32)

        score = tl.dot(k, tl.trans(q), input_precision=PRECISION) * scale2
        pair_mask = (columns[:, None] - first[None, :]).to(tl.uint32) < visited[None, :]
        if LAW == "linear":  # the bias of a pair is a part of the key and a part of the row, counted from j0
            score += (slope * offsets.to(tl.float32))[:, None]
            lse += slope * (rows - j0).to(tl.float32)
        score, factor = weigh_step(
            score, pair_mask, i0 < j0 + TILE, i0 < j0 + TILE + NEAR - 1, key_factors, block_ends, offsets, rows, j0,
            slope, bitplanes, byte_weights, LAW, MASKS, NEAR, TILE, False, PRECISION, ASM,
        )  # fmt: skip

        p = attention_of(score, factor, lse[None, :], LAW)
        dv = tl.dot(p.to(dout.dtype), dout, dv, input_precision=PRECISION)
        dp = tl.dot(v, tl.trans(dout), input_precision=PRECISION)
        dk = tl.dot((p * (dp - delta[None, :])).to(q.dtype), q, dk, input_precision=PRECISION)

    Dk.store([sequence, head, slot_offset + j0, 0], (dk * scale).to(k.dtype).reshape([1, 1, TILE, WIDE]))
    Dv.store([sequence, head, slot_offset + j0, 0], dv.to(k.dtype).reshape([1, 1, TILE, WIDE]))


def backward_constants(
    kernel: str, law: Law, masks: int, sinks: int, near: int, dim: int, dtype: torch.dtype, tile: int
) -> dict:
    """Constants and launch options of a kernel for gradients. The two accumulators of dk and dv
    leave registers for two blocks.

    Args:
        kernel: "causal_dq", or "causal_dkdv" for dk and dv.
        law, masks, sinks, near: of the weights, as in `Tables`.
        dim, dtype: of the call.
        tile: rows of a tile (`tile_of`).
    """
    options = {"SINKS": sinks} if kernel == "causal_dq" else {"maxnreg": 255}
    return streamed_constants(law, masks, near, dim, dtype, tile, **options)


@functools.cache
def _launchers(
    law: Law, masks: int, sinks: int, near: int, dim: int, dtype: torch.dtype, tile: int
) -> tuple[Launcher, Launcher]:
    kind = (law, masks, sinks, near, dim, dtype, tile)
    return (
        Launcher(causal_query_kernel, **backward_constants("causal_dq", *kind)),
        Launcher(causal_key_kernel, **backward_constants("causal_dkdv", *kind)),
    )


def causal_gradients(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, dout: torch.Tensor, lse: torch.Tensor, delta: torch.Tensor,
    dq: torch.Tensor, dk: torch.Tensor, dv: torch.Tensor, end_row: torch.Tensor, tables: Tables, geometry: torch.Tensor,
    scale: float,
) -> None:  # fmt: skip
    """Writes dq like q, and dk and dv (B, H, Tk, D), except for padding and sinks.

    Args:
        q, k, v, dout, lse, tables, scale: as in `kernels.impl.triton.backward.backward`.
        delta: of `kernels.impl.triton.delta`.
        dq, dk, dv: dense.
        end_row: of `kernels.impl.triton.backward.visiting_rows`.
        geometry: as in `kernels.impl.triton.tiles.sequence_geometry`.
    """
    batch, heads, queries, dim = q.shape
    tile, step, padded = tables.tile, min(STEP, tables.tile), tables.first.shape[1]
    table_pointers = pointers(tables, last=False)
    sizes = (heads, heads // k.shape[1], queries, k.shape[2], padded, scale, scale * LOG2E)
    launch_dq, launch_dkdv = _launchers(tables.law, tables.masks, tables.sinks, tables.near, dim, q.dtype, tile)
    _, alike = strides_of(lse.view(-1), delta.view(-1), geometry=geometry)
    launch_dq(
        ((queries + 2 * tile - 2) // tile, batch, heads), q.device,
        descriptor(q, tile), descriptor(k, step), descriptor(v, step), descriptor(dout, tile), descriptor(dq, tile),
        lse, delta, geometry, *table_pointers, *sizes, alike=alike,
    )  # fmt: skip
    launch_dkdv(
        (batch, padded // tile, heads), q.device,
        descriptor(q, step), descriptor(k, tile), descriptor(v, tile), descriptor(dout, step), descriptor(dk, tile),
        descriptor(dv, tile), lse, delta, end_row, geometry, *table_pointers, *sizes, alike=alike,
    )  # fmt: skip
