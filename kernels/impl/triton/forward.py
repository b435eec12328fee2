"""Kernel `triton`, forward: one pass over the union of the masks, a tile of query rows to a
program.

A program takes the diagonal tile first, so that every row has a finite maximum from then on, and
then only the tiles that some mask reaches. Heads that visit much and late tiles start first.
Positions are tokens: padding moves pointers.
"""

import functools

import torch
import triton
import triton.language as tl

from kernels.impl.tables import LOG2E, Tables
from kernels.impl.triton.causal import causal_forward, streams
from kernels.impl.triton.launch import Launcher, constants, pointers, strides_of
from kernels.impl.triton.tiles import absorb, clear_padding, load_pair, load_tile, row_of, sequence_geometry, sink_tile
from kernels.impl.triton.weights import (
    ANY,
    HIDDEN,
    LN2,
    SINK_STEP,
    bounded,
    counts,
    far,
    near,
    near_stages,
    packed,
    weights_of,
    words_of,
)
from kernels.methods.laws import Law


@triton.jit(do_not_specialize=ANY)
def forward_kernel(
    Q, K, V, Out, Lse, Geometry, Order, First, Last, Slope, Bias, Planes, Corners, Share,
    q_b, q_h, q_t, k_b, k_h, k_t, v_b, v_h, v_t, o_b, o_h, o_t,
    heads, group, queries, keys, padded, origin, reach, scale2,
    LAW: tl.constexpr, CAUSAL: tl.constexpr, MASKS: tl.constexpr, SINKS: tl.constexpr, GAPS: tl.constexpr,
    DIM: tl.constexpr, WIDE: tl.constexpr, TILE: tl.constexpr, STEP: tl.constexpr, PRECISION: tl.constexpr,
    ASM: tl.constexpr,
):  # fmt: skip
    """Grid (tiles of rows, batch, heads). Q, K, V, Out: strides of sequence, head and token in
    elements, the last dimension dense; Lse (batch, heads, queries) dense. Geometry as in `sequence_geometry`.
    The other pointers are those of `Tables`, `reach` the width of its bias, `padded` its N and
    `origin` its first row."""
    sequence = tl.program_id(1).to(tl.int64)
    head = tl.load(Order + tl.program_id(2)).to(tl.int64)
    start, tokens, lead, gap = sequence_geometry(Geometry, sequence, tl.num_programs(1), keys, GAPS)
    held = SINKS + gap  # the first token after those left out
    tile = tl.maximum(start, 0) // TILE + tl.num_programs(0) - 1 - tl.program_id(0)
    i0 = tile * TILE
    if i0 >= start + queries:
        after = i0 - tl.cdiv(tl.maximum(start + queries, 0), TILE) * TILE
        clear_padding(Out, Lse, sequence, head, heads, start, queries, after, o_b, o_h, o_t, DIM, WIDE, TILE)
        return
    place, step = tl.arange(0, TILE), tl.arange(0, STEP)
    rows = i0 + place
    mine = (rows >= start) & (rows < start + queries)
    key_base = row_of(K, sequence, head // group, lead, k_b, k_h, k_t)
    value_base = row_of(V, sequence, head // group, lead, v_b, v_h, v_t)
    q = load_tile(row_of(Q, sequence, head, i0 - start, q_b, q_h, q_t), q_t, mine, DIM, WIDE, TILE)

    first_of = First + head * padded - origin
    lowest = tl.load(first_of + i0) // STEP * STEP
    first = tl.load(first_of + rows)
    if GAPS:
        lowest, first = tl.maximum(lowest, held // STEP * STEP), tl.maximum(first, held)
    last = rows
    if not CAUSAL:
        last = tl.load(Last + head * padded - origin + rows)
    slope, bias, share, planes, corner = weights_of(
        head, tile - origin // TILE, Slope, Bias, Share, Planes, Corners, padded // TILE, reach, LAW, MASKS, TILE
    )

    top = tl.full([TILE], HIDDEN, tl.float32)
    total = tl.zeros([TILE], tl.float32)
    acc = tl.zeros([TILE, WIDE], tl.float32)

    # the diagonal tile
    for at in tl.range(0, TILE, STEP, num_stages=near_stages(LAW, MASKS), disable_licm=True):
        columns = i0 + at + step
        here = columns < tokens
        if GAPS:  # slots of other keys, or of none
            here = here & (columns >= held)
        k, v = load_pair(key_base, value_base, k_t, v_t, i0 + at, here, DIM, WIDE, STEP)
        score = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale2
        seen = here[None, :] & (columns[None, :] <= last[:, None]) & (columns[None, :] >= first[:, None])
        score, factor = near(
            score, rows, columns, seen, slope, bias, planes, share, i0, LAW, MASKS, TILE, ASM
        )  # fmt: skip
        acc, total, top = absorb(acc, total, top, score, factor, v, LAW, PRECISION)

    # tiles before it: every key is a token, and none lies after a row
    word, word_2 = words_of(corner, rows, LAW, MASKS, False)
    for j0 in tl.range(lowest, i0, STEP, disable_licm=packed(LAW, MASKS, CAUSAL)):
        columns = j0 + step
        here = None
        if GAPS:
            here = columns >= held
        k, v = load_pair(key_base, value_base, k_t, v_t, j0, here, DIM, WIDE, STEP)
        score = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale2
        seen = columns[None, :] >= first[:, None]
        score, factor = far(
            score, rows, columns, seen, slope, bias, share, word, word_2, corner, i0, j0,
            LAW, MASKS, True, bounded(SINKS, CAUSAL, GAPS), ASM,
        )  # fmt: skip
        acc, total, top = absorb(acc, total, top, score, factor, v, LAW, PRECISION)

    # tiles after it
    if not CAUSAL:
        corner += 2 * MASKS
        word, word_2 = words_of(corner, rows, LAW, MASKS, True)
        highest = tl.minimum(tl.load(Last + head * padded - origin + i0 + TILE - 1), tokens - 1)
        for j0 in tl.range(i0 + TILE, highest + 1, STEP, disable_licm=packed(LAW, MASKS, CAUSAL)):
            columns = j0 + step
            here = columns < tokens
            if SINKS > 0:
                here = here & (columns >= SINKS)
            k, v = load_pair(key_base, value_base, k_t, v_t, j0, here, DIM, WIDE, STEP)
            score = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale2
            seen = here[None, :] & (columns[None, :] <= last[:, None])
            score, factor = far(
                score, rows, columns, seen, slope, bias, share, word, word_2, corner, i0, j0,
                LAW, MASKS, False, True, ASM,
            )  # fmt: skip
            acc, total, top = absorb(acc, total, top, score, factor, v, LAW, PRECISION)

    # the sinks: a row that saw nothing so far has a maximum of HIDDEN, which what it sees here
    # wipes out
    if SINKS > 0:
        if GAPS:  # they lie before what is left out
            key_base += gap.to(tl.int64) * k_t
            value_base += gap.to(tl.int64) * v_t
        of_head = tl.load(Slope + head)
        for j0 in tl.range(0, SINKS, SINK_STEP, num_stages=1, disable_licm=True):
            k, v, score, factor = sink_tile(
                q, key_base, value_base, k_t, v_t, rows, i0, j0, tokens, of_head, scale2,
                LAW, CAUSAL, MASKS, SINKS, DIM, WIDE, SINK_STEP, PRECISION,
            )  # fmt: skip
            acc, total, top = absorb(acc, total, top, score, factor, v, LAW, PRECISION)

    dims = tl.arange(0, WIDE)
    total = tl.where(mine, total, 1.0)
    to = row_of(Out, sequence, head, i0 - start, o_b, o_h, o_t) + place[:, None] * o_t + dims[None, :]
    tl.store(to, (acc / total[:, None]).to(Out.dtype.element_ty), mask=mine[:, None] & (dims < DIM)[None, :])
    lse = top + tl.log2(total)
    if counts(LAW):
        lse -= tl.log2(MASKS * 1.0)
    tl.store(Lse + (sequence * heads + head) * queries + (rows - start), lse * LN2, mask=mine)


def forward(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    tables: Tables,
    geometry: torch.Tensor,
    *,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """q (B, H, Tq, D), k and v (B, Hkv, Tk, D) with dense last dimensions, `geometry` as of
    `kernels.impl.triton.tiles.sequence_geometry`, gaps causal only; `tables` for all queries.

    Returns out like q, and lse (B, H, Tq) float32; rows of padding give 0 and -inf.
    """
    batch, heads, queries, dim = q.shape
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    lse = torch.empty(q.shape[:3], dtype=torch.float32, device=q.device)
    if streams(q, k, v, tables=tables, gaps=len(geometry) == 3):
        causal_forward(q, k, v, out, lse, tables, geometry, scale=scale)
        return out, lse
    strides, alike = strides_of(q, k, v, out, geometry=geometry)
    launcher = _launcher(
        tables.law, tables.masks, tables.sinks, tables.causal, dim, q.dtype, tables.tile, len(geometry) == 3
    )
    launcher(
        ((queries + 2 * tables.tile - 2) // tables.tile, batch, heads), q.device,
        q, k, v, out, lse, geometry, *pointers(tables), *strides,
        heads, heads // k.shape[1], queries, k.shape[2], tables.first.shape[1], tables.origin,
        tables.bias.shape[-1], scale * LOG2E,
        alike=alike,
    )  # fmt: skip
    return out, lse


@functools.cache
def _launcher(
    law: Law, masks: int, sinks: int, causal: bool, dim: int, dtype: torch.dtype, tile: int, gaps: bool
) -> Launcher:
    return Launcher(
        forward_kernel, GAPS=gaps, **constants("forward", law, masks, sinks, causal, dim, dtype, tile, gaps)
    )
