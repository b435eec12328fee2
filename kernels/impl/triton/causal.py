"""Kernel `triton`, forward, for causal calls on Hopper: one loop over tiles of keys, which the copy
engine (TMA) fetches.

The general kernel (`kernels.impl.triton.forward`) takes the diagonal tile and the tiles before it
in two loops, by pointers. Pointers to a tile take some 60 registers per thread, and a second loop
starts with an empty pipeline. Here a tile is one instruction of one thread, one loop takes the
tiles from the diagonal leftwards, and three or four blocks share a multiprocessor instead of two.

The weights take fewer instructions, too:

* A row's softmax does not change with a constant of the row. So the bias -slope * (i - j) is
  replaced by slope * (j - i0), which depends on the column alone, and the log-sum-exp gets the rest
  at the end.
* Under "rb", with L = exp(-slope * d) and q = 1 - L, the weight is L / (1 - (1 - L)^S) = 1 / (1 + q
  + ... + q^(S-1)), and L is the product of a factor of the row and a factor of the column.
* The number of masks that cover a pair before the tile is a product of two 0/1 matrices with S
  columns, computed by the tensor cores.
"""

import functools

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from kernels.impl.tables import LOG2E, WORD, Tables
from kernels.impl.triton.launch import Launcher, capability, near_constant, pointers, precision_of, strides_of, width_of
from kernels.impl.triton.tiles import absorb, clear_padding, sequence_geometry
from kernels.impl.triton.weights import (
    INTERPRETED,
    LN2,
    MASKED_SCORE,
    UNSPECIALIZED,
    counts,
    diagonal_word_weights,
    full_factor,
    head_tables,
    lanes,
    signed_distance,
    weigh_exact,
)
from kernels.methods.laws import Law

STEP = 32  # keys per step
LAWS = (Law.LINEAR, Law.RAO_BLACKWELL, Law.COUNT)
# largest exponent of a factor of a row or column: L is then off by at most 2^(100 - 126) where the
# other factor is below the range of float32
MAX_EXPONENT = tl.constexpr(100.0)
ALIGNMENT = 16  # bytes: every address and stride must be a multiple


