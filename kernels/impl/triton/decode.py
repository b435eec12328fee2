"""Kernel `triton`, decoding: a few query rows at the end of a long cache, the keys split over
programs.

One sequence and head would otherwise be one program on one multiprocessor. Every head splits what
it reaches, not the whole cache, and a key that no row of the call reaches is never read. The parts
are merged by their log-sum-exp.
"""

import functools

import torch
import triton
import triton.language as tl

from kernels.impl.tables import LOG2E
from kernels.impl.triton.launch import Launcher, precision_of, strides_of, width_of
from kernels.impl.triton.numbers import Numbers
from kernels.impl.triton.tables import FARTHEST, bucket_of, edge_of, grid_of, gridded, standing_for
from kernels.impl.triton.tiles import load_pair, load_tile, row_of, sequence_geometry
from kernels.impl.triton.weights import (
    ANY,
    HIDDEN,
    INTERPRETED,
    LN2,
    SINK_STEP,
    between,
    by_distance,
    counts,
    lanes,
    scales,
    to_sinks,
    weigh,
)
from kernels.methods.laws import Law

ROWS = 16  # query rows of a program, the least that a matrix product takes
COLUMNS = 64  # keys of a tile, half of them in float32 and in the interpreter
PROGRAMS = 528  # wanted at least: four for each multiprocessor of an H100
MERGED = 32  # parts that are merged at a time


@triton.jit
def _absorb(acc, total, top, score, factor, seen, value, LAW: tl.constexpr, PRECISION: tl.constexpr):
    """The running softmax (acc, total, top) with one more tile."""
    higher = tl.maximum(top, tl.max(score, 1))
    # a split may hold no key that a row sees: its scores are all HIDDEN then, and no more than
    # their maximum
    p = tl.where(seen, tl.exp2(score - higher[:, None]), 0.0)
    if scales(LAW):
        p = p * factor
    shrink = tl.exp2(top - higher)
    total = total * shrink + tl.sum(p, 1)
    acc = tl.dot(p.to(value.dtype), value, acc * shrink[:, None], input_precision=PRECISION)
    return acc, total, higher


@triton.jit
def _starts(Numbers, head, rows, begin, MASKS: tl.constexpr, LANES: tl.constexpr, GRID: tl.constexpr):
    """First token of the block that holds each row, as `Masks.starts`, in the masks from `begin`
    on: (rows, LANES) int32, the largest where there is no mask. All are corrected, so that it does
    not matter how the edge is rounded."""
    lane = begin + tl.arange(0, LANES)
    live = (lane < MASKS)[None, :]
    at = Numbers + head * (1 + 4 * MASKS + 3 * GRID) + 1 + lane[None, :]
    width, shift = tl.load(at, mask=live, other=1.0), tl.load(at + MASKS, mask=live, other=0.0)
    size, origin, middle = grid_of(Numbers, head, MASKS, GRID)
    standing = standing_for(tl.maximum(rows, 0).to(tl.float64), size, origin, middle, GRID)
    bucket = bucket_of(standing[:, None], width, shift)
    start, _ = edge_of(bucket, width, shift, size, origin, middle, False, GRID, True)
    return tl.where(live, tl.maximum(start, 0.0), FARTHEST).to(tl.int32)


@triton.jit
def _word(held, LANES: tl.constexpr):
    """Words of the masks that are held, (N, LANES)."""
    bit = tl.full([LANES], 1, tl.int32) << tl.arange(0, LANES)
    return tl.sum(tl.where(held, bit[None, :], 0), 1)


@triton.jit
def _own(starts, place, LANES: tl.constexpr):
    """The starts (LANES,) of the first of these rows."""
    return tl.min(tl.where((place == 0)[:, None], starts, FARTHEST), 0)


