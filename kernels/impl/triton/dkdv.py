"""Kernel `triton`, backward: dk and dv, a tile of keys to a program, which walks over the rows that
visit it."""

import triton
import triton.language as tl

from kernels.impl.triton.tiles import key_gradients, load_rows, load_tile, row_of, sequence_geometry
from kernels.impl.triton.weights import ANY, bounded, far, near, near_stages, weights_of, words_of


@triton.jit(do_not_specialize=ANY)
def key_kernel(
    Q, K, V, Dout, Dk, Dv, Lse, Delta, Since, Until,
    Geometry, Order, First, Last, Slope, Bias, Planes, Corners, Share,
    q_b, q_h, q_t, k_b, k_h, k_t, v_b, v_h, v_t, d_b, d_h, d_t,
    heads, group, queries, keys, padded, reach, scale, scale2,
    LAW: tl.constexpr, CAUSAL: tl.constexpr, MASKS: tl.constexpr, SINKS: tl.constexpr, DIM: tl.constexpr,
    WIDE: tl.constexpr, TILE: tl.constexpr, STEP: tl.constexpr, PRECISION: tl.constexpr, ASM: tl.constexpr,
):  # fmt: skip
    """Grid (batch, tiles of keys, heads). Dk, Dv (batch, heads, keys, DIM) dense, one for each
    query head; Since, Until (heads, tiles) int32: the first row that visits the tile, and the row
    after the last. Rows are taken STEP at a time. Sinks get 0, since what they get from every row
    is `kernels.impl.triton.dsinks`'."""
    sequence = tl.program_id(0).to(tl.int64)
    head = tl.load(Order + tl.program_id(2)).to(tl.int64)
    start, tokens, lead, _ = sequence_geometry(Geometry, sequence, tl.num_programs(0), keys, False)
    tile = tl.program_id(1)
    j0 = tile * TILE
    if j0 >= tokens:
        return
    columns, step, end = j0 + tl.arange(0, TILE), tl.arange(0, STEP), start + queries
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

    for i0 in tl.range(j0, j0 + TILE, STEP, num_stages=near_stages(LAW, MASKS), disable_licm=True):
        rows, q, dout, lse, delta = load_rows(
            query_base, dout_base, q_t, d_t, Lse, Delta, row_base, i0, step, start, end, LAW, MASKS, DIM, WIDE, STEP
        )  # fmt: skip
        first = tl.load(First + head * padded + rows)
        last = rows
        if not CAUSAL:
            last = tl.load(Last + head * padded + rows)
        score = tl.dot(k, tl.trans(q), input_precision=PRECISION) * scale2
        seen = here[:, None] & (columns[:, None] <= last[None, :]) & (columns[:, None] >= first[None, :])
        score, factor = near(
            score, columns, rows, seen, slope, bias, planes, share, j0, LAW, MASKS, TILE, ASM
        )  # fmt: skip
        dk, dv = key_gradients(dk, dv, score, factor, q, v, dout, lse, delta, LAW, PRECISION)

    # rows after the tile, whose blocks reach back over its last token, and rows before it, forward
    # over its first
    for BEFORE in tl.static_range(1 if CAUSAL else 2):
        if BEFORE:
            pivot = corner
            begin = tl.maximum(tl.load(Since + tables), tl.maximum(start, 0)) // STEP * STEP
            stop = tl.minimum(j0, end)
        else:
            pivot = corner + 2 * MASKS
            begin = tl.maximum(j0 + TILE, start // STEP * STEP)
            stop = tl.minimum(tl.load(Until + tables), end)
        word, word_2 = words_of(pivot, columns, LAW, MASKS, not BEFORE)
        for i0 in tl.range(begin, stop, STEP):
            rows, q, dout, lse, delta = load_rows(
                query_base, dout_base, q_t, d_t, Lse, Delta, row_base, i0, step, start, end, LAW, MASKS, DIM, WIDE, STEP
            )  # fmt: skip
            if BEFORE:
                last = tl.load(Last + head * padded + rows)
                seen = (here & (columns >= SINKS))[:, None] & (columns[:, None] <= last[None, :])
            else:
                first = tl.load(First + head * padded + rows)
                seen = columns[:, None] >= first[None, :]
            score = tl.dot(k, tl.trans(q), input_precision=PRECISION) * scale2
            score, factor = far(
                score, columns, rows, seen, slope, bias, share, word, word_2, pivot, j0, i0,
                LAW, MASKS, BEFORE == 1, BEFORE == 1 or bounded(SINKS, CAUSAL), ASM,
            )  # fmt: skip
            dk, dv = key_gradients(dk, dv, score, factor, q, v, dout, lse, delta, LAW, PRECISION)
    dims = tl.arange(0, WIDE)
    to = ((sequence * heads + head) * keys + lead + columns)[:, None] * DIM + dims[None, :]
    kept = here[:, None] & (dims < DIM)[None, :]
    tl.store(Dk + to, (dk * scale).to(Dk.dtype.element_ty), mask=kept)
    tl.store(Dv + to, dv.to(Dv.dtype.element_ty), mask=kept)
