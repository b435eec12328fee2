"""Kernel `triton`, backward: dk and dv, a tile of keys to a program, which walks over the rows that visit it."""

import triton
import triton.language as tl

from kernels.triton_tiles import load_pair, load_tile, place_of, row_of, row_values
from kernels.triton_weights import ANY, between, bounded, far, near, near_stages, scales, to_sinks, weights_of, words_of


@triton.jit
def _key_gradients(
    dk, dv, score, factor, q, v, dout, lse, delta, LAW: tl.constexpr, PRECISION: tl.constexpr
):  # fmt: skip
    """dk and dv with one more tile of rows; scores are (keys, rows): products take them as they are."""
    p = tl.exp2(score - lse[None, :])
    if scales(LAW):
        p = p * factor
    dv = tl.dot(p.to(dout.dtype), dout, dv, input_precision=PRECISION)
    dp = tl.dot(v, tl.trans(dout), input_precision=PRECISION)
    ds = p * (dp - delta[None, :])
    return tl.dot(ds.to(q.dtype), q, dk, input_precision=PRECISION), dv


@triton.jit(do_not_specialize=ANY)
def key_kernel(
    Q, K, V, Dout, Dk, Dv, Lse, Delta, Since, Until,
    Pad, Start, Order, First, Last, Slope, Bias, Planes, Corners, Share,
    q_b, q_h, q_t, k_b, k_h, k_t, v_b, v_h, v_t, d_b, d_h, d_t,
    heads, group, queries, keys, padded, reach, scale, scale2,
    LAW: tl.constexpr, CAUSAL: tl.constexpr, MASKS: tl.constexpr, SINKS: tl.constexpr, DIM: tl.constexpr,
    WIDE: tl.constexpr, TILE: tl.constexpr, STEP: tl.constexpr, PRECISION: tl.constexpr, ASM: tl.constexpr,
):  # fmt: skip
    """Grid (batch, tiles of keys, heads). Dk, Dv (batch, heads, keys, DIM) dense, one for each query head; Since, Until
    (heads, tiles) int32: the first row that visits the tile, and the row after the last. Rows are taken STEP at a
    time."""
    WORDS: tl.constexpr = (MASKS + 31) // 32
    sequence = tl.program_id(0).to(tl.int64)
    head = tl.load(Order + tl.program_id(2)).to(tl.int64)
    start, tokens, lead, _ = place_of(Pad, Start, Start, sequence, keys, False)
    tile = tl.program_id(1)
    j0 = tile * TILE
    if j0 >= tokens:
        return
    columns, step = j0 + tl.arange(0, TILE), tl.arange(0, STEP)
    here = columns < tokens
    k = load_tile(row_of(K, sequence, head // group, lead + j0, k_b, k_h, k_t), k_t, here, DIM, WIDE, TILE)
    v = load_tile(row_of(V, sequence, head // group, lead + j0, v_b, v_h, v_t), v_t, here, DIM, WIDE, TILE)
    query_base = row_of(Q, sequence, head, -start, q_b, q_h, q_t)
    dout_base = row_of(Dout, sequence, head, -start, d_b, d_h, d_t)
    row_base = (sequence * heads + head) * queries - start
    tables = head * (padded // TILE) + tile
    slope, bias, share, planes, corner = weights_of(
        head, tile, Slope, Bias, Share, Planes, Corners, padded // TILE, reach, LAW, MASKS, TILE
    )
    dk = tl.zeros([TILE, WIDE], tl.float32)
    dv = tl.zeros([TILE, WIDE], tl.float32)

    if SINKS > 0:
        slope = tl.load(Slope + head)
        begin = tl.maximum(start, 0) // STEP * STEP
        if CAUSAL:
            begin = tl.maximum(begin, j0)
        for i0 in tl.range(begin, tl.where(j0 < SINKS, start + queries, 0), STEP):
            rows = i0 + step
            mine = (rows >= start) & (rows < start + queries)
            q, dout = load_pair(query_base, dout_base, q_t, d_t, i0, mine, DIM, WIDE, STEP)
            lse, delta = row_values(Lse, Delta, row_base, rows, mine, LAW, MASKS)
            score = tl.dot(k, tl.trans(q), input_precision=PRECISION) * scale2
            seen = (here & (columns < SINKS))[:, None] & mine[None, :]
            if CAUSAL:
                seen = seen & (columns[:, None] <= rows[None, :])
            score, factor = to_sinks(score, between(columns, rows, j0, i0), seen, slope, LAW, MASKS)
            dk, dv = _key_gradients(dk, dv, score, factor, q, v, dout, lse, delta, LAW, PRECISION)

    for i0 in tl.range(j0, j0 + TILE, STEP, num_stages=near_stages(LAW, MASKS), disable_licm=True):
        rows = i0 + step
        mine = (rows >= start) & (rows < start + queries)
        q, dout = load_pair(query_base, dout_base, q_t, d_t, i0, mine, DIM, WIDE, STEP)
        lse, delta = row_values(Lse, Delta, row_base, rows, mine, LAW, MASKS)
        first = tl.load(First + head * padded + rows)
        last = rows
        if not CAUSAL:
            last = tl.load(Last + head * padded + rows)
        score = tl.dot(k, tl.trans(q), input_precision=PRECISION) * scale2
        seen = here[:, None] & (columns[:, None] <= last[None, :]) & (columns[:, None] >= first[None, :])
        score, factor = near(
            score, columns, rows, seen, slope, bias, planes, share, j0, LAW, MASKS, TILE, ASM
        )  # fmt: skip
        dk, dv = _key_gradients(dk, dv, score, factor, q, v, dout, lse, delta, LAW, PRECISION)

    # rows after the tile: their blocks reach back over its last token
    word, word_2 = words_of(corner + 2 * WORDS * 32, columns, LAW, MASKS, True)
    begin = tl.maximum(j0 + TILE, start // STEP * STEP)
    stop = tl.minimum(tl.load(Until + tables), start + queries)
    for i0 in tl.range(begin, stop, STEP):
        rows = i0 + step
        mine = (rows >= start) & (rows < start + queries)
        q, dout = load_pair(query_base, dout_base, q_t, d_t, i0, mine, DIM, WIDE, STEP)
        lse, delta = row_values(Lse, Delta, row_base, rows, mine, LAW, MASKS)
        first = tl.load(First + head * padded + rows)
        score = tl.dot(k, tl.trans(q), input_precision=PRECISION) * scale2
        score, factor = far(
            score, columns, rows, columns[:, None] >= first[None, :], slope, bias, share, word, word_2,
            corner + 2 * WORDS * 32, j0, i0, LAW, MASKS, False, bounded(SINKS, CAUSAL), ASM,
        )  # fmt: skip
        dk, dv = _key_gradients(dk, dv, score, factor, q, v, dout, lse, delta, LAW, PRECISION)
    # rows before it: their blocks reach forward over its first token
    if not CAUSAL:
        word, word_2 = words_of(corner, columns, LAW, MASKS, False)
        begin = tl.maximum(tl.load(Since + tables), tl.maximum(start, 0)) // STEP * STEP
        for i0 in tl.range(begin, tl.minimum(j0, start + queries), STEP):
            rows = i0 + step
            mine = (rows >= start) & (rows < start + queries)
            q, dout = load_pair(query_base, dout_base, q_t, d_t, i0, mine, DIM, WIDE, STEP)
            lse, delta = row_values(Lse, Delta, row_base, rows, mine, LAW, MASKS)
            last = tl.load(Last + head * padded + rows)
            score = tl.dot(k, tl.trans(q), input_precision=PRECISION) * scale2
            seen = here[:, None] & (columns[:, None] <= last[None, :])
            if SINKS > 0:
                seen = seen & (columns >= SINKS)[:, None]
            score, factor = far(
                score, columns, rows, seen, slope, bias, share,
                word, word_2, corner, j0, i0, LAW, MASKS, True, True, ASM,
            )  # fmt: skip
            dk, dv = _key_gradients(dk, dv, score, factor, q, v, dout, lse, delta, LAW, PRECISION)
    dims = tl.arange(0, WIDE)
    to = ((sequence * heads + head) * keys + lead + columns)[:, None] * DIM + dims[None, :]
    kept = here[:, None] & (dims < DIM)[None, :]
    tl.store(Dk + to, (dk * scale).to(Dk.dtype.element_ty), mask=kept)
    tl.store(Dv + to, dv.to(Dv.dtype.element_ty), mask=kept)
