"""Kernel `triton`, decoding: a few query rows at the end of a long cache, the keys split over
programs.

Without the split, one head of one sequence would be one program on one multiprocessor. Every head
splits the keys that it reaches rather than the whole cache, and a key that no row of the call
reaches is never read. The parts are merged by their log-sum-exp.
"""

import functools

import torch
import triton
import triton.language as tl

from kernels.impl.tables import LOG2E
from kernels.impl.triton.launch import Launcher, precision_of, strides_of, width_of
from kernels.impl.triton.packed import PackedWeights
from kernels.impl.triton.tables import FARTHEST, bucket_of, edge_of, grid_of, has_grid, representative_of
from kernels.impl.triton.tiles import absorb, load_pair, load_tile, row_pointer, sequence_geometry
from kernels.impl.triton.weights import (
    INTERPRETED,
    LN2,
    MASKED_SCORE,
    SINK_STEP,
    UNSPECIALIZED,
    counts,
    lanes,
    needs_slope,
    scales,
    signed_distance,
    weigh_by_distance,
    weigh_exact,
    weigh_near,
    word_weights,
)
from kernels.methods.laws import Law

MAX_QUERIES = 16  # rows of a program: the least that a matrix product takes
COLUMNS = 64  # keys of a tile; half as many in float32 and in the interpreter
MIN_PROGRAMS = 528  # four for each multiprocessor of an H100
MERGE_STEP = 32  # parts merged at a time


@triton.jit
def _starts(Packed, head, rows, begin, MASKS: tl.constexpr, LANES: tl.constexpr, GRID: tl.constexpr):
    """First token of the block that contains each row (`Masks.starts`), in the masks from `begin`
    on: (rows, LANES) int32, FARTHEST beyond the last mask. Every start is corrected, so that the
    rounding of an edge does not matter."""
    lane = begin + tl.arange(0, LANES)
    lane_mask = (lane < MASKS)[None, :]
    at = Packed + head * (1 + 4 * MASKS + 3 * GRID) + 1 + lane[None, :]
    width, shift = tl.load(at, mask=lane_mask, other=1.0), tl.load(at + MASKS, mask=lane_mask, other=0.0)
    size, origin, middle = grid_of(Packed, head, MASKS, GRID)
    representative = representative_of(tl.maximum(rows, 0).to(tl.float64), size, origin, middle, GRID)
    bucket = bucket_of(representative[:, None], width, shift)
    start, _ = edge_of(bucket, width, shift, size, origin, middle, False, GRID, True)
    return tl.where(lane_mask, tl.maximum(start, 0.0), FARTHEST).to(tl.int32)


@triton.jit
def _pack_word(covered, LANES: tl.constexpr):
    """Bitmasks (N,) of booleans (N, LANES)."""
    bit = tl.full([LANES], 1, tl.int32) << tl.arange(0, LANES)
    return tl.sum(tl.where(covered, bit[None, :], 0), 1)


@triton.jit
def _first_row_starts(starts, offsets, LANES: tl.constexpr):
    """Block starts (LANES,) of the first row."""
    return tl.min(tl.where((offsets == 0)[:, None], starts, FARTHEST), 0)