@triton.jit(do_not_specialize=ANY)
def decode_kernel(
    Q, K, V, Part, Geometry, Numbers, Slope, Bias, Share,
    q_b, q_h, q_t, k_b, k_h, k_t, v_b, v_h, v_t,
    heads, group, queries, reach, scale2,
    LAW: tl.constexpr, MASKS: tl.constexpr, SINKS: tl.constexpr, GAPS: tl.constexpr, GRID: tl.constexpr,
    DIM: tl.constexpr, WIDE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, PRECISION: tl.constexpr,
    ASM: tl.constexpr,
):  # fmt: skip
    """Grid (splits, batch, heads). Part (batch, heads, queries, splits, DIM) float32 and, after it,
    the same without DIM: the attention over the keys of one split (the first takes the sinks too)
    and its log-sum-exp in base 2. Geometry as in `sequence_geometry`, Numbers as in
    `kernels.impl.triton.tables.tables_kernel`, the rest as in `Tables`."""
    LANES: tl.constexpr = lanes(MASKS)
    split, splits = tl.program_id(0), tl.num_programs(0)
    sequence, head = tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    start, _, lead, gap = sequence_geometry(Geometry, sequence, tl.num_programs(1), 0, GAPS)
    place = tl.arange(0, ROWS)
    rows = start + place
    mine = place < queries

    # what each row reaches: the starts of its blocks, of which a law that counts keeps up to two
    # words
    starts, starts_2 = place[:, None], place[:, None]
    if counts(LAW):
        starts = _starts(Numbers, head, rows, 0, MASKS, LANES, GRID)
        first = tl.min(starts, 1)
        if MASKS > 32:
            starts_2 = _starts(Numbers, head, rows, 32, MASKS, LANES, GRID)
            first = tl.minimum(first, tl.min(starts_2, 1))
    elif MASKS > 0:
        first = tl.full([ROWS], FARTHEST, tl.int32)
        for lane in range(0, MASKS, LANES):
            first = tl.minimum(first, tl.min(_starts(Numbers, head, rows, lane, MASKS, LANES, GRID), 1))
    else:
        first = tl.maximum(tl.maximum(rows, 0).to(tl.float64) - tl.load(Numbers + head * 2 + 1), 0.0).to(tl.int32)
    first = tl.where(mine, tl.maximum(first, SINKS), FARTHEST)

    lowest, stop = tl.min(first, 0), start + queries
    if GAPS:  # what lies before are slots of other keys, or of none
        lowest = tl.maximum(lowest, SINKS + gap)
    each = tl.cdiv(tl.cdiv(tl.maximum(stop - lowest, 0), COLUMNS), splits) * COLUMNS
    begin = lowest + split * each
    stop = tl.minimum(begin + each, stop)

    q = load_tile(row_of(Q, sequence, head, 0, q_b, q_h, q_t), q_t, mine, DIM, WIDE, ROWS)
    key_base = row_of(K, sequence, head // group, lead, k_b, k_h, k_t)
    value_base = row_of(V, sequence, head // group, lead, v_b, v_h, v_t)
    slope = 0.0
    if (LAW == "linear") or (LAW == "rb"):
        slope = tl.load(Slope + head)
    top = tl.full([ROWS], HIDDEN, tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    acc = tl.zeros([ROWS, WIDE], tl.float32)
    if SINKS > 0:
        slope = tl.load(Slope + head)
        sink_keys, sink_values = key_base, value_base
        if GAPS:  # they lie before what is left out
            sink_keys += gap.to(tl.int64) * k_t
            sink_values += gap.to(tl.int64) * v_t
        for j0 in range(0, tl.where(split == 0, SINKS, 0), SINK_STEP):
            columns = j0 + tl.arange(0, SINK_STEP)
            here = (columns < SINKS) & (columns < start + queries)
            k, v = load_pair(sink_keys, sink_values, k_t, v_t, j0, here, DIM, WIDE, SINK_STEP)
            score = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale2
            seen = here[None, :] & (columns[None, :] <= rows[:, None])
            score, factor = to_sinks(score, between(rows, columns, start, j0), seen, slope, LAW, MASKS)
            acc, total, top = _absorb(acc, total, top, score, factor, seen, v, LAW, PRECISION)
    # a block that reaches from a key before the first row to another row holds the first row: it is
    # the pivot
    row_word, row_word_2, own, own_2 = place, place, place, place
    share = Share + head * ((MASKS + 31) // 32 * 4 * 256)
    if counts(LAW):
        own, row_word = _own(starts, place, LANES), _word(starts <= start, LANES)
        if MASKS > 32:
            own_2, row_word_2 = _own(starts_2, place, LANES), _word(starts_2 <= start, LANES)
    for j0 in range(begin, stop, COLUMNS):
        columns = j0 + tl.arange(0, COLUMNS)
        here = columns < stop
        k, v = load_pair(key_base, value_base, k_t, v_t, j0, here, DIM, WIDE, COLUMNS)
        score = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale2
        seen = here[None, :] & (columns[None, :] <= rows[:, None]) & (columns[None, :] >= first[:, None])
        if counts(LAW):
            if (queries == 1) | (j0 + COLUMNS <= start):
                held = row_word[:, None] & _word(own[None, :] <= columns[:, None], LANES)[None, :]
                factor = weigh(held, share, LAW, MASKS, 0, ASM)
                if MASKS > 32:
                    held = row_word_2[:, None] & _word(own_2[None, :] <= columns[:, None], LANES)[None, :]
                    factor += weigh(held, share, LAW, MASKS, 1, ASM)
            else:
                factor = tl.zeros([ROWS, COLUMNS], tl.float32)
                for s in range(MASKS):
                    bit = tl.arange(0, LANES)[None, :]
                    begun = tl.sum(tl.where(bit == s, starts, 0), 1)
                    if MASKS > 32:
                        begun += tl.sum(tl.where(bit == s - 32, starts_2, 0), 1)
                    of_mask = 1.0
                    if LAW == "sum":  # what a byte with this bit alone adds
                        of_mask = tl.load(share + s // 8 * 256 + (1 << s % 8))
                    factor += tl.where(columns[None, :] >= begun[:, None], of_mask, 0.0)
            score = tl.where(seen, score, HIDDEN)
        else:
            score, factor = by_distance(score, rows, columns, seen, slope, Bias + head * reach, start, j0, LAW, MASKS)
        acc, total, top = _absorb(acc, total, top, score, factor, seen, v, LAW, PRECISION)
    some = total > 0
    total = tl.where(some, total, 1.0)
    lse = tl.where(some, top + tl.log2(total), HIDDEN)
    if counts(LAW):
        lse -= tl.log2(MASKS * 1.0)
    to = ((sequence * heads + head) * queries + place) * splits + split
    parts = tl.num_programs(1).to(tl.int64) * heads * queries * splits
    tl.store(Part + parts * DIM + to, lse, mask=mine)
    dims = tl.arange(0, WIDE)
    # most splits of a steep head see nothing: those are neither written nor read
    kept = (mine & some)[:, None] & (dims < DIM)[None, :]
    tl.store(Part + to[:, None] * DIM + dims[None, :], acc / total[:, None], mask=kept)


@triton.jit(do_not_specialize=ANY)
def merge_kernel(
    Part, Out, Lse, Geometry, o_b, o_h, o_t, heads, queries, splits,
    DIM: tl.constexpr, WIDE: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """Grid (batch, heads, queries): the parts of one row, STEP at a time, Lse (batch, heads,
    queries) its log-sum-exp in base e; 0 and -inf of a row of padding. Geometry as in `sequence_geometry`."""
    sequence, head, query = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    row = (sequence * heads + head) * queries + query
    parts = tl.num_programs(0).to(tl.int64) * heads * queries * splits
    dims = tl.arange(0, WIDE)
    top = tl.max(tl.full([STEP], HIDDEN, tl.float32), 0)
    total = 0.0
    acc = tl.zeros([WIDE], tl.float32)
    for s0 in range(0, splits, STEP):
        split = s0 + tl.arange(0, STEP)
        lse = tl.load(Part + parts * DIM + row * splits + split, mask=split < splits, other=HIDDEN)
        higher = tl.maximum(top, tl.max(lse, 0))
        # of parts that saw nothing `higher` is HIDDEN too, and what they add is wiped out by the
        # first that saw a key
        weight, shrink = tl.exp2(lse - higher), tl.exp2(top - higher)
        kept = (lse > HIDDEN)[:, None] & (dims < DIM)[None, :]
        part = tl.load(Part + (row * splits + split)[:, None] * DIM + dims[None, :], mask=kept, other=0.0)
        total = total * shrink + tl.sum(weight, 0)
        acc = acc * shrink + tl.sum(part * weight[:, None], 0)
        top = higher
    real = tl.load(Geometry + tl.num_programs(0) + sequence) + query >= 0
    to = Out + sequence * o_b + head * o_h + query * o_t + dims
    tl.store(to, tl.where(real, acc / total, 0.0).to(Out.dtype.element_ty), mask=dims < DIM)
    tl.store(Lse + row, tl.where(real, (top + tl.log2(total)) * LN2, float("-inf")))


def tile_constants(dtype: torch.dtype) -> dict:
    """The tiles of the decoding kernel, and how it is launched. Float32 is not multiplied by the
    tensor cores, which takes its operands into registers, and twice the shared memory."""
    single = dtype == torch.float32
    columns = COLUMNS // 2 if single or INTERPRETED else COLUMNS
    return {
        "ROWS": ROWS,
        "COLUMNS": columns,
        "num_warps": 8 if single else 4,
        "num_stages": 3,
        "enable_fp_fusion": True,
    }


def decode(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    numbers: Numbers,
    bias: torch.Tensor,
    geometry: torch.Tensor,
    *,
    scale: float,
    splits: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `kernels.impl.triton.forward.forward` for at most ROWS causal queries, without tables:
    from the numbers and the bias of the weights where q is. `splits`: by default as many as fill
    the GPU. What is launched depends on no number on the device: a CUDA graph may hold it and be
    replayed at other geometry."""
    batch, heads, queries, dim = q.shape
    assert queries <= ROWS
    gaps, device = len(geometry) == 3, q.device
    parts, merging = _launchers(
        numbers.law, numbers.masks, numbers.sinks, gaps, gridded(numbers.numbers, numbers.masks), dim, q.dtype
    )
    if splits is None:
        splits = min(-(-k.shape[2] // parts.fixed["COLUMNS"]), -(-PROGRAMS // (batch * heads)))
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    lse = torch.empty(q.shape[:3], dtype=torch.float32, device=device)
    part = torch.empty(batch * heads * queries * splits * (dim + 1), dtype=torch.float32, device=device)
    strides, alike = strides_of(q, k, v, geometry=geometry)
    parts(
        (splits, batch, heads), device,
        q, k, v, part, geometry, numbers.numbers, numbers.slope, bias, numbers.share, *strides,
        heads, heads // k.shape[1], queries, bias.shape[-1], scale * LOG2E,
        alike=alike,
    )  # fmt: skip
    merging(
        (batch, heads, queries), device,
        part, out, lse, geometry, heads * queries * dim, queries * dim, dim, heads, queries, splits,
        alike=alike and dim % 16 == 0,
    )  # fmt: skip
    return out, lse


@functools.cache
def _launchers(
    law: Law, masks: int, sinks: int, gaps: bool, grid: bool, dim: int, dtype: torch.dtype
) -> tuple[Launcher, Launcher]:
    """Of the parts and of their merging."""
    parts = Launcher(
        decode_kernel, LAW=law.value, MASKS=masks, SINKS=sinks, GAPS=gaps, GRID=grid, DIM=dim, WIDE=width_of(dim),
        PRECISION=precision_of(dtype), ASM=not INTERPRETED, **tile_constants(dtype),
    )  # fmt: skip
    return parts, Launcher(merge_kernel, DIM=dim, WIDE=width_of(dim), STEP=MERGED, enable_fp_fusion=True)
