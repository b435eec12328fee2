"""Kernel `triton`, forward, for causal calls on Hopper: one loop over tiles of keys that the copy
engine (TMA) fetches.

The general kernel (`kernels.impl.triton.forward`) takes the diagonal tile and the tiles before it
in two loops, by pointers. Pointers to a tile take some 60 registers of a thread, and a second loop
begins with nothing in flight. Here a tile is one instruction of one thread, tiles are taken from
the diagonal leftwards in one loop, and three or four blocks share a multiprocessor in place of two.

What a pair weighs takes fewer instructions, too. A row's softmax does not change with a constant of
the row, so that the bias -slope * (i - j) is slope * (j - i0) of the column alone, and the
log-sum-exp gets the rest at the end. Under "rb" the weight of exp(-slope * d) =: L is L / (1 - (1 -
L)^S) = 1 / (1 + q + ... + q^(S-1)) with q = 1 - L, and L is a product of a factor of the row and
one of the column. How many masks hold a pair before the tile is a product of two 0/1 matrices of S
columns, which the tensor cores multiply.
"""

import functools

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from kernels.impl.tables import LOG2E, WORD, Tables
from kernels.impl.triton.launch import Launcher, capability, pointers, precision_of, strides_of, width_of
from kernels.impl.triton.tiles import absorb, clear_padding, sequence_geometry
from kernels.impl.triton.weights import (
    ANY,
    HIDDEN,
    INTERPRETED,
    LN2,
    between,
    counts,
    lanes,
    to_sinks,
    weigh_near,
    weights_of,
)
from kernels.methods.laws import Law

STEP = 32  # keys at a time
LAWS = (Law.LINEAR, Law.RAO_BLACKWELL, Law.COUNT)
# exponent of a factor of a row or column: what is below float32 becomes 0, of a likelihood at most
# 2^(100 - 126)
LARGEST = tl.constexpr(100.0)
ALIGNED = 16  # bytes of which every address and stride must be a multiple


