"""What the Triton kernels share: where a sequence and a head lie in memory, how tiles of them are
loaded, and sinks."""

import triton
import triton.language as tl

from kernels.impl.triton.weights import between, counts, scales, to_sinks


@triton.jit
def sequence_geometry(Geometry, sequence, batch, keys, GAPS: tl.constexpr):
    """Of a sequence: token of its first query, tokens, slots before token 0 were none left out,
    tokens left out. Geometry (2, batch) int32, with GAPS (3, batch): the slots of padding before the
    keys, the token of the first query, and how many tokens are left out after the sinks."""
    lead = tl.load(Geometry + sequence)
    start, tokens, gap = tl.load(Geometry + batch + sequence), keys - lead, 0
    if GAPS:
        gap = tl.load(Geometry + 2 * batch + sequence)
        tokens += gap
        lead -= gap
    return start, tokens, lead, gap


@triton.jit
def row_of(X, sequence, head, row, of_sequence, of_head, of_row):
    """Pointer to a row of a head of a sequence, by the strides of X; it may lie outside where
    nothing is read."""
    return X + sequence * of_sequence + head * of_head + tl.cast(row, tl.int64) * of_row


@triton.jit
def clear_padding(
    Out, Lse, sequence, head, heads, start, queries, after, o_b, o_h, o_t,
    DIM: tl.constexpr, WIDE: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Write 0 and -inf to TILE rows of padding from the row `after` on: they belong to no tile of
    tokens. Of queries whose first is token `start` those of padding are the first -start."""
    place, dims = after + tl.arange(0, TILE), tl.arange(0, WIDE)
    mine = place < tl.minimum(-start, queries)
    to = row_of(Out, sequence, head, after, o_b, o_h, o_t) + tl.arange(0, TILE)[:, None] * o_t + dims[None, :]
    nothing = tl.zeros([TILE, WIDE], tl.float32)
    tl.store(to, nothing.to(Out.dtype.element_ty), mask=mine[:, None] & (dims < DIM)[None, :])
    tl.store(Lse + (sequence * heads + head) * queries + place, float("-inf"), mask=mine)


@triton.jit
def load_tile(base, stride, here, DIM: tl.constexpr, WIDE: tl.constexpr, TILE: tl.constexpr):
    """TILE rows of DIM numbers from `base`, `stride` apart, as (TILE, WIDE); 0 beyond DIM and where
    `here` is false: nothing is read there. With `here` None all rows are."""
    dims = tl.arange(0, WIDE)
    at = base + tl.arange(0, TILE)[:, None] * stride + dims[None, :]
    if here is None and DIM == WIDE:
        return tl.load(at)
    kept = (dims < DIM)[None, :]
    if here is not None:
        kept = kept & here[:, None]
    return tl.load(at, mask=kept, other=0.0)


@triton.jit
def load_pair(
    a_base, b_base, a_stride, b_stride, at, here, DIM: tl.constexpr, WIDE: tl.constexpr, TILE: tl.constexpr
):  # fmt: skip
    """Tiles of two tensors, keys and values or queries and their gradients, from row `at` on;
    `here` of `load_tile`."""
    at = tl.cast(at, tl.int64)
    a = load_tile(a_base + at * a_stride, a_stride, here, DIM, WIDE, TILE)
    return a, load_tile(b_base + at * b_stride, b_stride, here, DIM, WIDE, TILE)


@triton.jit
def absorb(
    acc, total, top, score, factor, value,
    LAW: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The running softmax (acc, total, top) with one more tile of base-2 scores and the factors of
    its exponentials."""
    higher = tl.maximum(top, tl.max(score, 1))
    p = tl.exp2(score - higher[:, None])
    if scales(LAW):
        p = p * factor
    shrink = tl.exp2(top - higher)
    total = total * shrink + tl.sum(p, 1)
    acc = tl.dot(p.to(value.dtype), value, acc * shrink[:, None], input_precision=PRECISION)
    return acc, total, higher


@triton.jit
def row_values(Lse, Delta, at, rows, mine, LAW: tl.constexpr, MASKS: tl.constexpr):
    """Base-2 log-sum-exp of the weighted sum as the forward pass had it, and delta, of rows that
    begin at `at`."""
    lse = tl.load(Lse + at + rows, mask=mine, other=0.0) * 1.4426950408889634
    if counts(LAW):
        lse += tl.log2(MASKS * 1.0)
    return lse, tl.load(Delta + at + rows, mask=mine, other=0.0)


@triton.jit
def load_rows(
    query_base, dout_base, q_t, d_t, Lse, Delta, row_base, i0, step, start, stop,
    LAW: tl.constexpr, MASKS: tl.constexpr, DIM: tl.constexpr, WIDE: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """STEP rows from `i0` on, of which those from `start` to `stop` are there: rows, queries, their
    gradients, and `row_values`. `step`: 0 to STEP - 1, made before the loop, since a loop may keep
    what is made in it."""
    rows = i0 + step
    mine = (rows >= start) & (rows < stop)
    q, dout = load_pair(query_base, dout_base, q_t, d_t, i0, mine, DIM, WIDE, STEP)
    lse, delta = row_values(Lse, Delta, row_base, rows, mine, LAW, MASKS)
    return rows, q, dout, lse, delta


@triton.jit
def key_gradients(
    dk, dv, score, factor, q, v, dout, lse, delta, LAW: tl.constexpr, PRECISION: tl.constexpr
):  # fmt: skip
    """dk and dv with one more tile of rows, whose scores are (keys, rows): products take them as
    they are."""
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
    """Of STEP keys from `j0` on that are sinks, of which `tokens` are there: keys, values, and
    scores and factors of the rows, as of `to_sinks`."""
    columns = j0 + tl.arange(0, STEP)
    here = (columns < SINKS) & (columns < tokens)
    k, v = load_pair(key_base, value_base, k_t, v_t, j0, here, DIM, WIDE, STEP)
    score = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale2
    seen = here[None, :]
    if CAUSAL:
        seen = seen & (columns[None, :] <= rows[:, None])
    score, factor = to_sinks(score, between(rows, columns, i0, j0), seen, slope, LAW, MASKS)
    return k, v, score, factor
