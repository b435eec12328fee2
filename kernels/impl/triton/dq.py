"""Kernel `triton`, backward: dq, a tile of query rows to a program, which walks over keys as the
forward pass does."""

import triton
import triton.language as tl

from kernels.impl.triton.tiles import load_pair, load_tile, row_of, row_values, sequence_geometry, sink_tile
from kernels.impl.triton.weights import (
    ANY,
    SINK_STEP,
    bounded,
    far,
    near,
    near_stages,
    packed,
    scales,
    weights_of,
    words_of,
)


@triton.jit
def _query_gradient(
    dq, score, factor, k, v, dout, lse, delta, LAW: tl.constexpr, PRECISION: tl.constexpr
):  # fmt: skip
    """dq with one more tile of keys."""
    p = tl.exp2(score - lse[:, None])
    if scales(LAW):
        p = p * factor
    dp = tl.dot(dout, tl.trans(v), input_precision=PRECISION)
    ds = p * (dp - delta[:, None])
    return tl.dot(ds.to(k.dtype), k, dq, input_precision=PRECISION)


@triton.constexpr_function
def crowded(law, masks, causal, sinks, tile):
    """Whether the registers have no room for what the steps of a diagonal tile share. Where they
    have, on sm_80, keeping it there takes fewer of them in all: three blocks fit. Two words looked
    up spill less with it, too."""
    if packed(law, masks, causal):
        return False
    return tile == 64 or not causal or sinks > 0 or law in ("distance", "sum")


@triton.jit(do_not_specialize=ANY)
def query_kernel(
    Q, K, V, Dout, Dq, Lse, Delta, Geometry, Order, First, Last, Slope, Bias, Planes, Corners, Share,
    q_b, q_h, q_t, k_b, k_h, k_t, v_b, v_h, v_t, d_b, d_h, d_t,
    heads, group, queries, keys, padded, reach, scale, scale2,
    LAW: tl.constexpr, CAUSAL: tl.constexpr, MASKS: tl.constexpr, SINKS: tl.constexpr, DIM: tl.constexpr,
    WIDE: tl.constexpr, TILE: tl.constexpr, STEP: tl.constexpr, PRECISION: tl.constexpr, ASM: tl.constexpr,
):  # fmt: skip
    """Grid and arguments as in the forward pass; Dq (batch, heads, queries, DIM) dense, Dout with
    strides d_. Keys are taken STEP at a time."""
    sequence = tl.program_id(1).to(tl.int64)
    head = tl.load(Order + tl.program_id(2)).to(tl.int64)
    start, tokens, lead, _ = sequence_geometry(Geometry, sequence, tl.num_programs(1), keys, False)
    tile = tl.maximum(start, 0) // TILE + tl.num_programs(0) - 1 - tl.program_id(0)
    i0 = tile * TILE
    if i0 >= start + queries:
        return
    rows, step = i0 + tl.arange(0, TILE), tl.arange(0, STEP)
    mine = (rows >= start) & (rows < start + queries)
    key_base = row_of(K, sequence, head // group, lead, k_b, k_h, k_t)
    value_base = row_of(V, sequence, head // group, lead, v_b, v_h, v_t)
    q = load_tile(row_of(Q, sequence, head, i0 - start, q_b, q_h, q_t), q_t, mine, DIM, WIDE, TILE)
    dout = load_tile(row_of(Dout, sequence, head, i0 - start, d_b, d_h, d_t), d_t, mine, DIM, WIDE, TILE)
    row_base = (sequence * heads + head) * queries - start
    lse, delta = row_values(Lse, Delta, row_base, rows, mine, LAW, MASKS)
    lowest = tl.load(First + head * padded + i0) // STEP * STEP
    first = tl.load(First + head * padded + rows)
    last = rows
    highest = i0
    if not CAUSAL:
        last = tl.load(Last + head * padded + rows)
        highest = tl.minimum(tl.load(Last + head * padded + i0 + TILE - 1), tokens - 1)
    slope, bias, share, planes, corner = weights_of(
        head, tile, Slope, Bias, Share, Planes, Corners, padded // TILE, reach, LAW, MASKS, TILE
    )

    dq = tl.zeros([TILE, WIDE], tl.float32)
    for j0 in tl.range(
        i0, i0 + TILE, STEP, num_stages=near_stages(LAW, MASKS), disable_licm=crowded(LAW, MASKS, CAUSAL, SINKS, TILE)
    ):
        columns = j0 + step
        here = columns < tokens
        k, v = load_pair(key_base, value_base, k_t, v_t, j0, here, DIM, WIDE, STEP)
        score = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale2
        seen = here[None, :] & (columns[None, :] <= last[:, None]) & (columns[None, :] >= first[:, None])
        score, factor = near(
            score, rows, columns, seen, slope, bias, planes, share, i0, LAW, MASKS, TILE, ASM
        )  # fmt: skip
        dq = _query_gradient(dq, score, factor, k, v, dout, lse, delta, LAW, PRECISION)
    word, word_2 = words_of(corner, rows, LAW, MASKS, False)
    for j0 in tl.range(lowest, i0, STEP, disable_licm=packed(LAW, MASKS, CAUSAL)):
        columns = j0 + step
        k, v = load_pair(key_base, value_base, k_t, v_t, j0, None, DIM, WIDE, STEP)
        score = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale2
        score, factor = far(
            score, rows, columns, columns[None, :] >= first[:, None], slope, bias, share, word, word_2, corner, i0, j0,
            LAW, MASKS, True, bounded(SINKS, CAUSAL), ASM,
        )  # fmt: skip
        dq = _query_gradient(dq, score, factor, k, v, dout, lse, delta, LAW, PRECISION)
    if not CAUSAL:
        corner += 2 * MASKS
        word, word_2 = words_of(corner, rows, LAW, MASKS, True)
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
            dq = _query_gradient(dq, score, factor, k, v, dout, lse, delta, LAW, PRECISION)
    if SINKS > 0:
        of_head = tl.load(Slope + head)
        for j0 in tl.range(0, SINKS, SINK_STEP, num_stages=1, disable_licm=True):
            k, v, score, factor = sink_tile(
                q, key_base, value_base, k_t, v_t, rows, i0, j0, tokens, of_head, scale2,
                LAW, CAUSAL, MASKS, SINKS, DIM, WIDE, SINK_STEP, PRECISION,
            )  # fmt: skip
            dq = _query_gradient(dq, score, factor, k, v, dout, lse, delta, LAW, PRECISION)
    dims = tl.arange(0, WIDE)
    to = Dq + (row_base + rows)[:, None] * DIM + dims[None, :]
    tl.store(to, (dq * scale).to(Dq.dtype.element_ty), mask=mine[:, None] & (dims < DIM)[None, :])