@triton.jit
def reciprocal(x, ASM: tl.constexpr):
    """1 / x in one instruction, accurate to all but the last bit."""
    if ASM:
        return tl.inline_asm_elementwise(
            "rcp.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )
    else:
        return 1.0 / x


@triton.constexpr_function
def doublings(number):
    """Number of doublings that lead from 1 to at most `number`."""
    return number.bit_length() - 1


@triton.jit
def geometric(q, number: tl.constexpr):
    """1 + q + ... + q^(number - 1) for q from 0 to 1. All terms are positive, so that nothing
    cancels."""
    # from k terms to 2 k: multiply by 1 + q^k; to one more: multiply by q and add 1
    total = tl.full(q.shape, 1.0, tl.float32)
    power = q  # q^k
    for i in tl.static_range(doublings(number)):
        total = total + total * power
        power = power * power
        if (number >> (doublings(number) - 1 - i)) % 2 == 1:
            total = 1.0 + q * total
            power = power * q
    return total


@triton.jit
def position_factors(
    positions, base, slope, pivot_block,
    LAW: tl.constexpr, MASKS: tl.constexpr, TILE: tl.constexpr, ROWS: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """Returns the factors that the positions of a tile, of rows (ROWS) or of keys, contribute to
    the weights of their pairs, and the limits to compare the other side of a pair with.

    "rb": the factor is the position's part of exp(-slope * d); there are no limits. "count": the
    factors are 0/1, one for each mask: whether the position lies before the end (ROWS) or after the
    start of the mask's pivot block. The limits are the starts (ROWS) or ends of these blocks.

    `base`: first position of the tile. `pivot_block`: pointer to the starts, followed by the ends.
    """
    factors, limits = positions, positions
    if LAW == "rb":
        after = (positions - base - TILE // 2).to(tl.float32)
        factors = tl.exp2(slope * (-after if ROWS else after))
    elif LAW == "count":
        lane = tl.arange(0, lanes(MASKS))
        begins = tl.load(pivot_block + lane, mask=lane < MASKS, other=2147483647)
        ends = tl.load(pivot_block + MASKS + lane, mask=lane < MASKS, other=0)
        if ROWS:
            factors, limits = (ends[None, :] > positions[:, None]).to(DTYPE), begins
        else:
            factors, limits = (begins[None, :] <= positions[:, None]).to(DTYPE), ends
    return factors, limits


@triton.jit
def tile_counts(tile_factors, limits, positions, ROWS: tl.constexpr, PRECISION: tl.constexpr):
    """Number of masks that cover the pairs (tile, step) of two tiles, from the `position_factors`
    and limits of one and the positions of the other."""
    step_factors = limits[:, None] <= positions[None, :] if ROWS else limits[:, None] > positions[None, :]
    return tl.dot(tile_factors, step_factors.to(tile_factors.dtype), input_precision=PRECISION)


@triton.jit
def override_near(
    score, factor, offsets, positions, base, slope, LAW: tl.constexpr, MASKS: tl.constexpr, NEAR: tl.constexpr
):  # fmt: skip
    """Scores and factors with those of ALiBi where a pair is less than NEAR tokens apart."""
    distance = tl.abs(offsets.to(tl.float32)[:, None] - (positions - base).to(tl.float32)[None, :])
    near = distance < NEAR
    return tl.where(near, score - slope * distance, score), tl.where(near, full_factor(LAW, MASKS), factor)


@triton.jit
def weigh_step(
    score, pair_mask, diagonal, nearby, tile_factors, limits, offsets, positions, base, slope, bitplanes, byte_weights,
    LAW: tl.constexpr, MASKS: tl.constexpr, NEAR: tl.constexpr, TILE: tl.constexpr, ROWS: tl.constexpr,
    PRECISION: tl.constexpr, ASM: tl.constexpr,
):  # fmt: skip
    """Returns scores (tile, step), MASKED_SCORE outside `pair_mask`, and factors of their
    exponentials. `base`: first position of the tile, which holds rows if ROWS. `tile_factors`,
    `limits`: its `position_factors`. `positions`: of the step, within the tile if `diagonal`. Pairs
    less than NEAR tokens apart have ALiBi's weight; without `nearby` there are none."""
    factor = score
    if LAW == "count":
        if nearby if NEAR > 0 else diagonal:
            if NEAR >= TILE:  # the near field replaces all counts within the tile
                factor = tile_counts(tile_factors, limits, positions, ROWS, PRECISION)
            else:
                if diagonal if NEAR > 0 else True:
                    factor = diagonal_word_weights(
                        bitplanes, offsets, positions - base, byte_weights, LAW, MASKS, TILE, ASM
                    )  # fmt: skip
                else:
                    factor = tile_counts(tile_factors, limits, positions, ROWS, PRECISION)
            if NEAR > 0:
                score, factor = override_near(score, factor, offsets, positions, base, slope, LAW, MASKS, NEAR)
            factor = tl.where(pair_mask, factor, 0.0)
        else:
            factor = tile_counts(tile_factors, limits, positions, ROWS, PRECISION)
        score = tl.where(factor > 0, score, MASKED_SCORE)
    else:
        if LAW == "rb":
            ahead = (positions - base).to(tl.float32) * (slope if ROWS else -slope)
            half = slope * (TILE // 2)
            if half <= MAX_EXPONENT:
                alibi = tile_factors[:, None] * tl.exp2(ahead - (half if ROWS else -half))[None, :]
            else:
                alibi = tl.exp2(ahead[None, :] - (offsets.to(tl.float32) * (slope if ROWS else -slope))[:, None])
            factor = reciprocal(geometric(tl.maximum(1.0 - alibi, 0.0), MASKS), ASM)
        score = tl.where(pair_mask, score, MASKED_SCORE)
        if nearby if NEAR > 0 else False:
            score, factor = override_near(score, factor, offsets, positions, base, slope, LAW, MASKS, NEAR)
    return score, factor


@triton.jit
def key_step(
    q, K, V, sequence, head, slot_offset, j0, step, i0, offsets, first, visited, row_factors, block_starts, slope,
    bitplanes, byte_weights, scale2,
    LAW: tl.constexpr, MASKS: tl.constexpr, NEAR: tl.constexpr, WIDE: tl.constexpr, TILE: tl.constexpr,
    STEP: tl.constexpr, PRECISION: tl.constexpr, ASM: tl.constexpr,
):  # fmt: skip
    """Returns the keys and values of STEP columns from `j0` on, and the scores and factors of the
    rows of the tile at `i0`. Under "linear" the scores lack the row's part of the bias. `first`,
    `visited`: first column and number of columns that each row visits. `step`: 0 .. STEP - 1, made
    before the loop."""
    columns = j0 + step
    k = K.load([sequence, head, slot_offset + j0, 0]).reshape([STEP, WIDE])
    v = V.load([sequence, head, slot_offset + j0, 0]).reshape([STEP, WIDE])
    score = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale2
    # one comparison for both ends: a column before the first is a large unsigned number
    pair_mask = (columns[None, :] - first[:, None]).to(tl.uint32) < visited[:, None]
    if LAW == "linear":
        score += (slope * (columns - i0).to(tl.float32))[None, :]
    score, factor = weigh_step(
        score, pair_mask, j0 >= i0, j0 > i0 - NEAR - STEP + 1, row_factors, block_starts, offsets, columns, i0, slope,
        bitplanes, byte_weights, LAW, MASKS, NEAR, TILE, True, PRECISION, ASM,
    )  # fmt: skip
    return k, v, score, factor


@triton.jit
def sink_step(
    q, K, V, sequence, head, slot_offset, j0, step, i0, rows, slope, scale2,
    LAW: tl.constexpr, MASKS: tl.constexpr, SINKS: tl.constexpr, WIDE: tl.constexpr, STEP: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """As `key_step`, for columns that are sinks (`weigh_exact`)."""
    columns = j0 + step
    k = K.load([sequence, head, slot_offset + j0, 0]).reshape([STEP, WIDE])
    v = V.load([sequence, head, slot_offset + j0, 0]).reshape([STEP, WIDE])
    score = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale2
    pair_mask = (columns < SINKS)[None, :] & (columns[None, :] <= rows[:, None])
    score, factor = weigh_exact(score, signed_distance(rows, columns, i0, j0), pair_mask, slope, LAW, MASKS)
    return k, v, score, factor


@triton.jit(do_not_specialize=UNSPECIALIZED)
def causal_kernel(
    Q, K, V, Out, OutRows, Lse, Geometry, Order, First, Slope, Bias, Bitplanes, PivotBlocks, ByteWeights,
    o_b, o_h, o_t, heads, group, queries, keys, padded, origin, scale2,
    LAW: tl.constexpr, MASKS: tl.constexpr, SINKS: tl.constexpr, NEAR: tl.constexpr, DIM: tl.constexpr,
    WIDE: tl.constexpr, TILE: tl.constexpr, STEP: tl.constexpr, STAGES: tl.constexpr, PRECISION: tl.constexpr,
    ASM: tl.constexpr,
):  # fmt: skip
    """Grid (tiles of rows, batch, heads). Q, K, V, Out: tensor descriptors of (batch, heads, slots,
    DIM); positions outside are read as 0 and not written. OutRows: the pointer of Out, with strides
    o_, for rows of padding. Lse: (batch, heads, queries) dense. Geometry: as in
    `sequence_geometry`, without gaps. The other pointers are those of `Tables` with `padded` rows
    from `origin` on."""
    sequence = tl.program_id(1)
    head = tl.load(Order + tl.program_id(2))
    start, tokens, slot_offset, _ = sequence_geometry(Geometry, sequence, tl.num_programs(1), keys, False)
    tile = tl.maximum(start, 0) // TILE + tl.num_programs(0) - 1 - tl.program_id(0)
    i0 = tile * TILE
    if i0 >= start + queries:
        begin = i0 - tl.cdiv(tl.maximum(start + queries, 0), TILE) * TILE
        clear_padding(
            OutRows, Lse, sequence.to(tl.int64), head.to(tl.int64), heads, start, queries, begin, o_b, o_h, o_t,
            DIM, WIDE, TILE,
        )  # fmt: skip
        return

    # the rows, and the columns that each of them visits
    offsets, step = tl.arange(0, TILE), tl.arange(0, STEP)
    rows = i0 + offsets
    kv_head = head // group
    q = Q.load([sequence, head, i0 - start, 0]).reshape([TILE, WIDE])
    head_first = First + head.to(tl.int64) * padded - origin
    lowest = tl.load(head_first + i0) // STEP * STEP
    first = tl.load(head_first + rows)
    visited = tl.maximum(rows - first + 1, 0).to(tl.uint32)  # 0 for a row among the sinks
    slope, _, byte_weights, bitplanes, pivot_block = head_tables(
        head.to(tl.int64), tile - origin // TILE, Slope, Bias, ByteWeights, Bitplanes, PivotBlocks, padded // TILE, 0,
        LAW, MASKS, NEAR, TILE,
    )  # fmt: skip
    # a mask covers row i and key j before the tile iff its block of row i0, the pivot, ends after i
    # and starts at or before j
    row_factors, block_starts = position_factors(rows, i0, slope, pivot_block, LAW, MASKS, TILE, True, q.dtype)
    row_max = tl.full([TILE], MASKED_SCORE, tl.float32)
    row_sum = tl.zeros([TILE], tl.float32)
    acc = tl.zeros([TILE, WIDE], tl.float32)

    # the keys, from the diagonal leftwards
    last = i0 + TILE - STEP
    for t in tl.range(0, (last - lowest) // STEP + 1, num_stages=STAGES, disable_licm=True):
        k, v, score, factor = key_step(
            q, K, V, sequence, kv_head, slot_offset, last - t * STEP, step, i0, offsets, first, visited, row_factors,
            block_starts, slope, bitplanes, byte_weights, scale2, LAW, MASKS, NEAR, WIDE, TILE, STEP, PRECISION, ASM,
        )  # fmt: skip
        acc, row_sum, row_max = absorb(acc, row_sum, row_max, score, factor, v, LAW, PRECISION)
    if LAW == "linear":  # the row's part of the bias, which the softmax did not need
        row_max -= slope * offsets.to(tl.float32)

    # the sinks: a row that has seen no key so far has a maximum of MASKED_SCORE, and the first sink
    # wipes out its sums
    if SINKS > 0:
        head_slope = tl.load(Slope + head)
        for j0 in tl.range(0, SINKS, STEP, num_stages=1):
            k, v, score, factor = sink_step(
                q, K, V, sequence, kv_head, slot_offset, j0, step, i0, rows, head_slope, scale2,
                LAW, MASKS, SINKS, WIDE, STEP, PRECISION,
            )  # fmt: skip
            acc, row_sum, row_max = absorb(acc, row_sum, row_max, score, factor, v, LAW, PRECISION)

    # normalise and store
    out = (acc * reciprocal(row_sum, ASM)[:, None]).to(q.dtype)
    Out.store([sequence, head, i0 - start, 0], out.reshape([1, 1, TILE, WIDE]))
    lse = row_max + tl.log2(row_sum)
    if counts(LAW):
        lse -= tl.log2(MASKS * 1.0)
    row_mask = (rows >= start) & (rows < start + queries)
    target = Lse + (sequence * heads + head).to(tl.int64) * queries + (rows - start)
    tl.store(target, lse * LN2, mask=row_mask)


def streamed_constants(law: Law, masks: int, near: int, dim: int, dtype: torch.dtype, tile: int, **options) -> dict:
    """Constants and launch options of the kernels whose tiles the copy engine fetches.

    Args:
        law, masks, near: of the weights, as in `Tables`.
        dim, dtype: of the call.
        tile: rows of a tile (`tile_of`).
        options: of one kernel; they take precedence.
    """
    return {
        "LAW": law.value,
        "MASKS": masks if law.uses_mask_count else 0,
        "NEAR": near_constant(law, near),
        "WIDE": width_of(dim),
        "TILE": tile,
        "STEP": min(STEP, tile),
        "STAGES": 2,
        "PRECISION": precision_of(dtype),
        "ASM": not INTERPRETED,
        "num_warps": 4,
        "maxnreg": 255 if law is Law.COUNT and masks > 16 else 168,
        "enable_fp_fusion": True,
    } | options


def causal_constants(law: Law, masks: int, sinks: int, near: int, dim: int, dtype: torch.dtype, tile: int) -> dict:
    """Constants and launch options of `causal_kernel`, with the register cap and the stages that
    took the least time on an H200. On sm_90, 128 registers leave room for four blocks, 168 for
    three.

    Args:
        law, masks, sinks, near: of the weights, as in `Tables`.
        dim, dtype: of the call.
        tile: rows of a tile (`tile_of`).
    """
    options = {"SINKS": sinks, "DIM": dim}
    if law is Law.RAO_BLACKWELL:
        options["STAGES"] = 3
    if law is Law.LINEAR and not sinks:
        options["maxnreg"] = 128
    return streamed_constants(law, masks, near, dim, dtype, tile, **options)


def can_stream(*inputs: torch.Tensor, tables: Tables, gaps: bool) -> bool:
    """Whether the kernels for causal calls on Hopper support these inputs, (B, H, T, D) with dense
    last dimensions."""
    q = inputs[0]
    has_copy_engine = INTERPRETED or capability(q) == 9
    supported_law = tables.law in LAWS and (tables.law is not Law.COUNT or tables.masks <= WORD)
    supported_call = tables.causal and not gaps and q.dtype != torch.float32
    return has_copy_engine and supported_law and supported_call and all(map(is_streamable, inputs))


def is_streamable(x: torch.Tensor) -> bool:
    """Whether the copy engine can fetch tiles of x, whose last dimension is dense, and tiles of a
    dense tensor of the same shape."""
    sizes = zip(x.shape[:3], x.stride()[:3], strict=True)
    strides = [stride for size, stride in sizes if size > 1] + [x.shape[3]]
    return x.data_ptr() % ALIGNMENT == 0 and all(
        stride > 0 and stride * x.element_size() % ALIGNMENT == 0 for stride in strides
    )


def descriptor(x: torch.Tensor, rows: int) -> TensorDescriptor:
    """Descriptor of x (B, H, T, D) for tiles of `rows` tokens of one head of one sequence."""
    wide = width_of(x.shape[3])  # also the stride of a dimension of size 1, whose own stride may be any number
    strides = [stride if size > 1 else wide for size, stride in zip(x.shape[:3], x.stride()[:3], strict=True)]
    return TensorDescriptor(x, list(x.shape), [*strides, 1], [1, 1, rows, wide])


def causal_forward(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, out: torch.Tensor, lse: torch.Tensor, tables: Tables,
    geometry: torch.Tensor, *, scale: float,
) -> None:  # fmt: skip
    """As `kernels.impl.triton.forward.forward`, for calls that `can_stream` supports.

    Args:
        q, k, v, tables, geometry, scale: as there.
        out: like q and dense; written.
        lse: (B, H, Tq) float32 and dense; written.
    """
    batch, heads, queries, dim = q.shape
    step, tile = min(STEP, tables.tile), tables.tile
    strides, alike = strides_of(out, geometry=geometry)
    _launcher(tables.law, tables.masks, tables.sinks, tables.near, dim, q.dtype, tile)(
        ((queries + 2 * tile - 2) // tile, batch, heads), q.device,
        descriptor(q, tile), descriptor(k, step), descriptor(v, step), descriptor(out, tile),
        out, lse, geometry, *pointers(tables, last=False), *strides,
        heads, heads // k.shape[1], queries, k.shape[2], tables.first.shape[1], tables.origin, scale * LOG2E,
        alike=alike,
    )  # fmt: skip


@functools.cache
def _launcher(law: Law, masks: int, sinks: int, near: int, dim: int, dtype: torch.dtype, tile: int) -> Launcher:
    return Launcher(causal_kernel, **causal_constants(law, masks, sinks, near, dim, dtype, tile))