@triton.jit(do_not_specialize=UNSPECIALIZED)
def decode_kernel(
    Q, K, V, Part, Geometry, Packed, Slope, Bias, ByteWeights,
    q_b, q_h, q_t, k_b, k_h, k_t, v_b, v_h, v_t,
    heads, group, queries, reach, scale2,
    LAW: tl.constexpr, MASKS: tl.constexpr, SINKS: tl.constexpr, NEAR: tl.constexpr, GAPS: tl.constexpr,
    GRID: tl.constexpr, DIM: tl.constexpr, WIDE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    PRECISION: tl.constexpr, ASM: tl.constexpr,
):  # fmt: skip
    """Attention over the keys of one split; the first split also takes the sinks.

    Grid (splits, batch, heads). Part: (batch, heads, queries, splits, DIM) float32, followed by the
    base-2 log-sum-exp, (batch, heads, queries, splits). Geometry: as in `sequence_geometry`.
    Packed: `Weights.pack`. The other pointers are those of `Tables`.
    """
    LANES: tl.constexpr = lanes(MASKS)
    split, splits = tl.program_id(0), tl.num_programs(0)
    sequence, head = tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    start, _, slot_offset, gap = sequence_geometry(Geometry, sequence, tl.num_programs(1), 0, GAPS)
    offsets = tl.arange(0, ROWS)
    rows = start + offsets
    row_mask = offsets < queries

    # the first key that each row reaches, from the starts of its blocks; a law that counts masks
    # keeps the starts of up to two words
    starts, starts_2 = offsets[:, None], offsets[:, None]
    if counts(LAW):
        starts = _starts(Packed, head, rows, 0, MASKS, LANES, GRID)
        first = tl.min(starts, 1)
        if MASKS > 32:
            starts_2 = _starts(Packed, head, rows, 32, MASKS, LANES, GRID)
            first = tl.minimum(first, tl.min(starts_2, 1))
    elif MASKS > 0:
        first = tl.full([ROWS], FARTHEST, tl.int32)
        for lane in range(0, MASKS, LANES):
            first = tl.minimum(first, tl.min(_starts(Packed, head, rows, lane, MASKS, LANES, GRID), 1))
    else:
        positions = tl.maximum(rows, 0).to(tl.float64)
        first = tl.maximum(positions - tl.load(Packed + head * 2 + 1), 0.0).to(tl.int32)
    if NEAR > 0:
        first = tl.minimum(first, rows - (NEAR - 1))
    first = tl.where(row_mask, tl.maximum(first, SINKS), FARTHEST)

    # the keys of this split
    lowest, stop = tl.min(first, 0), start + queries
    if GAPS:  # slots before the end of the gap hold other keys, or none
        lowest = tl.maximum(lowest, SINKS + gap)
    keys_per_split = tl.cdiv(tl.cdiv(tl.maximum(stop - lowest, 0), COLUMNS), splits) * COLUMNS
    begin = lowest + split * keys_per_split
    stop = tl.minimum(begin + keys_per_split, stop)

    # queries, and the running softmax
    q = load_tile(row_pointer(Q, sequence, head, 0, q_b, q_h, q_t), q_t, row_mask, DIM, WIDE, ROWS)
    key_base = row_pointer(K, sequence, head // group, slot_offset, k_b, k_h, k_t)
    value_base = row_pointer(V, sequence, head // group, slot_offset, v_b, v_h, v_t)
    slope = 0.0
    if needs_slope(LAW, NEAR):
        slope = tl.load(Slope + head)
    row_max = tl.full([ROWS], MASKED_SCORE, tl.float32)
    row_sum = tl.zeros([ROWS], tl.float32)
    acc = tl.zeros([ROWS, WIDE], tl.float32)

    # the sinks, in the first split
    if SINKS > 0:
        slope = tl.load(Slope + head)
        sink_keys, sink_values = key_base, value_base
        if GAPS:  # sinks lie before the gap
            sink_keys += gap.to(tl.int64) * k_t
            sink_values += gap.to(tl.int64) * v_t
        for j0 in range(0, tl.where(split == 0, SINKS, 0), SINK_STEP):
            columns = j0 + tl.arange(0, SINK_STEP)
            key_mask = (columns < SINKS) & (columns < start + queries)
            k, v = load_pair(sink_keys, sink_values, k_t, v_t, j0, key_mask, DIM, WIDE, SINK_STEP)
            score = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale2
            pair_mask = key_mask[None, :] & (columns[None, :] <= rows[:, None])
            score, factor = weigh_exact(score, signed_distance(rows, columns, start, j0), pair_mask, slope, LAW, MASKS)
            acc, row_sum, row_max = absorb(acc, row_sum, row_max, score, factor, v, LAW, PRECISION, pair_mask)

    # the pivot is the first row: a block that reaches from a key before it to another row contains
    # it
    row_word, row_word_2, first_starts, first_starts_2 = offsets, offsets, offsets, offsets
    byte_weights = ByteWeights + head * ((MASKS + 31) // 32 * 4 * 256)
    if counts(LAW):
        first_starts, row_word = _first_row_starts(starts, offsets, LANES), _pack_word(starts <= start, LANES)
        if MASKS > 32:
            first_starts_2 = _first_row_starts(starts_2, offsets, LANES)
            row_word_2 = _pack_word(starts_2 <= start, LANES)

    # the other keys of this split
    for j0 in range(begin, stop, COLUMNS):
        columns = j0 + tl.arange(0, COLUMNS)
        key_mask = columns < stop
        k, v = load_pair(key_base, value_base, k_t, v_t, j0, key_mask, DIM, WIDE, COLUMNS)
        score = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale2
        pair_mask = key_mask[None, :] & (columns[None, :] <= rows[:, None]) & (columns[None, :] >= first[:, None])

        if counts(LAW):
            if (queries == 1) | (j0 + COLUMNS <= start):
                covered = row_word[:, None] & _pack_word(first_starts[None, :] <= columns[:, None], LANES)[None, :]
                factor = word_weights(covered, byte_weights, LAW, MASKS, 0, ASM)
                if MASKS > 32:
                    starts_before = first_starts_2[None, :] <= columns[:, None]
                    covered = row_word_2[:, None] & _pack_word(starts_before, LANES)[None, :]
                    factor += word_weights(covered, byte_weights, LAW, MASKS, 1, ASM)
            else:  # among the rows, mask by mask
                factor = tl.zeros([ROWS, COLUMNS], tl.float32)
                for s in range(MASKS):
                    bit = tl.arange(0, LANES)[None, :]
                    mask_start = tl.sum(tl.where(bit == s, starts, 0), 1)
                    if MASKS > 32:
                        mask_start += tl.sum(tl.where(bit == s - 32, starts_2, 0), 1)
                    mask_weight = 1.0
                    if LAW == "sum":  # the entry of a byte with this bit alone
                        mask_weight = tl.load(byte_weights + s // 8 * 256 + (1 << s % 8))
                    factor += tl.where(columns[None, :] >= mask_start[:, None], mask_weight, 0.0)
            score = tl.where(pair_mask, score, MASKED_SCORE)
        else:
            score, factor = weigh_by_distance(
                score, rows, columns, pair_mask, slope, Bias + head * reach, start, j0, LAW, MASKS
            )  # fmt: skip
        if (NEAR > 0) and scales(LAW):
            nearby = j0 > start - NEAR - COLUMNS + 1
            if nearby:
                score, factor = weigh_near(
                    score, factor, rows, columns, pair_mask, slope, start, j0, LAW, MASKS, NEAR
                )  # fmt: skip
        acc, row_sum, row_max = absorb(acc, row_sum, row_max, score, factor, v, LAW, PRECISION, pair_mask)

    # a row may have seen no key in this split
    nonempty = row_sum > 0
    row_sum = tl.where(nonempty, row_sum, 1.0)
    lse = tl.where(nonempty, row_max + tl.log2(row_sum), MASKED_SCORE)
    if counts(LAW):
        lse -= tl.log2(MASKS * 1.0)
    target = ((sequence * heads + head) * queries + offsets) * splits + split
    parts = tl.num_programs(1).to(tl.int64) * heads * queries * splits
    tl.store(Part + parts * DIM + target, lse, mask=row_mask)
    dims = tl.arange(0, WIDE)
    # most splits of a steep head see no key: they are neither written nor read
    store_mask = (row_mask & nonempty)[:, None] & (dims < DIM)[None, :]
    tl.store(Part + target[:, None] * DIM + dims[None, :], acc / row_sum[:, None], mask=store_mask)


@triton.jit(do_not_specialize=UNSPECIALIZED)
def merge_kernel(
    Part, Out, Lse, Geometry, o_b, o_h, o_t, heads, queries, splits,
    DIM: tl.constexpr, WIDE: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """Merges the parts of one row, STEP at a time; a row of padding gets 0 and -inf.

    Grid (batch, heads, queries). Part: as in `decode_kernel`. Lse: (batch, heads, queries), in base
    e. Geometry: as in `sequence_geometry`.
    """
    sequence, head, query = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    row = (sequence * heads + head) * queries + query
    parts = tl.num_programs(0).to(tl.int64) * heads * queries * splits
    dims = tl.arange(0, WIDE)
    row_max = tl.max(tl.full([STEP], MASKED_SCORE, tl.float32), 0)
    row_sum = 0.0
    acc = tl.zeros([WIDE], tl.float32)

    for s0 in range(0, splits, STEP):
        split = s0 + tl.arange(0, STEP)
        lse = tl.load(Part + parts * DIM + row * splits + split, mask=split < splits, other=MASKED_SCORE)
        new_max = tl.maximum(row_max, tl.max(lse, 0))
        # of parts that saw no key `new_max` is MASKED_SCORE too; the first part that saw one wipes
        # out their contribution
        weight, rescale = tl.exp2(lse - new_max), tl.exp2(row_max - new_max)
        load_mask = (lse > MASKED_SCORE)[:, None] & (dims < DIM)[None, :]
        part = tl.load(Part + (row * splits + split)[:, None] * DIM + dims[None, :], mask=load_mask, other=0.0)
        row_sum = row_sum * rescale + tl.sum(weight, 0)
        acc = acc * rescale + tl.sum(part * weight[:, None], 0)
        row_max = new_max

    real = tl.load(Geometry + tl.num_programs(0) + sequence) + query >= 0
    target = Out + sequence * o_b + head * o_h + query * o_t + dims
    tl.store(target, tl.where(real, acc / row_sum, 0.0).to(Out.dtype.element_ty), mask=dims < DIM)
    tl.store(Lse + row, tl.where(real, (row_max + tl.log2(row_sum)) * LN2, float("-inf")))


def tile_constants(dtype: torch.dtype) -> dict:
    """Tiles and launch options of the decoding kernel. Float32 products do not use the tensor
    cores: their operands take registers, and twice the shared memory."""
    single = dtype == torch.float32
    columns = COLUMNS // 2 if single or INTERPRETED else COLUMNS
    return {
        "ROWS": MAX_QUERIES,
        "COLUMNS": columns,
        "num_warps": 8 if single else 4,
        "num_stages": 3,
        "enable_fp_fusion": True,
    }


def decode(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    packed: PackedWeights,
    bias: torch.Tensor,
    geometry: torch.Tensor,
    *,
    scale: float,
    splits: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `kernels.impl.triton.forward.forward` for at most MAX_QUERIES causal queries, without
    tables.

    The launches depend on no number on the device: a CUDA graph of the call can be replayed with
    another geometry.

    Args:
        q, k, v, geometry, scale: as in `kernels.impl.triton.forward.forward`.
        packed, bias: of the weights, on q's device.
        splits: number of parts; by default as many as fill the GPU.
    """
    batch, heads, queries, dim = q.shape
    assert queries <= MAX_QUERIES
    gaps, device = len(geometry) == 3, q.device
    launch_parts, launch_merge = _launchers(
        packed.law, packed.masks, packed.sinks, packed.near, gaps, has_grid(packed.numbers, packed.masks), dim, q.dtype
    )
    if splits is None:
        splits = min(-(-k.shape[2] // launch_parts.fixed["COLUMNS"]), -(-MIN_PROGRAMS // (batch * heads)))
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    lse = torch.empty(q.shape[:3], dtype=torch.float32, device=device)
    part = torch.empty(batch * heads * queries * splits * (dim + 1), dtype=torch.float32, device=device)
    strides, alike = strides_of(q, k, v, geometry=geometry)
    launch_parts(
        (splits, batch, heads), device,
        q, k, v, part, geometry, packed.numbers, packed.slope, bias, packed.byte_weights, *strides,
        heads, heads // k.shape[1], queries, bias.shape[-1], scale * LOG2E,
        alike=alike,
    )  # fmt: skip
    launch_merge(
        (batch, heads, queries), device,
        part, out, lse, geometry, heads * queries * dim, queries * dim, dim, heads, queries, splits,
        alike=alike and dim % 16 == 0,
    )  # fmt: skip
    return out, lse


@functools.cache
def _launchers(
    law: Law, masks: int, sinks: int, near: int, gaps: bool, grid: bool, dim: int, dtype: torch.dtype
) -> tuple[Launcher, Launcher]:
    """Launchers of the parts and of their merging."""
    parts = Launcher(
        decode_kernel, LAW=law.value, MASKS=masks, SINKS=sinks, NEAR=near, GAPS=gaps, GRID=grid, DIM=dim,
        WIDE=width_of(dim), PRECISION=precision_of(dtype), ASM=not INTERPRETED, **tile_constants(dtype),
    )  # fmt: skip
    return parts, Launcher(merge_kernel, DIM=dim, WIDE=width_of(dim), STEP=MERGE_STEP, enable_fp_fusion=True)
