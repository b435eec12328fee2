"""Kernel `triton`, forward: one pass over the union of the masks, a tile of query rows to a
program.

A program takes the diagonal tile first, so that every row has a finite maximum from then on, and
then only the tiles that some mask reaches. Heads that visit many pairs and late tiles start first.
Positions are tokens: padding moves the pointers.
"""

import functools

import torch
import triton
import triton.language as tl

from kernels.impl.tables import LOG2E, Tables
from kernels.impl.triton.causal import can_stream, causal_forward
from kernels.impl.triton.launch import Launcher, constants, pointers, strides_of
from kernels.impl.triton.tiles import (
    absorb,
    clear_padding,
    load_pair,
    load_tile,
    row_pointer,
    sequence_geometry,
    sink_tile,
)
from kernels.impl.triton.weights import (
    LN2,
    MASKED_SCORE,
    SINK_STEP,
    UNSPECIALIZED,
    counts,
    diagonal_stages,
    head_tables,
    load_words,
    near_span,
    needs_pair_mask,
    spills_if_hoisted,
    weigh_diagonal,
    weigh_off_diagonal,
)
from kernels.methods.laws import Law


@triton.jit(do_not_specialize=UNSPECIALIZED)
def forward_kernel(
    Q, K, V, Out, Lse, Geometry, Order, First, Last, Slope, Bias, Bitplanes, PivotBlocks, ByteWeights,
    q_b, q_h, q_t, k_b, k_h, k_t, v_b, v_h, v_t, o_b, o_h, o_t,
    heads, group, queries, keys, padded, origin, reach, scale2,
    LAW: tl.constexpr, CAUSAL: tl.constexpr, MASKS: tl.constexpr, SINKS: tl.constexpr, NEAR: tl.constexpr,
    GAPS: tl.constexpr, DIM: tl.constexpr, WIDE: tl.constexpr, TILE: tl.constexpr, STEP: tl.constexpr,
    PRECISION: tl.constexpr, ASM: tl.constexpr,
):  # fmt: skip
    """Grid (tiles of rows, batch, heads). Q, K, V, Out come with strides of sequence, head and
    token in elements; their last dimension is dense. Lse (batch, heads, queries) dense. Geometry:
    as in `sequence_geometry`. The other pointers are those of `Tables`: `padded` its N, `origin`
    its first row, `reach` the width of its bias."""
    sequence = tl.program_id(1).to(tl.int64)
    head = tl.load(Order + tl.program_id(2)).to(tl.int64)
    start, tokens, slot_offset, gap = sequence_geometry(Geometry, sequence, tl.num_programs(1), keys, GAPS)
    first_kept = SINKS + gap  # the first token after the gap
    tile = tl.maximum(start, 0) // TILE + tl.num_programs(0) - 1 - tl.program_id(0)
    i0 = tile * TILE
    if i0 >= start + queries:
        begin = i0 - tl.cdiv(tl.maximum(start + queries, 0), TILE) * TILE
        clear_padding(Out, Lse, sequence, head, heads, start, queries, begin, o_b, o_h, o_t, DIM, WIDE, TILE)
        return

    # the rows, and the columns that each of them visits
    offsets, step = tl.arange(0, TILE), tl.arange(0, STEP)
    rows = i0 + offsets
    row_mask = (rows >= start) & (rows < start + queries)
    key_base = row_pointer(K, sequence, head // group, slot_offset, k_b, k_h, k_t)
    value_base = row_pointer(V, sequence, head // group, slot_offset, v_b, v_h, v_t)
    q = load_tile(row_pointer(Q, sequence, head, i0 - start, q_b, q_h, q_t), q_t, row_mask, DIM, WIDE, TILE)
    head_first = First + head * padded - origin
    lowest = tl.load(head_first + i0) // STEP * STEP
    first = tl.load(head_first + rows)
    if GAPS:
        lowest, first = tl.maximum(lowest, first_kept // STEP * STEP), tl.maximum(first, first_kept)
    last = rows
    if not CAUSAL:
        last = tl.load(Last + head * padded - origin + rows)
    slope, bias, byte_weights, bitplanes, pivot_block = head_tables(
        head, tile - origin // TILE, Slope, Bias, ByteWeights, Bitplanes, PivotBlocks, padded // TILE, reach,
        LAW, MASKS, NEAR, TILE,
    )  # fmt: skip

    row_max = tl.full([TILE], MASKED_SCORE, tl.float32)
    row_sum = tl.zeros([TILE], tl.float32)
    acc = tl.zeros([TILE, WIDE], tl.float32)

    # the diagonal tile
    for at in tl.range(0, TILE, STEP, num_stages=diagonal_stages(LAW, MASKS), disable_licm=True):
        columns = i0 + at + step
        key_mask = columns < tokens
        if GAPS:  # slots before the end of the gap hold other keys, or none
            key_mask = key_mask & (columns >= first_kept)
        k, v = load_pair(key_base, value_base, k_t, v_t, i0 + at, key_mask, DIM, WIDE, STEP)

        score = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale2
        pair_mask = key_mask[None, :] & (columns[None, :] <= last[:, None]) & (columns[None, :] >= first[:, None])
        score, factor = weigh_diagonal(
            score, rows, columns, pair_mask, slope, bias, bitplanes, byte_weights, i0, LAW, MASKS, NEAR, TILE, ASM
        )  # fmt: skip
        acc, row_sum, row_max = absorb(acc, row_sum, row_max, score, factor, v, LAW, PRECISION)

    # tiles before it: every key is a token, and no key lies after a row. Those that the near field
    # reaches are a loop of their own
    word, word_2 = load_words(pivot_block, rows, LAW, MASKS, False)
    for NEARBY in tl.static_range(2 if NEAR > 1 else 1):
        begin, stop = lowest, i0 - near_span(NEAR, STEP)
        if NEARBY:
            begin, stop = tl.maximum(lowest, stop), i0
        for j0 in tl.range(begin, stop, STEP, disable_licm=spills_if_hoisted(LAW, MASKS, CAUSAL)):
            columns = j0 + step
            key_mask = None
            if GAPS:
                key_mask = columns >= first_kept
            k, v = load_pair(key_base, value_base, k_t, v_t, j0, key_mask, DIM, WIDE, STEP)

            score = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale2
            pair_mask = columns[None, :] >= first[:, None]
            score, factor = weigh_off_diagonal(
                score, rows, columns, pair_mask, slope, bias, byte_weights, word, word_2, pivot_block, i0, j0,
                LAW, MASKS, NEAR * NEARBY, True, needs_pair_mask(SINKS, CAUSAL, GAPS), ASM,
            )  # fmt: skip
            acc, row_sum, row_max = absorb(acc, row_sum, row_max, score, factor, v, LAW, PRECISION)

    # tiles after it
    if not CAUSAL:
        pivot_block += 2 * MASKS
        word, word_2 = load_words(pivot_block, rows, LAW, MASKS, True)
        highest = tl.minimum(tl.load(Last + head * padded - origin + i0 + TILE - 1), tokens - 1)
        for NEARBY in tl.static_range(2 if NEAR > 1 else 1):
            begin, stop = i0 + (TILE + near_span(NEAR, STEP)), highest + 1
            if NEARBY:
                begin, stop = i0 + TILE, tl.minimum(begin, stop)
            for j0 in tl.range(begin, stop, STEP, disable_licm=spills_if_hoisted(LAW, MASKS, CAUSAL)):
                columns = j0 + step
                key_mask = columns < tokens
                if SINKS > 0:
                    key_mask = key_mask & (columns >= SINKS)
                k, v = load_pair(key_base, value_base, k_t, v_t, j0, key_mask, DIM, WIDE, STEP)

                score = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale2
                pair_mask = key_mask[None, :] & (columns[None, :] <= last[:, None])
                score, factor = weigh_off_diagonal(
                    score, rows, columns, pair_mask, slope, bias, byte_weights, word, word_2, pivot_block, i0, j0,
                    LAW, MASKS, NEAR * NEARBY, False, True, ASM,
                )  # fmt: skip
                acc, row_sum, row_max = absorb(acc, row_sum, row_max, score, factor, v, LAW, PRECISION)

    # the sinks: a row that has seen no key so far has a maximum of MASKED_SCORE, and the first sink
    # wipes out its sums
    if SINKS > 0:
        if GAPS:  # sinks lie before the gap
            key_base += gap.to(tl.int64) * k_t
            value_base += gap.to(tl.int64) * v_t
        head_slope = tl.load(Slope + head)
        for j0 in tl.range(0, SINKS, SINK_STEP, num_stages=1, disable_licm=True):
            k, v, score, factor = sink_tile(
                q, key_base, value_base, k_t, v_t, rows, i0, j0, tokens, head_slope, scale2,
                LAW, CAUSAL, MASKS, SINKS, DIM, WIDE, SINK_STEP, PRECISION,
            )  # fmt: skip
            acc, row_sum, row_max = absorb(acc, row_sum, row_max, score, factor, v, LAW, PRECISION)

    # normalise and store
    dims = tl.arange(0, WIDE)
    row_sum = tl.where(row_mask, row_sum, 1.0)
    target = row_pointer(Out, sequence, head, i0 - start, o_b, o_h, o_t) + offsets[:, None] * o_t + dims[None, :]
    tl.store(target, (acc / row_sum[:, None]).to(Out.dtype.element_ty), mask=row_mask[:, None] & (dims < DIM)[None, :])
    lse = row_max + tl.log2(row_sum)
    if counts(LAW):
        lse -= tl.log2(MASKS * 1.0)
    tl.store(Lse + (sequence * heads + head) * queries + (rows - start), lse * LN2, mask=row_mask)


def forward(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    tables: Tables,
    geometry: torch.Tensor,
    *,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Computes attention on tables.

    Args:
        q: (B, H, Tq, D), and k, v: (B, Hkv, Tk, D), with dense last dimensions.
        tables: for all queries.
        geometry: as in `kernels.impl.triton.tiles.sequence_geometry`; gaps in causal calls only.
        scale: factor of the scores.

    Returns:
        out like q, and the log-sum-exp (B, H, Tq) float32; rows of padding give 0 and -inf.
    """
    batch, heads, queries, dim = q.shape
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    lse = torch.empty(q.shape[:3], dtype=torch.float32, device=q.device)
    if can_stream(q, k, v, tables=tables, gaps=len(geometry) == 3):
        causal_forward(q, k, v, out, lse, tables, geometry, scale=scale)
        return out, lse
    strides, alike = strides_of(q, k, v, out, geometry=geometry)
    launcher = _launcher(
        tables.law, tables.masks, tables.sinks, tables.near, tables.causal, dim, q.dtype, tables.tile,
        len(geometry) == 3,
    )  # fmt: skip
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
    law: Law, masks: int, sinks: int, near: int, causal: bool, dim: int, dtype: torch.dtype, tile: int, gaps: bool
) -> Launcher:
    return Launcher(
        forward_kernel, GAPS=gaps, **constants("forward", law, masks, sinks, near, causal, dim, dtype, tile, gaps)
    )
