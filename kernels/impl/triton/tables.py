"""The tables of `kernels.impl.tables` built by one Triton kernel: a program for each head and block
of rows, a thread for each row, which takes the masks one after the other.

Positions are float64, and the blocks' edges those of `kernels.methods.masks`, bit by bit: two
kernels that disagree on an edge attend to different pairs. Dividing by the width at every row and
mask would take most of the time, so the kernel first multiplies by its reciprocal and keeps an eye
on numbers so close to a whole one that rounding could decide. Where it meets one, it takes all
masks again, by the very operations of `kernels.methods.masks`. It is compiled without contraction:
a product and a sum in one rounding are other numbers.
"""

import functools

import torch
import triton
import triton.language as tl

from kernels.impl.tables import empty_tables
from kernels.impl.triton.launch import Launcher
from kernels.impl.triton.weights import ANY, counts, tile_depth
from kernels.methods.laws import Law
from kernels.methods.masks import DOUBT

LANES = tl.constexpr(32)  # masks of a word
FARTHEST = tl.constexpr(2147483647)
BLOCK = 256  # rows of a program
NEAR_EDGE = tl.constexpr(DOUBT)
# a quotient and a product with the reciprocal differ by at most three roundings, of 2^-53 each
NEAR_WHOLE = tl.constexpr(2.0**-50)


@triton.jit
def bucket_of(position, width, shift):
    """As `Masks.bucket`: float64, whole numbers."""
    return tl.floor((position - shift) / width)


@triton.jit
def grid_of(Numbers, head, masks, GRID: tl.constexpr):
    """Of a head's grid, as of `Masks.grid`: tokens of a cell, first token of one, and where its
    middle lies."""
    size, begin, middle = 1.0, 0.0, 0.0
    if GRID:
        at = Numbers + (head + 1) * (1 + 4 * masks + 3) - 3
        size, begin = tl.load(at), tl.load(at + 1)
        middle = begin + tl.load(at + 2)
    return size, begin, middle


@triton.jit
def standing_for(positions, size, begin, middle, GRID: tl.constexpr):
    """The positions whose buckets are those of whole `positions`: with a grid the middles of their
    cells."""
    if GRID:
        positions = tl.floor((positions - begin) / size) * size + middle
    return positions


@triton.jit
def corrected(edge, bucket, width, shift, size, middle, GRID: tl.constexpr):
    """The first whole position, or with a grid the first cell, of these buckets, `edge` or next to
    it: as `bucket_of` has it, however `edge` was rounded."""
    edge = edge - 1.0
    for _ in tl.static_range(2):
        position = edge
        if GRID:
            position = edge * size + middle
        edge = edge + (bucket_of(position, width, shift) < bucket).to(tl.float64)
    return edge


@triton.jit
def edge_of(bucket, width, shift, size, begin, middle, doubt, GRID: tl.constexpr, EXACT: tl.constexpr):
    """The first whole positions of one mask's buckets, and whether any number so far was in doubt;
    EXACT: as `bucket_of` has them, however the edges were rounded."""
    edge = bucket * width + shift
    if GRID:  # in cells
        edge = (edge - middle) / size
    first = tl.ceil(edge)
    if EXACT:
        first = corrected(first, bucket, width, shift, size, middle, GRID)
    else:
        doubt = doubt | (first - edge <= NEAR_EDGE) | (first - edge >= 1.0 - NEAR_EDGE)
    if GRID:
        first = first * size + begin
    return first, doubt


