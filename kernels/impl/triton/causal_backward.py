"""Kernel `triton`, backward, for causal calls on Hopper: dq over tiles of rows, dk and dv over
tiles of keys, each in one loop over tiles that the copy engine fetches, as in
`kernels.impl.triton.causal`."""

import functools

import torch
import triton
import triton.language as tl

from kernels.impl.tables import LOG2E, Tables
from kernels.impl.triton.causal import STEP, descriptor, factors_of, key_step, sink_step, streamed_constants, weighed
from kernels.impl.triton.launch import Launcher, pointers, strides_of
from kernels.impl.triton.tiles import row_values, sequence_geometry
from kernels.impl.triton.weights import ANY, scales, weights_of
from kernels.methods.laws import Law


@triton.jit
def attention_of(score, factor, lse, LAW: tl.constexpr):
    """The attention of pairs, from base-2 scores and their factors less the log-sum-exp, of the
    same shape or one that broadcasts."""
    p = tl.exp2(score - lse)
    if scales(LAW):
        p = p * factor
    return p


@triton.jit(do_not_specialize=ANY)
def causal_query_kernel(
    Q, K, V, Dout, Dq, Lse, Delta, Geometry, Order, First, Slope, Bias, Planes, Corners, Share,
    heads, group, queries, keys, padded, scale, scale2,
    LAW: tl.constexpr, MASKS: tl.constexpr, SINKS: tl.constexpr, WIDE: tl.constexpr, TILE: tl.constexpr,
    STEP: tl.constexpr, STAGES: tl.constexpr, PRECISION: tl.constexpr, ASM: tl.constexpr,
):  # fmt: skip
    """Grid (tiles of rows, batch, heads). Q, K, V, Dout, Dq: tensor descriptors of (batch, heads,
    slots, DIM); Lse and Delta (batch, heads, queries) dense. Geometry as in `sequence_geometry`, without gaps,
    the other pointers those of `Tables` for all rows."""
    sequence = tl.program_id(1)
    head = tl.load(Order + tl.program_id(2))
    start, tokens, lead, _ = sequence_geometry(Geometry, sequence, tl.num_programs(1), keys, False)
    tile = tl.maximum(start, 0) // TILE + tl.num_programs(0) - 1 - tl.program_id(0)
    i0 = tile * TILE
    if i0 >= start + queries:
        return
    place, step = tl.arange(0, TILE), tl.arange(0, STEP)
    rows = i0 + place
    mine = (rows >= start) & (rows < start + queries)
    shared = head // group
    q = Q.load([sequence, head, i0 - start, 0]).reshape([TILE, WIDE])
    dout = Dout.load([sequence, head, i0 - start, 0]).reshape([TILE, WIDE])
    row_base = (sequence * heads + head).to(tl.int64) * queries - start
    lse, delta = row_values(Lse, Delta, row_base, rows, mine, LAW, MASKS)
    first_of = First + head.to(tl.int64) * padded
    lowest = tl.load(first_of + i0) // STEP * STEP
    first = tl.load(first_of + rows)
    visited = tl.maximum(rows - first + 1, 0).to(tl.uint32)
    slope, _, share, planes, corner = weights_of(
        head.to(tl.int64), tile, Slope, Bias, Share, Planes, Corners, padded // TILE, 0, LAW, MASKS, TILE
    )
    of_rows, begins = factors_of(rows, i0, slope, corner, LAW, MASKS, TILE, True, q.dtype)
    lse_of = lse
    if LAW == "linear":  # of scores that lack the row's part of the bias
        lse_of = lse + slope * place.to(tl.float32)
    dq = tl.zeros([TILE, WIDE], tl.float32)
    last = i0 + TILE - STEP
    for t in tl.range(0, (last - lowest) // STEP + 1, num_stages=STAGES, disable_licm=True):
        k, v, score, factor = key_step(
            q, K, V, sequence, shared, lead, last - t * STEP, step, i0, place, first, visited, of_rows, begins, slope,
            planes, share, scale2, LAW, MASKS, WIDE, TILE, STEP, PRECISION, ASM,
        )  # fmt: skip
        p = attention_of(score, factor, lse_of[:, None], LAW)
        dp = tl.dot(dout, tl.trans(v), input_precision=PRECISION)
        dq = tl.dot((p * (dp - delta[:, None])).to(k.dtype), k, dq, input_precision=PRECISION)
    if SINKS > 0:
        of_head = tl.load(Slope + head)
        for j0 in tl.range(0, SINKS, STEP, num_stages=1):
            k, v, score, factor = sink_step(
                q, K, V, sequence, shared, lead, j0, step, i0, rows, of_head, scale2,
                LAW, MASKS, SINKS, WIDE, STEP, PRECISION,
            )  # fmt: skip
            p = attention_of(score, factor, lse[:, None], LAW)
            dp = tl.dot(dout, tl.trans(v), input_precision=PRECISION)
            dq = tl.dot((p * (dp - delta[:, None])).to(k.dtype), k, dq, input_precision=PRECISION)
    Dq.store([sequence, head, i0 - start, 0], (dq * scale).to(q.dtype).reshape([1, 1, TILE, WIDE]))


@triton.jit(do_not_specialize=ANY)
def causal_key_kernel(
    Q, K, V, Dout, Dk, Dv, Lse, Delta, Until, Geometry, Order, First, Slope, Bias, Planes, Corners, Share,
    heads, group, queries, keys, padded, scale, scale2,
    LAW: tl.constexpr, MASKS: tl.constexpr, WIDE: tl.constexpr, TILE: tl.constexpr,
    STEP: tl.constexpr, STAGES: tl.constexpr, PRECISION: tl.constexpr, ASM: tl.constexpr,
):  # fmt: skip
    """Grid (batch, tiles of keys, heads). Dk, Dv: tensor descriptors of (batch, heads, keys, DIM),
    one for each query head; Until (heads, tiles) int32: the row after the last that visits the
    tile. Sinks get 0, since what they get from every row is `kernels.impl.triton.dsinks`'."""
    sequence = tl.program_id(0)
    head = tl.load(Order + tl.program_id(2))
    start, tokens, lead, _ = sequence_geometry(Geometry, sequence, tl.num_programs(0), keys, False)
    tile = tl.program_id(1)
    j0 = tile * TILE
    if j0 >= tokens:
        return
    place, step, end = tl.arange(0, TILE), tl.arange(0, STEP), start + queries
    columns, shared = j0 + place, head // group
    k = K.load([sequence, shared, lead + j0, 0]).reshape([TILE, WIDE])
    v = V.load([sequence, shared, lead + j0, 0]).reshape([TILE, WIDE])
    row_base = (sequence * heads + head).to(tl.int64) * queries - start
    first_of = First + head.to(tl.int64) * padded
    slope, _, share, planes, corner = weights_of(
        head.to(tl.int64), tile, Slope, Bias, Share, Planes, Corners, padded // TILE, 0, LAW, MASKS, TILE
    )
    corner += 2 * MASKS  # a block that reaches from a row after the tile back into it holds the tile's last token
    of_keys, ends = factors_of(columns, j0, slope, corner, LAW, MASKS, TILE, False, k.dtype)
    dk = tl.zeros([TILE, WIDE], tl.float32)
    dv = tl.zeros([TILE, WIDE], tl.float32)
    begin = tl.maximum(j0, start // STEP * STEP)
    stop = tl.minimum(tl.load(Until + head.to(tl.int64) * (padded // TILE) + tile), end)
    for i0 in tl.range(begin, stop, STEP, num_stages=STAGES, disable_licm=True):
        rows = i0 + step
        mine = (rows >= start) & (rows < end)
        q = Q.load([sequence, head, i0 - start, 0]).reshape([STEP, WIDE])
        dout = Dout.load([sequence, head, i0 - start, 0]).reshape([STEP, WIDE])
        lse, delta = row_values(Lse, Delta, row_base, rows, mine, LAW, MASKS)
        first = tl.load(first_of + rows)
        visited = tl.maximum(rows - first + 1, 0).to(tl.uint32)
        score = tl.dot(k, tl.trans(q), input_precision=PRECISION) * scale2
        seen = (columns[:, None] - first[None, :]).to(tl.uint32) < visited[None, :]
        if LAW == "linear":  # the bias of a pair, from the tile's first key: a part of the key's and one of the row's
            score += (slope * place.to(tl.float32))[:, None]
            lse += slope * (rows - j0).to(tl.float32)
        score, factor = weighed(
            score, seen, i0 < j0 + TILE, of_keys, ends, place, rows, j0, slope, planes, share,
            LAW, MASKS, TILE, False, PRECISION, ASM,
        )  # fmt: skip
        p = attention_of(score, factor, lse[None, :], LAW)
        dv = tl.dot(p.to(dout.dtype), dout, dv, input_precision=PRECISION)
        dp = tl.dot(v, tl.trans(dout), input_precision=PRECISION)
        dk = tl.dot((p * (dp - delta[None, :])).to(q.dtype), q, dk, input_precision=PRECISION)
    Dk.store([sequence, head, lead + j0, 0], (dk * scale).to(k.dtype).reshape([1, 1, TILE, WIDE]))
    Dv.store([sequence, head, lead + j0, 0], dv.to(k.dtype).reshape([1, 1, TILE, WIDE]))


def backward_constants(kernel: str, law: Law, masks: int, sinks: int, dim: int, dtype: torch.dtype, tile: int) -> dict:
    """Of the kernels for dq ("causal_dq"), and for dk and dv ("causal_dkdv"), whose two sums leave
    registers for two blocks."""
    own = {"SINKS": sinks} if kernel == "causal_dq" else {"maxnreg": 255}
    return streamed_constants(law, masks, dim, dtype, tile, **own)


@functools.cache
def _launchers(law: Law, masks: int, sinks: int, dim: int, dtype: torch.dtype, tile: int) -> tuple[Launcher, Launcher]:
    kind = (law, masks, sinks, dim, dtype, tile)
    return (
        Launcher(causal_query_kernel, **backward_constants("causal_dq", *kind)),
        Launcher(causal_key_kernel, **backward_constants("causal_dkdv", *kind)),
    )


def causal_gradients(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, dout: torch.Tensor, lse: torch.Tensor, delta: torch.Tensor,
    dq: torch.Tensor, dk: torch.Tensor, dv: torch.Tensor, until: torch.Tensor, tables: Tables, geometry: torch.Tensor,
    scale: float,
) -> None:  # fmt: skip
    """Write dq like q, and dk and dv (B, H, Tk, D), but for padding and sinks; `delta` (B, H, Tq)
    float32 as of `kernels.impl.triton.delta`, `until` of
    `kernels.impl.triton.backward.visitors`."""
    batch, heads, queries, dim = q.shape
    tile, step, padded = tables.tile, min(STEP, tables.tile), tables.first.shape[1]
    held = pointers(tables, last=False)
    sizes = (heads, heads // k.shape[1], queries, k.shape[2], padded, scale, scale * LOG2E)
    of_rows, of_keys = _launchers(tables.law, tables.masks, tables.sinks, dim, q.dtype, tile)
    _, alike = strides_of(lse.view(-1), delta.view(-1), geometry=geometry)
    of_rows(
        ((queries + 2 * tile - 2) // tile, batch, heads), q.device,
        descriptor(q, tile), descriptor(k, step), descriptor(v, step), descriptor(dout, tile), descriptor(dq, tile),
        lse, delta, geometry, *held, *sizes, alike=alike,
    )  # fmt: skip
    of_keys(
        (batch, padded // tile, heads), q.device,
        descriptor(q, step), descriptor(k, tile), descriptor(v, tile), descriptor(dout, step), descriptor(dk, tile),
        descriptor(dv, tile), lse, delta, until, geometry, *held, *sizes, alike=alike,
    )  # fmt: skip
