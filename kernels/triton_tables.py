"""The tables of `kernels.tables` built by one Triton kernel: a program for each head and block of rows, a thread for
each row, which takes the masks one after the other.

Positions are float64, and the blocks' edges those of `kernels.masks`, bit by bit: two kernels that disagree on an edge
attend to different pairs. Dividing by the width at every row and mask would take most of the time, so the kernel first
multiplies by its reciprocal and keeps an eye on numbers so close to a whole one that rounding could decide. Where it
meets one, it takes all masks again, by the very operations of `kernels.masks`. It is compiled without contraction: a
product and a sum in one rounding are other numbers.
"""

import torch
import triton
import triton.language as tl

from kernels.masks import DOUBT
from kernels.tables import Tables
from kernels.triton_weights import ANY, counts, tile_depth

LANES = tl.constexpr(32)  # masks of a word, and those that `row_tables_kernel` takes at a time
FARTHEST = tl.constexpr(2147483647)
BLOCK_TABLES = 256  # rows of a program of `tables_kernel`
BLOCK = 16  # rows of a program of `row_tables_kernel`
NEAR_EDGE = tl.constexpr(DOUBT)
# a quotient and a product with the reciprocal differ by at most three roundings, of 2^-53 each
NEAR_WHOLE = tl.constexpr(2.0**-50)


@triton.jit
def bucket_of(position, width, shift):
    """As `Masks.bucket`: float64, whole numbers."""
    return tl.floor((position - shift) / width)


@triton.jit
def corrected(edge, bucket, width, shift):
    """As `Masks.starts` before it clips, where rounding could decide: the first whole position of these buckets, whose
    computed edges are `edge`."""
    edge = tl.ceil(edge) - 1.0
    edge = edge + (bucket_of(edge, width, shift) < bucket).to(tl.float64)
    return edge + (bucket_of(edge, width, shift) < bucket).to(tl.float64)


@triton.jit
def first_of(bucket, width, shift):
    """As `Masks.starts` before it clips: the first whole position (rows, masks) of these buckets."""
    edge = bucket * width + shift
    doubtful = tl.abs(edge - tl.floor(edge + 0.5)) <= NEAR_EDGE
    first = tl.ceil(edge)
    if tl.max(doubtful.to(tl.int32)) > 0:
        first = corrected(edge, bucket, width, shift)
    return first


@triton.jit
def edge_of(bucket, width, shift, doubt, EXACT: tl.constexpr):
    """`first_of` of one mask's buckets, and whether any number so far was in doubt; EXACT: corrected throughout."""
    edge = bucket * width + shift
    if EXACT:
        first = corrected(edge, bucket, width, shift)
    else:
        first = tl.ceil(edge)
        doubt = doubt | (first - edge <= NEAR_EDGE) | (first - edge >= 1.0 - NEAR_EDGE)
    return first, doubt


@triton.jit
def load_masks(Numbers, head, begin, masks):
    """Widths and shifts (1, LANES) of masks from `begin` on, and which of the lanes hold one. Numbers (heads, 1 + 4 *
    masks): slope, widths, shifts, weights and reciprocals of the widths."""
    lane = begin + tl.arange(0, LANES)
    live = lane < masks
    at = Numbers + head * (1 + 4 * masks) + 1 + lane
    width = tl.load(at, mask=live, other=1.0)
    shift = tl.load(at + masks, mask=live, other=0.0)
    return width[None, :], shift[None, :], live[None, :]


