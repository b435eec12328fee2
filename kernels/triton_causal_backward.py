"""Kernel `triton`, backward, for causal calls on Hopper: dq over tiles of rows, dk and dv over tiles of keys, each in
one loop over tiles that the copy engine fetches, as in `kernels.triton_causal`."""

import functools

import torch
import triton
import triton.language as tl

from kernels.tables import LOG2E, Tables
from kernels.triton_causal import STEP, causal_constants, descriptor, factors_of, lanes_of_product, weighed
from kernels.triton_launch import Launcher, strides_of
from kernels.triton_tiles import place_of, row_values
from kernels.triton_weights import ANY, HIDDEN, between, counts, scales, weights_of


@triton.jit
def attention_of(score, factor, lse, LAW: tl.constexpr):
    """The attention of pairs, from base-2 scores and their factors less the log-sum-exp, of the same shape or one that
    broadcasts."""
    p = tl.exp2(score - lse)
    if scales(LAW):
        p = p * factor
    return p


@triton.jit(do_not_specialize=ANY)
def causal_query_kernel(
    Q, K, V, Dout, Dq, Lse, Delta, Places, Order, First, Slope, Bias, Planes, Corners, Share,
    heads, group, queries, keys, padded, scale, scale2,
    LAW: tl.constexpr, MASKS: tl.constexpr, SINKS: tl.constexpr, WIDE: tl.constexpr, TILE: tl.constexpr,
    STEP: tl.constexpr, STAGES: tl.constexpr, PRECISION: tl.constexpr, ASM: tl.constexpr,
):  # fmt: skip
    """Grid (tiles of rows, batch, heads). Q, K, V, Dout, Dq: tensor descriptors of (batch, heads, slots, DIM); Lse and
    Delta (batch, heads, queries) dense. Places as in `place_of`, without gaps, the other pointers those of `Tables` for
    all rows."""
    sequence = tl.program_id(1)
    head = tl.load(Order + tl.program_id(2))
    start, tokens, lead, _ = place_of(Places, sequence, tl.num_programs(1), keys, False)
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
    of_rows, begins = factors_of(rows, i0, slope, corner, LAW, MASKS, TILE, True, q.dtype), place
    if LAW == "count":
        lane = tl.arange(0, lanes_of_product(MASKS))
        begins = tl.load(corner + lane, mask=lane < MASKS, other=2147483647)
    lse_of = lse
    if LAW == "linear":  # of scores that lack the row's part of the bias
        lse_of = lse + slope * place.to(tl.float32)
    dq = tl.zeros([TILE, WIDE], tl.float32)
    last = i0 + TILE - STEP
    for t in tl.range(0, (last - lowest) // STEP + 1, num_stages=STAGES, disable_licm=True):
        j0 = last - t * STEP
        columns = j0 + step
        k = K.load([sequence, shared, lead + j0, 0]).reshape([STEP, WIDE])
        v = V.load([sequence, shared, lead + j0, 0]).reshape([STEP, WIDE])
        score = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale2
        seen = (columns[None, :] - first[:, None]).to(tl.uint32) < visited[:, None]
        if LAW == "linear":
            score += (slope * (columns - i0).to(tl.float32))[None, :]
        score, factor = weighed(
            score, seen, j0 >= i0, of_rows, begins, place, columns, i0, slope, planes, share,
            LAW, MASKS, TILE, True, PRECISION, ASM,
        )  # fmt: skip
        p = attention_of(score, factor, lse_of[:, None], LAW)
        dp = tl.dot(dout, tl.trans(v), input_precision=PRECISION)
        dq = tl.dot((p * (dp - delta[:, None])).to(k.dtype), k, dq, input_precision=PRECISION)
    if SINKS > 0:
        of_head = tl.load(Slope + head)
        for j0 in tl.range(0, SINKS, STEP, num_stages=1):
            columns = j0 + step
            k = K.load([sequence, shared, lead + j0, 0]).reshape([STEP, WIDE])
            v = V.load([sequence, shared, lead + j0, 0]).reshape([STEP, WIDE])
            score = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale2
            score += of_head * between(rows, columns, i0, j0)
            seen = (columns < SINKS)[None, :] & (columns[None, :] <= rows[:, None])
            factor = tl.full(score.shape, MASKS * 1.0 if counts(LAW) else 1.0, tl.float32)
            p = attention_of(tl.where(seen, score, HIDDEN), factor, lse[:, None], LAW)
            dp = tl.dot(dout, tl.trans(v), input_precision=PRECISION)
            dq = tl.dot((p * (dp - delta[:, None])).to(k.dtype), k, dq, input_precision=PRECISION)
    Dq.store([sequence, head, i0 - start, 0], (dq * scale).to(q.dtype).reshape([1, 1, TILE, WIDE]))


@triton.jit(do_not_specialize=ANY)
def causal_key_kernel(
    Q, K, V, Dout, Dk, Dv, Lse, Delta, Until, Places, Order, First, Slope, Bias, Planes, Corners, Share,
    heads, group, queries, keys, padded, scale, scale2,
    LAW: tl.constexpr, MASKS: tl.constexpr, WIDE: tl.constexpr, TILE: tl.constexpr,
    STEP: tl.constexpr, STAGES: tl.constexpr, PRECISION: tl.constexpr, ASM: tl.constexpr,
):  # fmt: skip
    """Grid (batch, tiles of keys, heads). Dk, Dv: tensor descriptors of (batch, heads, keys, DIM), one for each query
    head; Until (heads, tiles) int32: the row after the last that visits the tile. Sinks get 0, since what they get from
    every row is `kernels.triton_dsinks`'."""
    sequence = tl.program_id(0)
    head = tl.load(Order + tl.program_id(2))
    start, tokens, lead, _ = place_of(Places, sequence, tl.num_programs(0), keys, False)
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
    of_keys, ends = factors_of(columns, j0, slope, corner, LAW, MASKS, TILE, False, k.dtype), place
    if LAW == "count":
        lane = tl.arange(0, lanes_of_product(MASKS))
        ends = tl.load(corner + MASKS + lane, mask=lane < MASKS, other=0)
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


def backward_constants(kernel: str, law: str, masks: int, sinks: int, dim: int, dtype: torch.dtype, tile: int) -> dict:
    """As `causal_constants`, for "causal_dq" or "causal_dkdv"."""
    fixed = causal_constants(law, masks, sinks, dim, dtype, tile)
    of_keys = kernel == "causal_dkdv"  # whose two sums take the registers of two blocks
    known = (causal_key_kernel if of_keys else causal_query_kernel).arg_names
    fixed |= {"STAGES": 2, "maxnreg": 255 if of_keys or law == "count" and masks > 16 else 168}
    return {name: value for name, value in fixed.items() if name in known or name.islower()}


@functools.cache
def _launchers(law: str, masks: int, sinks: int, dim: int, dtype: torch.dtype, tile: int) -> tuple[Launcher, Launcher]:
    kind = (law, masks, sinks, dim, dtype, tile)
    return (
        Launcher(causal_query_kernel, **backward_constants("causal_dq", *kind)),
        Launcher(causal_key_kernel, **backward_constants("causal_dkdv", *kind)),
    )


def causal_gradients(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, dout: torch.Tensor, lse: torch.Tensor, delta: torch.Tensor,
    dq: torch.Tensor, dk: torch.Tensor, dv: torch.Tensor, until: torch.Tensor, tables: Tables, places: torch.Tensor,
    scale: float,
) -> None:  # fmt: skip
    """Write dq like q, and dk and dv (B, H, Tk, D), but for padding and sinks; `delta` (B, H, Tq) float32 as of
    `kernels.triton_delta`, `until` of `kernels.triton_backward.visitors`."""
    batch, heads, queries, dim = q.shape
    tile, step, padded = tables.tile, min(STEP, tables.tile), tables.first.shape[1]
    named = (getattr(tables, name) for name in ("order", "first", "slope", "bias", "planes", "corners", "share"))
    pointers = [x if x.numel() else tables.first for x in named]
    sizes = (heads, heads // k.shape[1], queries, k.shape[2], padded, scale, scale * LOG2E)
    of_rows, of_keys = _launchers(tables.law, tables.masks, tables.sinks, dim, q.dtype, tile)
    _, alike = strides_of(lse, delta, places=places)
    of_rows(
        ((queries + 2 * tile - 2) // tile, batch, heads), q.device,
        descriptor(q, tile), descriptor(k, step), descriptor(v, step), descriptor(dout, tile), descriptor(dq, tile),
        lse, delta, places, *pointers, *sizes, alike=alike,
    )  # fmt: skip
    of_keys(
        (batch, padded // tile, heads), q.device,
        descriptor(q, step), descriptor(k, tile), descriptor(v, tile), descriptor(dout, step), descriptor(dk, tile),
        descriptor(dv, tile), lse, delta, until, places, *pointers, *sizes, alike=alike,
    )  # fmt: skip
