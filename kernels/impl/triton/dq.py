"""Kernel `triton`, backward: dq, a tile of query rows to a program, which walks over keys as the
forward pass does."""

import triton
import triton.language as tl

from kernels.impl.triton.tiles import load_pair, load_tile, row_pointer, row_values, sequence_geometry, sink_tile
from kernels.impl.triton.weights import (
    SINK_STEP,
    UNSPECIALIZED,
    diagonal_stages,
    head_tables,
    load_words,
    near_span,
    needs_pair_mask,
    scales,
    spills_if_hoisted,
    weigh_diagonal,
    weigh_off_diagonal,
)


@triton.jit
def _query_gradient(
    dq, score, factor, k, v, dout, lse, delta, LAW: tl.constexpr, PRECISION: tl.constexpr
):  # fmt: skip
    """dq after one more tile of keys."""
    p = tl.exp2(score - lse[:, None])
    if scales(LAW):
        p = p * factor
    dp = tl.dot(dout, tl.trans(v), input_precision=PRECISION)
    ds = p * (dp - delta[:, None])
    return tl.dot(ds.to(k.dtype), k, dq, input_precision=PRECISION)


@triton.constexpr_function
def disable_diagonal_licm(law, masks, causal, sinks, tile):
    """Whether to disable loop-invariant code motion in the diagonal loop. Hoisting saves registers
    on sm_80, where three blocks then fit, and reduces spills with two words of masks that are
    looked up; elsewhere it spills.

    Args:
        law, masks, causal, sinks, tile: constants of the kernel
            (`kernels.impl.triton.launch.constants`).
    """
    if spills_if_hoisted(law, masks, causal):
        return False
    return tile == 64 or not causal or sinks > 0 or law in ("distance", "sum")