@triton.jit
def fill_block(
    Numbers, First, Last, Planes, Corners, head, masks, padded, origin, tokens, sinks, row, here, doubt,
    LAW: tl.constexpr, CAUSAL: tl.constexpr, TILE: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """Write the tables of the rows `row` places after `origin`, of which those are there that are `here`. Returns
    `doubt`, true where rounding could have decided."""
    place, tile = row % TILE, head * (padded // TILE) + row // TILE
    i0 = origin + row - place
    rows = (origin + row).to(tl.float64)
    words = (masks + LANES - 1) // LANES
    first = tl.full(row.shape, FARTHEST, tl.float64)
    last = tl.zeros(row.shape, tl.float64)
    if masks == 0:
        reach = tl.load(Numbers + head * 2 + 1)
        first, last = rows - reach, rows + reach
    of_head = Numbers + head * (1 + 4 * masks) + 1
    pivot = here & ((place == 0) | (place == TILE - 1))
    corner = Corners + (tile * 4 + tl.where(place == 0, 0, 2)) * masks
    for word in range(words):
        p0, p1, p2 = tl.zeros(row.shape, tl.int32), tl.zeros(row.shape, tl.int32), tl.zeros(row.shape, tl.int32)
        p3, p4, p5 = p0, p0, p0
        for lane in range(0, tl.minimum(masks - word * LANES, LANES)):
            s = word * LANES + lane
            width, shift = tl.load(of_head + s), tl.load(of_head + masks + s)
            if EXACT:
                own = bucket_of(rows, width, shift)
            else:
                quotient = (rows - shift) * tl.load(of_head + 3 * masks + s)
                own = tl.floor(quotient)
                margin = tl.abs(quotient) * NEAR_WHOLE
                doubt = doubt | (quotient - own <= margin) | (quotient - own >= 1.0 - margin)
            start, doubt = edge_of(own, width, shift, doubt, EXACT)
            start = tl.maximum(start, 0.0)
            first = tl.minimum(first, start)
            if counts(LAW) or not CAUSAL:
                end, doubt = edge_of(own + 1.0, width, shift, doubt, EXACT)
                last = tl.maximum(last, end - 1.0)
            if counts(LAW):
                begin = start.to(tl.int32)
                code = tl.maximum(begin - i0, 0)
                bit = tl.full([1], 1, tl.int32) << lane
                p0 |= tl.where((code & 1) != 0, bit, 0)
                p1 |= tl.where((code & 2) != 0, bit, 0)
                p2 |= tl.where((code & 4) != 0, bit, 0)
                p3 |= tl.where((code & 8) != 0, bit, 0)
                p4 |= tl.where((code & 16) != 0, bit, 0)
                p5 |= tl.where((code & 32) != 0, bit, 0)
                tl.store(corner + s, tl.maximum(begin, sinks if CAUSAL else 0), mask=pivot)
                tl.store(corner + masks + s, tl.minimum(end, FARTHEST).to(tl.int32), mask=pivot)
        if counts(LAW):
            DEPTH: tl.constexpr = tile_depth(TILE)
            plane = Planes + (tile * words + word) * (DEPTH * TILE) + place
            tl.store(plane, p0, mask=here)
            tl.store(plane + TILE, p1, mask=here & (DEPTH > 1))
            tl.store(plane + 2 * TILE, p2, mask=here & (DEPTH > 2))
            tl.store(plane + 3 * TILE, p3, mask=here & (DEPTH > 3))
            tl.store(plane + 4 * TILE, p4, mask=here & (DEPTH > 4))
            tl.store(plane + 5 * TILE, p5, mask=here & (DEPTH > 5))
    tl.store(First + head * padded + row, tl.maximum(first, sinks).to(tl.int32), mask=here)
    if not CAUSAL:
        tl.store(Last + head * padded + row, tl.minimum(last, tokens - 1).to(tl.int32), mask=here)
    return doubt


@triton.jit(do_not_specialize=ANY)
def tables_kernel(
    Numbers, First, Last, Planes, Corners, masks, padded, origin, tokens, sinks,
    LAW: tl.constexpr, CAUSAL: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Grid (blocks of rows, heads). Numbers (heads, 1 + 4 * masks) float64 as `load_masks` has it or, with masks 0,
    (heads, 2): slope and reach. The rest are `Tables` of `padded` rows, those that the law does not need never
    written."""
    head = tl.program_id(1).to(tl.int64)
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    here = row < padded
    doubt = fill_block(
        Numbers, First, Last, Planes, Corners, head, masks, padded, origin, tokens, sinks, row, here, row < 0,
        LAW, CAUSAL, TILE, False,
    )  # fmt: skip
    if tl.max(doubt.to(tl.int32)) > 0:
        fill_block(
            Numbers, First, Last, Planes, Corners, head, masks, padded, origin, tokens, sinks, row, here, doubt,
            LAW, CAUSAL, TILE, True,
        )  # fmt: skip


@triton.jit(do_not_specialize=ANY)
def row_tables_kernel(Numbers, Rows, First, Starts, masks, number, sinks, LAW: tl.constexpr, BLOCK: tl.constexpr):
    """Grid (blocks of rows, heads): `RowTables` for the tokens Rows (number,) int64; Numbers as in `tables_kernel`."""
    head = tl.program_id(1).to(tl.int64)
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mine = place < number
    rows = tl.load(Rows + place, mask=mine, other=0).to(tl.float64)
    first = tl.full([BLOCK], FARTHEST, tl.float64)
    if masks == 0:
        first = rows - tl.load(Numbers + head * 2 + 1)
    for begin in range(0, masks, LANES):
        width, shift, live = load_masks(Numbers, head, begin, masks)
        start = tl.maximum(first_of(bucket_of(rows[:, None], width, shift), width, shift), 0.0)
        first = tl.minimum(first, tl.min(tl.where(live, start, FARTHEST), 1))
        if counts(LAW):
            to = Starts + (head * number + place)[:, None] * masks + (begin + tl.arange(0, LANES))[None, :]
            tl.store(to, start.to(tl.int32), mask=mine[:, None] & live)
    tl.store(First + head * number + place, tl.maximum(first, sinks).to(tl.int32), mask=mine)


# one rounding for each operation, as torch has it
LAUNCH = {"num_warps": 8, "enable_fp_fusion": False}


def fill_tables(numbers: torch.Tensor, tables: Tables, tokens: int) -> None:
    """Write `first`, `last`, `planes` and `corners`; `numbers` as in `tables_kernel`, on the same device."""
    heads, padded = tables.first.shape
    outputs = (x if x.numel() else tables.first for x in (tables.first, tables.last, tables.planes, tables.corners))
    tables_kernel[(triton.cdiv(padded, BLOCK_TABLES), heads)](
        numbers, *outputs, tables.masks, padded, tables.origin, tokens, tables.sinks,
        LAW=tables.law, CAUSAL=tables.causal, TILE=tables.tile, BLOCK=BLOCK_TABLES, **LAUNCH,
    )  # fmt: skip


def fill_row_tables(
    numbers: torch.Tensor, rows: torch.Tensor, first: torch.Tensor, starts: torch.Tensor, *, law: str, masks: int,
    sinks: int,
) -> None:  # fmt: skip
    """Write `first` and `starts` of `RowTables` for rows (N,) int64, all on one device."""
    heads, number = first.shape
    row_tables_kernel[(triton.cdiv(number, BLOCK), heads)](
        numbers, rows, first, starts if starts.numel() else first, masks, number, sinks, LAW=law, BLOCK=BLOCK, **LAUNCH
    )
