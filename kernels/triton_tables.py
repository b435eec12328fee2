"""The tables of `kernels.tables` built by one Triton kernel: a program for each head and tile of rows.

Positions are float64, computed by the very operations of `kernels.masks`: a product and a sum that were contracted into
one rounding could move a block's edge, and two kernels that disagree on an edge attend to different pairs. So these
kernels are compiled without contraction.
"""

import torch
import triton
import triton.language as tl

from kernels.masks import DOUBT
from kernels.tables import Tables
from kernels.triton_weights import ANY, counts, tile_depth

LANES = tl.constexpr(32)  # masks at a time, one to each bit of a word
FARTHEST = tl.constexpr(2147483647)
BLOCK = 16  # rows of a program of `row_tables_kernel`
NEAR_EDGE = tl.constexpr(DOUBT)


@triton.jit
def bucket_of(position, width, shift):
    """As `Masks.bucket`: float64, whole numbers."""
    return tl.floor((position - shift) / width)


@triton.jit
def first_of(bucket, width, shift):
    """As `Masks.starts` before it clips: the first whole position (rows, masks) of these buckets."""
    edge = bucket * width + shift
    doubtful = tl.abs(edge - tl.floor(edge + 0.5)) <= NEAR_EDGE
    edge = tl.ceil(edge)
    if tl.max(doubtful.to(tl.int32)) > 0:
        edge = edge - 1.0
        edge = edge + (bucket_of(edge, width, shift) < bucket).to(tl.float64)
        edge = edge + (bucket_of(edge, width, shift) < bucket).to(tl.float64)
    return edge


@triton.jit
def load_masks(Numbers, head, begin, masks):
    """Widths and shifts (1, LANES) of masks from `begin` on, and which of the lanes hold one. Numbers (heads, 1 + 3 *
    masks): slope, widths, shifts, weights."""
    lane = begin + tl.arange(0, LANES)
    live = lane < masks
    at = Numbers + head * (1 + 3 * masks) + 1 + lane
    width = tl.load(at, mask=live, other=1.0)
    shift = tl.load(at + masks, mask=live, other=0.0)
    return width[None, :], shift[None, :], live[None, :]


@triton.jit(do_not_specialize=ANY)
def tables_kernel(
    Numbers, First, Last, Planes, Corners, heads, masks, padded, origin, tokens, sinks,
    LAW: tl.constexpr, CAUSAL: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Grid (tiles, heads). Numbers (heads, 1 + 3 * masks) float64 as `load_masks` has it or, with masks 0, (heads, 2):
    slope and reach. The rest are `Tables` of `padded` rows, those that the law does not need never written."""
    tile, head = tl.program_id(0), tl.program_id(1).to(tl.int64)
    i0 = origin + tile * TILE
    place = tl.arange(0, TILE)
    rows = (i0 + place).to(tl.float64)
    first = tl.full([TILE], FARTHEST, tl.float64)
    last = tl.zeros([TILE], tl.float64)
    if masks == 0:
        reach = tl.load(Numbers + head * 2 + 1)
        first, last = rows - reach, rows + reach
    words = (masks + LANES - 1) // LANES
    for word in range(words):
        width, shift, live = load_masks(Numbers, head, word * LANES, masks)
        own = bucket_of(rows[:, None], width, shift)
        start = tl.maximum(first_of(own, width, shift), 0.0)
        first = tl.minimum(first, tl.min(tl.where(live, start, FARTHEST), 1))
        if not CAUSAL:
            end = first_of(own + 1.0, width, shift)
            last = tl.maximum(last, tl.max(tl.where(live, end, 0.0), 1) - 1.0)
        if counts(LAW):
            bit = tl.full([LANES], 1, tl.int32) << tl.arange(0, LANES)
            opened = live & (start == rows[:, None]) & (place > 0)[:, None]
            rank = tl.cumsum(opened.to(tl.int32), 0)
            for k in tl.static_range(tile_depth(TILE)):
                plane = tl.sum(((rank >> k) & 1) * bit[None, :], 1)
                at = ((head * (padded // TILE) + tile) * words + word) * tile_depth(TILE) + k
                tl.store(Planes + at * TILE + place, plane)
            pivot = tl.arange(0, 2)[:, None]
            own = bucket_of((i0 + pivot * (TILE - 1)).to(tl.float64), width, shift)
            begin = tl.maximum(first_of(own, width, shift), sinks if CAUSAL else 0)
            end = tl.minimum(first_of(own + 1.0, width, shift), FARTHEST)
            row = (head * (padded // TILE) + tile) * 4 + 2 * pivot
            corner = Corners + (row * words + word) * LANES + tl.arange(0, LANES)[None, :]
            tl.store(corner, tl.where(live, begin, FARTHEST).to(tl.int32))
            tl.store(corner + words * LANES, tl.where(live, end, 0.0).to(tl.int32))
    at = head * padded + tile * TILE + place
    tl.store(First + at, tl.maximum(first, sinks).to(tl.int32))
    if not CAUSAL:
        tl.store(Last + at, tl.minimum(last, tokens - 1).to(tl.int32))


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
    tables_kernel[(padded // tables.tile, heads)](
        numbers, *outputs, heads, tables.masks, padded, tables.origin, tokens, tables.sinks,
        LAW=tables.law, CAUSAL=tables.causal, TILE=tables.tile, **LAUNCH,
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