@triton.jit(do_not_specialize=UNSPECIALIZED)
def query_kernel(
    Q, K, V, Dout, Dq, Lse, Delta, Geometry, Order, First, Last, Slope, Bias, Bitplanes, PivotBlocks, ByteWeights,
    q_b, q_h, q_t, k_b, k_h, k_t, v_b, v_h, v_t, d_b, d_h, d_t,
    heads, group, queries, keys, padded, reach, scale, scale2,
    LAW: tl.constexpr, CAUSAL: tl.constexpr, MASKS: tl.constexpr, SINKS: tl.constexpr, NEAR: tl.constexpr,
    DIM: tl.constexpr, WIDE: tl.constexpr, TILE: tl.constexpr, STEP: tl.constexpr, PRECISION: tl.constexpr,
    ASM: tl.constexpr,
):  # fmt: skip
    """Grid and arguments as in the forward pass; Dq (batch, heads, queries, DIM) dense, Dout with
    strides d_. Keys are taken STEP at a time."""
    sequence = tl.program_id(1).to(tl.int64)
    head = tl.load(Order + tl.program_id(2)).to(tl.int64)
    start, tokens, slot_offset, _ = sequence_geometry(Geometry, sequence, tl.num_programs(1), keys, False)
    tile = tl.maximum(start, 0) // TILE + tl.num_programs(0) - 1 - tl.program_id(0)
    i0 = tile * TILE
    if i0 >= start + queries:
        return

    # the rows, and the columns that each of them visits
    rows, step = i0 + tl.arange(0, TILE), tl.arange(0, STEP)
    row_mask = (rows >= start) & (rows < start + queries)
    key_base = row_pointer(K, sequence, head // group, slot_offset, k_b, k_h, k_t)
    value_base = row_pointer(V, sequence, head // group, slot_offset, v_b, v_h, v_t)
    q = load_tile(row_pointer(Q, sequence, head, i0 - start, q_b, q_h, q_t), q_t, row_mask, DIM, WIDE, TILE)
    dout = load_tile(row_pointer(Dout, sequence, head, i0 - start, d_b, d_h, d_t), d_t, row_mask, DIM, WIDE, TILE)
    row_base = (sequence * heads + head) * queries - start
    lse, delta = row_values(Lse, Delta, row_base, rows, row_mask, LAW, MASKS)
    lowest = tl.load(First + head * padded + i0) // STEP * STEP
    first = tl.load(First + head * padded + rows)
    last = rows
    highest = i0
    if not CAUSAL:
        last = tl.load(Last + head * padded + rows)
        highest = tl.minimum(tl.load(Last + head * padded + i0 + TILE - 1), tokens - 1)
    slope, bias, byte_weights, bitplanes, pivot_block = head_tables(
        head, tile, Slope, Bias, ByteWeights, Bitplanes, PivotBlocks, padded // TILE, reach, LAW, MASKS, NEAR, TILE
    )
    dq = tl.zeros([TILE, WIDE], tl.float32)

    # the diagonal tile
    for j0 in tl.range(
        i0, i0 + TILE, STEP, num_stages=diagonal_stages(LAW, MASKS),
        disable_licm=disable_diagonal_licm(LAW, MASKS, CAUSAL, SINKS, TILE),
    ):  # fmt: skip
        columns = j0 + step
        key_mask = columns < tokens
        k, v = load_pair(key_base, value_base, k_t, v_t, j0, key_mask, DIM, WIDE, STEP)

        score = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale2
        pair_mask = key_mask[None, :] & (columns[None, :] <= last[:, None]) & (columns[None, :] >= first[:, None])
        score, factor = weigh_diagonal(
            score, rows, columns, pair_mask, slope, bias, bitplanes, byte_weights, i0, LAW, MASKS, NEAR, TILE, ASM
        )  # fmt: skip
        dq = _query_gradient(dq, score, factor, k, v, dout, lse, delta, LAW, PRECISION)

    # tiles before it: every key is a token, and no key lies after a row. Those that the near field
    # reaches are a loop of their own
    word, word_2 = load_words(pivot_block, rows, LAW, MASKS, False)
    for NEARBY in tl.static_range(2 if NEAR > 1 else 1):
        begin, stop = lowest, i0 - near_span(NEAR, STEP)
        if NEARBY:
            begin, stop = tl.maximum(lowest, stop), i0
        for j0 in tl.range(begin, stop, STEP, disable_licm=spills_if_hoisted(LAW, MASKS, CAUSAL)):
            columns = j0 + step
            k, v = load_pair(key_base, value_base, k_t, v_t, j0, None, DIM, WIDE, STEP)

            score = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale2
            score, factor = weigh_off_diagonal(
                score, rows, columns, columns[None, :] >= first[:, None], slope, bias, byte_weights, word, word_2,
                pivot_block, i0, j0, LAW, MASKS, NEAR * NEARBY, True, needs_pair_mask(SINKS, CAUSAL), ASM,
            )  # fmt: skip
            dq = _query_gradient(dq, score, factor, k, v, dout, lse, delta, LAW, PRECISION)

    # tiles after it
    if not CAUSAL:
        pivot_block += 2 * MASKS
        word, word_2 = load_words(pivot_block, rows, LAW, MASKS, True)
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
                dq = _query_gradient(dq, score, factor, k, v, dout, lse, delta, LAW, PRECISION)

    # the sinks
    if SINKS > 0:
        head_slope = tl.load(Slope + head)
        for j0 in tl.range(0, SINKS, SINK_STEP, num_stages=1, disable_licm=True):
            k, v, score, factor = sink_tile(
                q, key_base, value_base, k_t, v_t, rows, i0, j0, tokens, head_slope, scale2,
                LAW, CAUSAL, MASKS, SINKS, DIM, WIDE, SINK_STEP, PRECISION,
            )  # fmt: skip
            dq = _query_gradient(dq, score, factor, k, v, dout, lse, delta, LAW, PRECISION)

    dims = tl.arange(0, WIDE)
    target = Dq + (row_base + rows)[:, None] * DIM + dims[None, :]
    tl.store(target, (dq * scale).to(Dq.dtype.element_ty), mask=row_mask[:, None] & (dims < DIM)[None, :])