@triton.jit
def reciprocal(x, ASM: tl.constexpr):
    """1 / x to the last bit but one, in one instruction."""
    if ASM:
        return tl.inline_asm_elementwise(
            "rcp.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )
    else:
        return 1.0 / x


@triton.constexpr_function
def doublings(number):
    return number.bit_length() - 1


@triton.jit
def geometric(q, number: tl.constexpr):
    """1 + q + ... + q^(number - 1) for q from 0 to 1, all of whose terms are positive: nothing
    cancels."""
    # from k terms to 2 k: times 1 + q^k; to one more: times q, plus 1
    found = tl.full(q.shape, 1.0, tl.float32)
    power = q  # q^k
    for i in tl.static_range(doublings(number)):
        found = found + found * power
        power = power * power
        if (number >> (doublings(number) - 1 - i)) % 2 == 1:
            found = 1.0 + q * found
            power = power * q
    return found


@triton.jit
def factors_of(
    positions, base, slope, corner,
    LAW: tl.constexpr, MASKS: tl.constexpr, TILE: tl.constexpr, ROWS: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """What each position of the tile that begins at `base`, of rows (ROWS) or of keys, brings to
    the weights of its pairs: under "rb" a factor of exp(-slope * d), under "count" which masks'
    pivot blocks, of which `corner` has the begins and the ends, it can lie in. And what a step
    compares with there: where the blocks begin (ROWS) or end."""
    found, limits = positions, positions
    if LAW == "rb":
        after = (positions - base - TILE // 2).to(tl.float32)
        found = tl.exp2(slope * (-after if ROWS else after))
    if LAW == "count":
        lane = tl.arange(0, lanes(MASKS))
        begins = tl.load(corner + lane, mask=lane < MASKS, other=2147483647)
        ends = tl.load(corner + MASKS + lane, mask=lane < MASKS, other=0)
        if ROWS:
            found, limits = (ends[None, :] > positions[:, None]).to(DTYPE), begins
        else:
            found, limits = (begins[None, :] <= positions[:, None]).to(DTYPE), ends
    return found, limits


@triton.jit
def weighed(
    score, seen, diagonal, of_tile, limits, place, positions, base, slope, planes, share,
    LAW: tl.constexpr, MASKS: tl.constexpr, TILE: tl.constexpr, ROWS: tl.constexpr, PRECISION: tl.constexpr,
    ASM: tl.constexpr,
):  # fmt: skip
    """Scores (tile, step), HIDDEN where a pair is not `seen`, and the factors of their
    exponentials. The tile, of rows if ROWS, begins at `base`; `of_tile` and `limits` are of
    `factors_of`; the step lies at `positions`, whether within the tile (`diagonal`) or not."""
    factor = score
    if LAW == "count":
        if diagonal:
            factor = tl.where(seen, weigh_near(planes, place, positions - base, share, LAW, MASKS, TILE, ASM), 0.0)
        else:
            of_step = limits[:, None] <= positions[None, :] if ROWS else limits[:, None] > positions[None, :]
            factor = tl.dot(of_tile, of_step.to(of_tile.dtype), input_precision=PRECISION)
        score = tl.where(factor > 0, score, HIDDEN)
    else:
        if LAW == "rb":
            ahead = (positions - base).to(tl.float32) * (slope if ROWS else -slope)
            half = slope * (TILE // 2)
            if half <= LARGEST:
                like = of_tile[:, None] * tl.exp2(ahead - (half if ROWS else -half))[None, :]
            else:
                like = tl.exp2(ahead[None, :] - (place.to(tl.float32) * (slope if ROWS else -slope))[:, None])
            factor = reciprocal(geometric(tl.maximum(1.0 - like, 0.0), MASKS), ASM)
        score = tl.where(seen, score, HIDDEN)
    return score, factor


@triton.jit
def key_step(
    q, K, V, sequence, head, lead, j0, step, i0, place, first, visited, of_rows, begins, slope, planes, share, scale2,
    LAW: tl.constexpr, MASKS: tl.constexpr, WIDE: tl.constexpr, TILE: tl.constexpr, STEP: tl.constexpr,
    PRECISION: tl.constexpr, ASM: tl.constexpr,
):  # fmt: skip
    """Of STEP keys from `j0` on: keys, values, and scores and factors of the rows of the tile at
    `i0`, of which `first` and `visited` are the first key and the number of keys; under "linear"
    the scores lack the row's part of the bias. `step`: 0 to STEP - 1, made before the loop."""
    columns = j0 + step
    k = K.load([sequence, head, lead + j0, 0]).reshape([STEP, WIDE])
    v = V.load([sequence, head, lead + j0, 0]).reshape([STEP, WIDE])
    score = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale2
    # in one comparison: a column before the first is a large number without sign
    seen = (columns[None, :] - first[:, None]).to(tl.uint32) < visited[:, None]
    if LAW == "linear":
        score += (slope * (columns - i0).to(tl.float32))[None, :]
    score, factor = weighed(
        score, seen, j0 >= i0, of_rows, begins, place, columns, i0, slope, planes, share,
        LAW, MASKS, TILE, True, PRECISION, ASM,
    )  # fmt: skip
    return k, v, score, factor


@triton.jit
def sink_step(
    q, K, V, sequence, head, lead, j0, step, i0, rows, slope, scale2,
    LAW: tl.constexpr, MASKS: tl.constexpr, SINKS: tl.constexpr, WIDE: tl.constexpr, STEP: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """The same of keys that are sinks, with scores as of `to_sinks`."""
    columns = j0 + step
    k = K.load([sequence, head, lead + j0, 0]).reshape([STEP, WIDE])
    v = V.load([sequence, head, lead + j0, 0]).reshape([STEP, WIDE])
    score = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale2
    seen = (columns < SINKS)[None, :] & (columns[None, :] <= rows[:, None])
    score, factor = to_sinks(score, between(rows, columns, i0, j0), seen, slope, LAW, MASKS)
    return k, v, score, factor


@triton.jit(do_not_specialize=ANY)
def causal_kernel(
    Q, K, V, Out, OutRows, Lse, Geometry, Order, First, Slope, Bias, Planes, Corners, Share,
    o_b, o_h, o_t, heads, group, queries, keys, padded, origin, scale2,
    LAW: tl.constexpr, MASKS: tl.constexpr, SINKS: tl.constexpr, DIM: tl.constexpr, WIDE: tl.constexpr,
    TILE: tl.constexpr, STEP: tl.constexpr, STAGES: tl.constexpr, PRECISION: tl.constexpr, ASM: tl.constexpr,
):  # fmt: skip
    """Grid (tiles of rows, batch, heads). Q, K, V, Out: tensor descriptors of (batch, heads, slots,
    DIM), what lies outside of them is read as 0 and not written; OutRows: the pointer of Out, with
    strides o_, for rows of padding. Lse (batch, heads, queries) dense. Geometry as in `sequence_geometry`,
    without gaps. The other pointers are those of `Tables` with `padded` rows, the first of them
    `origin`."""
    sequence = tl.program_id(1)
    head = tl.load(Order + tl.program_id(2))
    start, tokens, lead, _ = sequence_geometry(Geometry, sequence, tl.num_programs(1), keys, False)
    tile = tl.maximum(start, 0) // TILE + tl.num_programs(0) - 1 - tl.program_id(0)
    i0 = tile * TILE
    if i0 >= start + queries:
        after = i0 - tl.cdiv(tl.maximum(start + queries, 0), TILE) * TILE
        clear_padding(
            OutRows, Lse, sequence.to(tl.int64), head.to(tl.int64), heads, start, queries, after, o_b, o_h, o_t,
            DIM, WIDE, TILE,
        )  # fmt: skip
        return
    place, step = tl.arange(0, TILE), tl.arange(0, STEP)
    rows = i0 + place
    shared = head // group  # the head of keys and values
    q = Q.load([sequence, head, i0 - start, 0]).reshape([TILE, WIDE])
    first_of = First + head.to(tl.int64) * padded - origin
    lowest = tl.load(first_of + i0) // STEP * STEP
    first = tl.load(first_of + rows)
    visited = tl.maximum(rows - first + 1, 0).to(tl.uint32)  # keys of each row; none of a row among the sinks
    slope, _, share, planes, corner = weights_of(
        head.to(tl.int64), tile - origin // TILE, Slope, Bias, Share, Planes, Corners, padded // TILE, 0,
        LAW, MASKS, TILE,
    )  # fmt: skip
    # a mask holds row i and key j before the tile iff its block of row i0, the pivot, ends after i
    # and begins by j
    of_rows, begins = factors_of(rows, i0, slope, corner, LAW, MASKS, TILE, True, q.dtype)
    top = tl.full([TILE], HIDDEN, tl.float32)
    total = tl.zeros([TILE], tl.float32)
    acc = tl.zeros([TILE, WIDE], tl.float32)

    last = i0 + TILE - STEP
    for t in tl.range(0, (last - lowest) // STEP + 1, num_stages=STAGES, disable_licm=True):
        k, v, score, factor = key_step(
            q, K, V, sequence, shared, lead, last - t * STEP, step, i0, place, first, visited, of_rows, begins, slope,
            planes, share, scale2, LAW, MASKS, WIDE, TILE, STEP, PRECISION, ASM,
        )  # fmt: skip
        acc, total, top = absorb(acc, total, top, score, factor, v, LAW, PRECISION)
    if LAW == "linear":  # the row's part of the bias, which its softmax did not need
        top -= slope * place.to(tl.float32)

    # the sinks: a row that saw nothing so far has a maximum of HIDDEN, which what it sees here
    # wipes out
    if SINKS > 0:
        of_head = tl.load(Slope + head)
        for j0 in tl.range(0, SINKS, STEP, num_stages=1):
            k, v, score, factor = sink_step(
                q, K, V, sequence, shared, lead, j0, step, i0, rows, of_head, scale2,
                LAW, MASKS, SINKS, WIDE, STEP, PRECISION,
            )  # fmt: skip
            acc, total, top = absorb(acc, total, top, score, factor, v, LAW, PRECISION)

    out = (acc * reciprocal(total, ASM)[:, None]).to(q.dtype)
    Out.store([sequence, head, i0 - start, 0], out.reshape([1, 1, TILE, WIDE]))
    lse = top + tl.log2(total)
    if counts(LAW):
        lse -= tl.log2(MASKS * 1.0)
    mine = (rows >= start) & (rows < start + queries)
    to = Lse + (sequence * heads + head).to(tl.int64) * queries + (rows - start)
    tl.store(to, lse * LN2, mask=mine)


def streamed_constants(law: Law, masks: int, dim: int, dtype: torch.dtype, tile: int, **own) -> dict:
    """What the kernels of these tiles are compiled for, and how they are launched; `own`: what is a
    kernel's own."""
    return {
        "LAW": law.value,
        "MASKS": masks if law.uses_mask_count else 0,
        "WIDE": width_of(dim),
        "TILE": tile,
        "STEP": min(STEP, tile),
        "STAGES": 2,
        "PRECISION": precision_of(dtype),
        "ASM": not INTERPRETED,
        "num_warps": 4,
        "maxnreg": 255 if law is Law.COUNT and masks > 16 else 168,
        "enable_fp_fusion": True,
    } | own


def causal_constants(law: Law, masks: int, sinks: int, dim: int, dtype: torch.dtype, tile: int) -> dict:
    """Of `causal_kernel`: with the cap on registers and the stages that took the least time on an
    H200. On sm_90 128 registers leave room for four blocks, 168 for three."""
    own = {"SINKS": sinks, "DIM": dim}
    if law is Law.RAO_BLACKWELL:
        own["STAGES"] = 3
    if law is Law.LINEAR and not sinks:
        own["maxnreg"] = 128
    return streamed_constants(law, masks, dim, dtype, tile, **own)


def streams(*inputs: torch.Tensor, tables: Tables, gaps: bool) -> bool:
    """Whether the kernels for causal calls on Hopper can take these inputs, (B, H, T, D) with dense
    last dimensions."""
    q = inputs[0]
    able = INTERPRETED or capability(q) == 9
    lawful = tables.law in LAWS and (tables.law is not Law.COUNT or tables.masks <= WORD)
    kind = able and tables.causal and not gaps and lawful and q.dtype != torch.float32
    return kind and all(map(streamed, inputs))


def streamed(x: torch.Tensor) -> bool:
    """Whether the copy engine can fetch tiles of x, with a dense last dimension, as it lies in
    memory, and tiles of a dense tensor like it."""
    sizes = zip(x.shape[:3], x.stride()[:3], strict=True)
    strides = [stride for size, stride in sizes if size > 1] + [x.shape[3]]
    return x.data_ptr() % ALIGNED == 0 and all(
        stride > 0 and stride * x.element_size() % ALIGNED == 0 for stride in strides
    )


def descriptor(x: torch.Tensor, rows: int) -> TensorDescriptor:
    """Of tiles of `rows` tokens of one head of a sequence of x (B, H, T, D)."""
    wide = width_of(x.shape[3])  # also the stride of a dimension of one, which may have had any
    strides = [stride if size > 1 else wide for size, stride in zip(x.shape[:3], x.stride()[:3], strict=True)]
    return TensorDescriptor(x, list(x.shape), [*strides, 1], [1, 1, rows, wide])


def causal_forward(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, out: torch.Tensor, lse: torch.Tensor, tables: Tables,
    geometry: torch.Tensor, *, scale: float,
) -> None:  # fmt: skip
    """As `kernels.impl.triton.forward.forward`, written to `out` and `lse`."""
    batch, heads, queries, dim = q.shape
    step, tile = min(STEP, tables.tile), tables.tile
    strides, alike = strides_of(out, geometry=geometry)
    _launcher(tables.law, tables.masks, tables.sinks, dim, q.dtype, tile)(
        ((queries + 2 * tile - 2) // tile, batch, heads), q.device,
        descriptor(q, tile), descriptor(k, step), descriptor(v, step), descriptor(out, tile),
        out, lse, geometry, *pointers(tables, last=False), *strides,
        heads, heads // k.shape[1], queries, k.shape[2], tables.first.shape[1], tables.origin, scale * LOG2E,
        alike=alike,
    )  # fmt: skip


@functools.cache
def _launcher(law: Law, masks: int, sinks: int, dim: int, dtype: torch.dtype, tile: int) -> Launcher:
    return Launcher(causal_kernel, **causal_constants(law, masks, sinks, dim, dtype, tile))
