"""Kernel `triton`, decoding: a few query rows at the end of a long cache, the keys split over programs.

One sequence and head would otherwise be one program on one multiprocessor. Every head splits what it reaches, not the
whole cache, and a key that no row of the call reaches is never read. The parts are merged by their log-sum-exp.
"""

import torch
import triton
import triton.language as tl

from kernels.tables import LOG2E, RowTables
from kernels.triton_launch import precision_of, width_of
from kernels.triton_tiles import load_pair, load_tile, place_of, row_of
from kernels.triton_weights import (
    ANY,
    HIDDEN,
    INTERPRETED,
    LN2,
    SINK_STEP,
    between,
    by_distance,
    counts,
    popcount,
    scales,
    to_sinks,
)

ROWS = 16  # query rows of a program, the least that a matrix product takes
COLUMNS = 64  # keys of a tile, half of them in float32 and in the interpreter
PROGRAMS = 528  # wanted at least: four for each multiprocessor of an H100
MERGED = 32  # parts that are merged at a time


@triton.jit
def _absorb(acc, total, top, score, factor, seen, value, LAW: tl.constexpr, PRECISION: tl.constexpr):
    """The running softmax (acc, total, top) with one more tile."""
    higher = tl.maximum(top, tl.max(score, 1))
    # a split may hold no key that a row sees: its scores are all HIDDEN then, and no more than their maximum
    p = tl.where(seen, tl.exp2(score - higher[:, None]), 0.0)
    if scales(LAW):
        p = p * factor
    shrink = tl.exp2(top - higher)
    total = total * shrink + tl.sum(p, 1)
    acc = tl.dot(p.to(value.dtype), value, acc * shrink[:, None], input_precision=PRECISION)
    return acc, total, higher


@triton.jit
def _begun(starts, positions, WORD: tl.constexpr, MASKS: tl.constexpr):
    """Word of masks whose block, of the row that `starts` points to, has begun at each position."""
    lane = tl.arange(0, 32)
    of = tl.load(starts + WORD * 32 + lane, mask=WORD * 32 + lane < MASKS, other=2147483647)
    return tl.sum(tl.where(of[None, :] <= positions[:, None], tl.full([32], 1, tl.int32) << lane, 0), 1)


@triton.jit
def _reaching(starts, place, mine, token, WORD: tl.constexpr, MASKS: tl.constexpr):
    """Word of masks in which the block of each row, in place of the row that `starts` points to, holds the token."""
    lane = WORD * 32 + tl.arange(0, 32)
    there = mine[:, None] & (lane < MASKS)[None, :]
    of = tl.load(starts + place[:, None] * MASKS + lane[None, :], mask=there, other=2147483647)
    return tl.sum(tl.where(of <= token, tl.full([32], 1, tl.int32) << tl.arange(0, 32), 0), 1)


@triton.jit(do_not_specialize=ANY)
def decode_kernel(
    Q, K, V, Part, Lse, Places, First, Starts, Slope, Bias, Share,
    q_b, q_h, q_t, k_b, k_h, k_t, v_b, v_h, v_t,
    heads, group, queries, reach, scale2,
    LAW: tl.constexpr, MASKS: tl.constexpr, SINKS: tl.constexpr, GAPS: tl.constexpr, DIM: tl.constexpr,
    WIDE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, PRECISION: tl.constexpr, ASM: tl.constexpr,
):  # fmt: skip
    """Grid (splits, batch, heads). Part (batch, heads, queries, splits, DIM) and Lse (the same without DIM),
    float32, dense: the attention over the keys of one split (the first takes the sinks too) and its log-sum-exp in
    base 2. The other pointers are those of `RowTables`, whose rows are the queries of the first sequence, then of
    the second, and so on."""
    split, splits = tl.program_id(0), tl.num_programs(0)
    sequence, head = tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    start, _, lead, gap = place_of(Places, sequence, tl.num_programs(1), 0, GAPS)
    place = tl.arange(0, ROWS)
    rows = start + place
    mine = place < queries
    table = (head * tl.num_programs(1) + sequence) * queries
    first = tl.load(First + table + place, mask=mine, other=2147483647)

    lowest, stop = tl.load(First + table), start + queries
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
    # a block that reaches from a key before the first row to another row holds the first row: it is the pivot
    row_word, row_word_2 = place, place
    if LAW == "count":
        row_word = _reaching(Starts + table * MASKS, place, mine, start, 0, MASKS)
        if MASKS > 32:
            row_word_2 = _reaching(Starts + table * MASKS, place, mine, start, 1, MASKS)
    for j0 in range(begin, stop, COLUMNS):
        columns = j0 + tl.arange(0, COLUMNS)
        here = columns < stop
        k, v = load_pair(key_base, value_base, k_t, v_t, j0, here, DIM, WIDE, COLUMNS)
        score = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale2
        seen = here[None, :] & (columns[None, :] <= rows[:, None]) & (columns[None, :] >= first[:, None])
        if counts(LAW):
            if (LAW == "count") & (j0 + COLUMNS <= start):
                held = row_word[:, None] & _begun(Starts + table * MASKS, columns, 0, MASKS)[None, :]
                number = popcount(held, ASM)
                if MASKS > 32:
                    held = row_word_2[:, None] & _begun(Starts + table * MASKS, columns, 1, MASKS)[None, :]
                    number += popcount(held, ASM)
                factor = number.to(tl.float32)
            else:
                factor = tl.zeros([ROWS, COLUMNS], tl.float32)
                for s in tl.static_range(MASKS):
                    begun = tl.load(Starts + (table + place) * MASKS + s, mask=mine, other=2147483647)
                    share = 1.0
                    if LAW == "sum":
                        share = tl.load(Share + head * MASKS + s)
                    factor += tl.where(columns[None, :] >= begun[:, None], share, 0.0)
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
    tl.store(Lse + to, lse, mask=mine)
    dims = tl.arange(0, WIDE)
    tl.store(Part + to[:, None] * DIM + dims[None, :], acc / total[:, None], mask=mine[:, None] & (dims < DIM)[None, :])