@triton.jit
def fill_block(
    Numbers, First, Last, Planes, Corners, head, masks, padded, origin, tokens, sinks, row, here, doubt,
    LAW: tl.constexpr, CAUSAL: tl.constexpr, TILE: tl.constexpr, WORDS: tl.constexpr, GRID: tl.constexpr,
    EXACT: tl.constexpr,
):  # fmt: skip
    """Write the tables of the rows `row` rows after `origin`, of which those are there that are
    `here`. Returns `doubt`, true where rounding could have decided."""
    place, tile = row % TILE, head * (padded // TILE) + row // TILE
    i0 = origin + row - place
    rows = (origin + row).to(tl.float64)
    columns = 1 + 4 * masks + (3 if GRID else 0)
    first = tl.full(row.shape, FARTHEST, tl.float64)
    last = tl.zeros(row.shape, tl.float64)
    if masks == 0:
        reach = tl.load(Numbers + head * 2 + 1)
        first, last = rows - reach, rows + reach
    of_head = Numbers + head * columns + 1
    size, begin, middle = grid_of(Numbers, head, masks, GRID)
    standing = standing_for(rows, size, begin, middle, GRID)
    pivot = here & ((place == 0) | (place == TILE - 1))
    corner = Corners + (tile * 4 + tl.where(place == 0, 0, 2)) * masks
    for word in tl.static_range(WORDS):
        p0, p1, p2 = tl.zeros(row.shape, tl.int32), tl.zeros(row.shape, tl.int32), tl.zeros(row.shape, tl.int32)
        p3, p4, p5 = p0, p0, p0
        for s in range(word * LANES, tl.minimum(masks, word * LANES + LANES) if counts(LAW) else masks):
            width, shift = tl.load(of_head + s), tl.load(of_head + masks + s)
            if EXACT:
                own = bucket_of(standing, width, shift)
            else:
                quotient = (standing - shift) * tl.load(of_head + 3 * masks + s)
                own = tl.floor(quotient)
                margin = tl.abs(quotient) * NEAR_WHOLE
                doubt = doubt | (quotient - own <= margin) | (quotient - own >= 1.0 - margin)
            start, doubt = edge_of(own, width, shift, size, begin, middle, doubt, GRID, EXACT)
            start = tl.maximum(start, 0.0)
            first = tl.minimum(first, start)
            if counts(LAW) or not CAUSAL:
                end, doubt = edge_of(own + 1.0, width, shift, size, begin, middle, doubt, GRID, EXACT)
                last = tl.maximum(last, end - 1.0)
            if counts(LAW):
                starting = start.to(tl.int32)
                code = tl.maximum(starting - i0, 0)
                bit = tl.full([1], 1, tl.int32) << (s - word * LANES)
                p0 |= tl.where((code & 1) != 0, bit, 0)
                p1 |= tl.where((code & 2) != 0, bit, 0)
                p2 |= tl.where((code & 4) != 0, bit, 0)
                p3 |= tl.where((code & 8) != 0, bit, 0)
                p4 |= tl.where((code & 16) != 0, bit, 0)
                p5 |= tl.where((code & 32) != 0, bit, 0)
                tl.store(corner + s, tl.maximum(starting, sinks if CAUSAL else 0), mask=pivot)
                tl.store(corner + masks + s, tl.minimum(end, FARTHEST).to(tl.int32), mask=pivot)
        if counts(LAW):
            DEPTH: tl.constexpr = tile_depth(TILE)
            plane = Planes + (tile * WORDS + word) * (DEPTH * TILE) + place
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
    LAW: tl.constexpr, CAUSAL: tl.constexpr, TILE: tl.constexpr, WORDS: tl.constexpr, GRID: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Grid (blocks of rows, heads). Numbers as of `kernels.impl.triton.numbers`. The rest are
    `Tables` of `padded` rows: those that the law does not need are never written. WORDS: of the
    masks where the law counts, else 1."""
    head = tl.program_id(1).to(tl.int64)
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    here = row < padded
    doubt = fill_block(
        Numbers, First, Last, Planes, Corners, head, masks, padded, origin, tokens, sinks, row, here, row < 0,
        LAW, CAUSAL, TILE, WORDS, GRID, False,
    )  # fmt: skip
    if tl.max(doubt.to(tl.int32)) > 0:
        fill_block(
            Numbers, First, Last, Planes, Corners, head, masks, padded, origin, tokens, sinks, row, here, doubt,
            LAW, CAUSAL, TILE, WORDS, GRID, True,
        )  # fmt: skip


# one rounding for each operation, as torch has it
LAUNCH = {"num_warps": 8, "enable_fp_fusion": False}


def gridded(numbers: torch.Tensor, masks: int) -> bool:
    """Whether the numbers of the weights end with those of grids."""
    return masks > 0 and numbers.shape[1] > 1 + 4 * masks


def table_constants(law: Law, masks: int, causal: bool, tile: int, grid: bool = False) -> dict:
    """What the kernel is compiled for, and how it is launched."""
    words = triton.cdiv(masks, LANES.value) if law.per_mask else 1
    return {"LAW": law.value, "CAUSAL": causal, "TILE": tile, "WORDS": words, "GRID": grid, "BLOCK": BLOCK} | LAUNCH


@functools.cache
def _launcher(law: Law, masks: int, causal: bool, tile: int, grid: bool) -> Launcher:
    return Launcher(tables_kernel, **table_constants(law, masks, causal, tile, grid))


def build(
    numbers: torch.Tensor, law: Law, masks: int, sinks: int, origin: int, tokens: int, tile: int, causal: bool
) -> dict[str, torch.Tensor]:
    """`first`, `last`, `planes` and `corners` of `Tables` where `numbers` are, which are as in
    `tables_kernel`."""
    held = empty_tables(law, masks, origin, tokens, tile, causal, len(numbers), numbers.device)
    first = held["first"]
    heads, padded = first.shape
    last, planes, corners = (held[x] if held[x].numel() else first for x in ("last", "planes", "corners"))
    _launcher(law, masks, causal, tile, gridded(numbers, masks))(
        (triton.cdiv(padded, BLOCK), heads), numbers.device,
        numbers, first, last, planes, corners, masks, padded, origin, tokens, sinks,
    )  # fmt: skip
    return held
