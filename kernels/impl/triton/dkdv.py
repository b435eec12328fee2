"""Kernel `triton`, backward: dk and dv, a tile of keys to a program, which walks over the rows that
visit it."""

import triton
import triton.language as tl

from kernels.impl.triton.tiles import key_gradients, load_rows, load_tile, row_pointer, sequence_geometry
from kernels.impl.triton.weights import (
    UNSPECIALIZED,
    diagonal_stages,
    head_tables,
    load_words,
    near_span,
    needs_pair_mask,
    weigh_diagonal,
    weigh_off_diagonal,
)


@triton.jit(do_not_specialize=UNSPECIALIZED)
def key_kernel(
    Q, K, V, Dout, Dk, Dv, Lse, Delta, FirstRow, EndRow,
    Geometry, Order, First, Last, Slope, Bias, Bitplanes, PivotBlocks, ByteWeights,
    q_b, q_h, q_t, k_b, k_h, k_t, v_b, v_h, v_t, d_b, d_h, d_t,
    heads, group, queries, keys, padded, reach, scale, scale2,
    LAW: tl.constexpr, CAUSAL: tl.constexpr, MASKS: tl.constexpr, SINKS: tl.constexpr, NEAR: tl.constexpr,
    DIM: tl.constexpr, WIDE: tl.constexpr, TILE: tl.constexpr, STEP: tl.constexpr, PRECISION: tl.constexpr,
    ASM: tl.constexpr,
):  # fmt: skip
    """Grid (batch, tiles of keys, heads). Dk, Dv: (batch, heads, keys, DIM) dense, one for each
    query head. FirstRow, EndRow: (heads, tiles) int32, the first row that visits the tile, and the
    row after the last. Rows are taken STEP at a time. Sinks get 0: `kernels.impl.triton.dsinks`
    computes their gradients."""
    sequence = tl.program_id(0).to(tl.int64)
    head = tl.load(Order + tl.program_id(2)).to(tl.int64)
    start, tokens, slot_offset, _ = sequence_geometry(Geometry, sequence, tl.num_programs(0), keys, False)
    tile = tl.program_id(1)
    j0 = tile * TILE
    if j0 >= tokens:
        return

    # the keys and values, and the tables of their tile
    columns, step, end = j0 + tl.arange(0, TILE), tl.arange(0, STEP), start + queries
    key_mask = columns < tokens
    key_base = row_pointer(K, sequence, head // group, slot_offset + j0, k_b, k_h, k_t)
    k = load_tile(key_base, k_t, key_mask, DIM, WIDE, TILE)
    value_base = row_pointer(V, sequence, head // group, slot_offset + j0, v_b, v_h, v_t)
    v = load_tile(value_base, v_t, key_mask, DIM, WIDE, TILE)
    query_base = row_pointer(Q, sequence, head, -start, q_b, q_h, q_t)
    dout_base = row_pointer(Dout, sequence, head, -start, d_b, d_h, d_t)
    row_base = (sequence * heads + head) * queries - start
    table_index = head * (padded // TILE) + tile
    slope, bias, byte_weights, bitplanes, pivot_block = head_tables(
        head, tile, Slope, Bias, ByteWeights, Bitplanes, PivotBlocks, padded // TILE, reach, LAW, MASKS, NEAR, TILE
    )
    dk = tl.zeros([TILE, WIDE], tl.float32)
    dv = tl.zeros([TILE, WIDE], tl.float32)

    # rows of the diagonal tile
    for i0 in tl.range(j0, j0 + TILE, STEP, num_stages=diagonal_stages(LAW, MASKS), disable_licm=True):
        rows, q, dout, lse, delta = load_rows(
            query_base, dout_base, q_t, d_t, Lse, Delta, row_base, i0, step, start, end, LAW, MASKS, DIM, WIDE, STEP
        )  # fmt: skip

        first = tl.load(First + head * padded + rows)
        last = rows
        if not CAUSAL:
            last = tl.load(Last + head * padded + rows)
        score = tl.dot(k, tl.trans(q), input_precision=PRECISION) * scale2
        pair_mask = key_mask[:, None] & (columns[:, None] <= last[None, :]) & (columns[:, None] >= first[None, :])
        score, factor = weigh_diagonal(
            score, columns, rows, pair_mask, slope, bias, bitplanes, byte_weights, j0, LAW, MASKS, NEAR, TILE, ASM
        )  # fmt: skip
        dk, dv = key_gradients(dk, dv, score, factor, q, v, dout, lse, delta, LAW, PRECISION)

    # rows after the tile, whose blocks contain its last token, then rows before it, whose blocks
    # contain its first token. Rows whose near field reaches the tile are a loop of their own
    for BEFORE in tl.static_range(1 if CAUSAL else 2):
        if BEFORE:
            pivot = pivot_block
            begin = tl.maximum(tl.load(FirstRow + table_index), tl.maximum(start, 0)) // STEP * STEP
            stop = tl.minimum(j0, end)
        else:
            pivot = pivot_block + 2 * MASKS
            begin = tl.maximum(j0 + TILE, start // STEP * STEP)
            stop = tl.minimum(tl.load(EndRow + table_index), end)
        word, word_2 = load_words(pivot, columns, LAW, MASKS, not BEFORE)
        for NEARBY in tl.static_range(2 if NEAR > 1 else 1):
            first_row, end_row = begin, stop
            if BEFORE and NEAR > 1:
                cut = j0 - near_span(NEAR, STEP)
                if NEARBY:
                    first_row = tl.maximum(begin, cut)
                else:
                    end_row = tl.minimum(stop, cut)
            elif NEAR > 1:
                cut = j0 + (TILE + near_span(NEAR, STEP))
                if NEARBY:
                    end_row = tl.minimum(stop, cut)
                else:
                    first_row = tl.maximum(begin, cut)
            for i0 in tl.range(first_row, end_row, STEP):
                rows, q, dout, lse, delta = load_rows(
                    query_base, dout_base, q_t, d_t, Lse, Delta, row_base, i0, step, start, end,
                    LAW, MASKS, DIM, WIDE, STEP,
                )  # fmt: skip

                if BEFORE:
                    last = tl.load(Last + head * padded + rows)
                    pair_mask = (key_mask & (columns >= SINKS))[:, None] & (columns[:, None] <= last[None, :])
                else:
                    first = tl.load(First + head * padded + rows)
                    pair_mask = columns[:, None] >= first[None, :]
                score = tl.dot(k, tl.trans(q), input_precision=PRECISION) * scale2
                score, factor = weigh_off_diagonal(
                    score, columns, rows, pair_mask, slope, bias, byte_weights, word, word_2, pivot, j0, i0,
                    LAW, MASKS, NEAR * NEARBY, BEFORE == 1, BEFORE == 1 or needs_pair_mask(SINKS, CAUSAL), ASM,
                )  # fmt: skip
                dk, dv = key_gradients(dk, dv, score, factor, q, v, dout, lse, delta, LAW, PRECISION)

    dims = tl.arange(0, WIDE)
    target = ((sequence * heads + head) * keys + slot_offset + columns)[:, None] * DIM + dims[None, :]
    store_mask = key_mask[:, None] & (dims < DIM)[None, :]
    tl.store(Dk + target, (dk * scale).to(Dk.dtype.element_ty), mask=store_mask)
    tl.store(Dv + target, dv.to(Dv.dtype.element_ty), mask=store_mask)