@triton.jit(do_not_specialize=ANY)
def merge_kernel(
    Part, Lse, Out, Whole, Places, o_b, o_h, o_t, heads, queries, splits,
    DIM: tl.constexpr, WIDE: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """Grid (batch, heads, queries): the parts of one row, STEP at a time, Whole (batch, heads, queries) its log-sum-exp
    in base e; 0 and -inf of a row of padding. Places as in `place_of`."""
    sequence, head, query = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    row = (sequence * heads + head) * queries + query
    dims = tl.arange(0, WIDE)
    top = tl.max(tl.full([STEP], HIDDEN, tl.float32), 0)
    total = 0.0
    acc = tl.zeros([WIDE], tl.float32)
    for s0 in range(0, splits, STEP):
        split = s0 + tl.arange(0, STEP)
        lse = tl.load(Lse + row * splits + split, mask=split < splits, other=HIDDEN)
        higher = tl.maximum(top, tl.max(lse, 0))
        # of parts that saw nothing `higher` is HIDDEN too, and what they add is wiped out by the first that saw a key
        weight, shrink = tl.exp2(lse - higher), tl.exp2(top - higher)
        kept = (split < splits)[:, None] & (dims < DIM)[None, :]
        part = tl.load(Part + (row * splits + split)[:, None] * DIM + dims[None, :], mask=kept, other=0.0)
        total = total * shrink + tl.sum(weight, 0)
        acc = acc * shrink + tl.sum(part * weight[:, None], 0)
        top = higher
    real = tl.load(Places + tl.num_programs(0) + sequence) + query >= 0
    to = Out + sequence * o_b + head * o_h + query * o_t + dims
    tl.store(to, tl.where(real, acc / total, 0.0).to(Out.dtype.element_ty), mask=dims < DIM)
    tl.store(Whole + row, tl.where(real, (top + tl.log2(total)) * LN2, float("-inf")))


def tile_constants(dtype: torch.dtype) -> dict:
    """The tiles of the decoding kernel, and how it is launched. Float32 is not multiplied by the tensor cores, which
    takes its operands into registers, and twice the shared memory."""
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
    tables: RowTables,
    places: torch.Tensor,
    *,
    scale: float,
    splits: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `kernels.triton_forward.forward` for at most ROWS causal queries. `tables` for the tokens of all queries of
    all sequences in turn, (B * Tq), those of padding as token 0. `splits`: by default as many as fill the GPU."""
    batch, heads, queries, dim = q.shape
    assert queries <= ROWS and tables.first.shape == (heads, batch * queries)
    tile = tile_constants(q.dtype)
    if splits is None:
        splits = min(triton.cdiv(k.shape[2], tile["COLUMNS"]), triton.cdiv(PROGRAMS, batch * heads))
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    whole = torch.empty(q.shape[:3], dtype=torch.float32, device=q.device)
    lse = torch.empty(*q.shape[:3], splits, dtype=torch.float32, device=q.device)
    part = torch.empty(*q.shape[:3], splits, dim, dtype=torch.float32, device=q.device)
    named = (getattr(tables, name) for name in ("first", "starts", "slope", "bias", "share"))
    decode_kernel[(splits, batch, heads)](
        q, k, v, part, lse, places,
        *(x if x.numel() else tables.first for x in named),
        *q.stride()[:3], *k.stride()[:3], *v.stride()[:3],
        heads, heads // k.shape[1], queries, tables.bias.shape[-1], scale * LOG2E,
        LAW=tables.law, MASKS=tables.masks, SINKS=tables.sinks, GAPS=len(places) == 3, DIM=dim, WIDE=width_of(dim),
        PRECISION=precision_of(q.dtype), ASM=not INTERPRETED, **tile,
    )  # fmt: skip
    merge_kernel[(batch, heads, queries)](
        part, lse, out, whole, places, *out.stride()[:3], heads, queries, splits,
        DIM=dim, WIDE=width_of(dim), STEP=MERGED, enable_fp_fusion=True,
    )  # fmt: skip
    return out, whole
