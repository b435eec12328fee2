"""Parts that the Triton kernels share: addresses and tiles of sequences and heads, the running
softmax, the gradients of keys, and sinks."""

import triton
import triton.language as tl

from kernels.impl.triton.weights import counts, scales, signed_distance, weigh_exact


@triton.jit
def sequence_geometry(Geometry, sequence, batch, keys, GAPS: tl.constexpr):
    """Returns the token of a sequence's first query, its number of tokens, the offset that leads
    from a token after the gap to its slot, and the gap. Geometry: (2, batch) int32, or (3, batch)
    with GAPS: padding slots, token of the first query, and gap (`kernels.impl.geometry`)."""
    slot_offset = tl.load(Geometry + sequence)
    start, tokens, gap = tl.load(Geometry + batch + sequence), keys - slot_offset, 0
    if GAPS:
        gap = tl.load(Geometry + 2 * batch + sequence)
        tokens += gap
        slot_offset -= gap
    return start, tokens, slot_offset, gap


@triton.jit
def row_pointer(X, sequence, head, row, sequence_stride, head_stride, row_stride):
    """Pointer to a row of one head of one sequence. It may lie outside of X if nothing is read
    there."""
    return X + sequence * sequence_stride + head * head_stride + tl.cast(row, tl.int64) * row_stride


@triton.jit
def clear_padding(
    Out, Lse, sequence, head, heads, start, queries, begin, o_b, o_h, o_t,
    DIM: tl.constexpr, WIDE: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Writes 0 and -inf to the rows of padding among the TILE rows from `begin` on, which belong to
    no tile of tokens. If the first query is token `start` < 0, the first -start rows are
    padding."""
    offsets, dims = begin + tl.arange(0, TILE), tl.arange(0, WIDE)
    row_mask = offsets < tl.minimum(-start, queries)
    target = row_pointer(Out, sequence, head, begin, o_b, o_h, o_t) + tl.arange(0, TILE)[:, None] * o_t + dims[None, :]
    zeros = tl.zeros([TILE, WIDE], tl.float32)
    tl.store(target, zeros.to(Out.dtype.element_ty), mask=row_mask[:, None] & (dims < DIM)[None, :])
    tl.store(Lse + (sequence * heads + head) * queries + offsets, float("-inf"), mask=row_mask)


@triton.jit
def load_tile(base, stride, mask, DIM: tl.constexpr, WIDE: tl.constexpr, TILE: tl.constexpr):
    """Loads TILE rows of DIM numbers from `base`, `stride` apart, as (TILE, WIDE). Nothing is read
    beyond DIM and in rows outside `mask` (None: all rows are read): they are 0."""
    dims = tl.arange(0, WIDE)
    at = base + tl.arange(0, TILE)[:, None] * stride + dims[None, :]
    if mask is None and DIM == WIDE:
        return tl.load(at)
    load_mask = (dims < DIM)[None, :]
    if mask is not None:
        load_mask = load_mask & mask[:, None]
    return tl.load(at, mask=load_mask, other=0.0)


@triton.jit
def load_pair(
    a_base, b_base, a_stride, b_stride, at, mask, DIM: tl.constexpr, WIDE: tl.constexpr, TILE: tl.constexpr
):  # fmt: skip
    """`load_tile` of two tensors, keys and values or queries and dout, from row `at` on."""
    at = tl.cast(at, tl.int64)
    a = load_tile(a_base + at * a_stride, a_stride, mask, DIM, WIDE, TILE)
    return a, load_tile(b_base + at * b_stride, b_stride, mask, DIM, WIDE, TILE)


@triton.jit
def absorb(
    acc, row_sum, row_max, score, factor, value, LAW: tl.constexpr, PRECISION: tl.constexpr, pair_mask=None
):  # fmt: skip
    """The running softmax (acc, row_sum, row_max) after one more tile of base-2 scores and factors
    of their exponentials. `pair_mask` is needed if a row may have seen no key so far: its scores
    then equal their maximum, MASKED_SCORE."""
    new_max = tl.maximum(row_max, tl.max(score, 1))
    p = tl.exp2(score - new_max[:, None])
    if pair_mask is not None:
        p = tl.where(pair_mask, p, 0.0)
    if scales(LAW):
        p = p * factor
    rescale = tl.exp2(row_max - new_max)
    row_sum = row_sum * rescale + tl.sum(p, 1)
    acc = tl.dot(p.to(value.dtype), value, acc * rescale[:, None], input_precision=PRECISION)
    return acc, row_sum, new_max


@triton.jit
def row_values(Lse, Delta, at, rows, row_mask, LAW: tl.constexpr, MASKS: tl.constexpr):
    """Returns delta and the base-2 log-sum-exp of rows whose values start at `at`: of the sum with
    the factors of the law, as inside the forward pass."""
    lse = tl.load(Lse + at + rows, mask=row_mask, other=0.0) * 1.4426950408889634
    if counts(LAW):
        lse += tl.log2(MASKS * 1.0)
    return lse, tl.load(Delta + at + rows, mask=row_mask, other=0.0)


@triton.jit
def load_rows(
    query_base, dout_base, q_t, d_t, Lse, Delta, row_base, i0, step, start, stop,
    LAW: tl.constexpr, MASKS: tl.constexpr, DIM: tl.constexpr, WIDE: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """Returns STEP rows from `i0` on, their queries, dout and `row_values`. Rows outside start ..
    stop - 1 do not exist. `step`: 0 .. STEP - 1, made before the loop, since a value made in the
    loop may take registers throughout."""
    rows = i0 + step
    row_mask = (rows >= start) & (rows < stop)
    q, dout = load_pair(query_base, dout_base, q_t, d_t, i0, row_mask, DIM, WIDE, STEP)
    lse, delta = row_values(Lse, Delta, row_base, rows, row_mask, LAW, MASKS)
    return rows, q, dout, lse, delta


@triton.jit
def key_gradients(
    dk, dv, score, factor, q, v, dout, lse, delta, LAW: tl.constexpr, PRECISION: tl.constexpr
):  # fmt: skip
    """dk and dv after one more tile of rows. Scores are (keys, rows), so that the products need no
    transpose."""
    p = tl.exp2(score - lse[None, :])
    if scales(LAW):
        p = p * factor
    dv = tl.dot(p.to(dout.dtype), dout, dv, input_precision=PRECISION)
    dp = tl.dot(v, tl.trans(dout), input_precision=PRECISION)
    ds = p * (dp - delta[None, :])
    return tl.dot(ds.to(q.dtype), q, dk, input_precision=PRECISION), dv


@triton.jit
def sink_tile(
    q, key_base, value_base, k_t, v_t, rows, i0, j0, tokens, slope, scale2,
    LAW: tl.constexpr, CAUSAL: tl.constexpr, MASKS: tl.constexpr, SINKS: tl.constexpr, DIM: tl.constexpr,
    WIDE: tl.constexpr, STEP: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Returns the keys and values of STEP sinks from `j0` on, and the scores and factors of the
    rows (`weigh_exact`)."""
    columns = j0 + tl.arange(0, STEP)
    key_mask = (columns < SINKS) & (columns < tokens)
    k, v = load_pair(key_base, value_base, k_t, v_t, j0, key_mask, DIM, WIDE, STEP)

    score = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale2
    pair_mask = key_mask[None, :]
    if CAUSAL:
        pair_mask = pair_mask & (columns[None, :] <= rows[:, None])
    score, factor = weigh_exact(score, signed_distance(rows, columns, i0, j0), pair_mask, slope, LAW, MASKS)
    return k, v, score, factor
