"""The tables of `kernels.impl.tables` built by one Triton kernel: a program for each head and block
of rows, a thread for each row, which takes the masks one after the other.

Positions are float64, and the edges of blocks equal those of `kernels.methods.masks` bit by bit:
two kernels that disagree on an edge attend to different pairs. A division by the width for every
row and mask would take most of the time, so the kernel first multiplies by the reciprocal, and
notes numbers so close to a whole number that rounding could decide. If it meets one, it repeats all
masks by the exact operations of `kernels.methods.masks`. It is compiled without contraction: a
fused multiply-add rounds differently.
"""

import functools

import torch
import triton
import triton.language as tl

from kernels.impl.tables import empty_tables
from kernels.impl.triton.launch import Launcher
from kernels.impl.triton.weights import UNSPECIALIZED, counts, tile_depth
from kernels.methods.laws import Law
from kernels.methods.masks import EDGE_TOLERANCE

LANES = tl.constexpr(32)  # masks in a word
FARTHEST = tl.constexpr(2147483647)
BLOCK = 256  # rows per program
NEAR_EDGE = tl.constexpr(EDGE_TOLERANCE)
# a quotient and a product with the reciprocal differ by at most three roundings of 2^-53 each
NEAR_WHOLE = tl.constexpr(2.0**-50)


@triton.jit
def bucket_of(position, width, shift):
    """As `Masks.bucket`: float64, whole numbers."""
    return tl.floor((position - shift) / width)


@triton.jit
def grid_of(Packed, head, masks, GRID: tl.constexpr):
    """A head's grid (`Masks.grid`): tokens per cell, first token of one cell, and its middle."""
    size, begin, middle = 1.0, 0.0, 0.0
    if GRID:
        at = Packed + (head + 1) * (1 + 4 * masks + 3) - 3
        size, begin = tl.load(at), tl.load(at + 1)
        middle = begin + tl.load(at + 2)
    return size, begin, middle


@triton.jit
def representative_of(positions, size, begin, middle, GRID: tl.constexpr):
    """The positions whose buckets the tokens at `positions` get: with a grid, the middles of their
    cells."""
    if GRID:
        positions = tl.floor((positions - begin) / size) * size + middle
    return positions


@triton.jit
def corrected(edge, bucket, width, shift, size, middle, GRID: tl.constexpr):
    """The first whole position, or with a grid the first cell, of the buckets: `edge` or a
    neighbour, consistent with `bucket_of` however `edge` was rounded."""
    edge = edge - 1.0
    for _ in tl.static_range(2):
        position = edge
        if GRID:
            position = edge * size + middle
        edge = edge + (bucket_of(position, width, shift) < bucket).to(tl.float64)
    return edge


@triton.jit
def edge_of(bucket, width, shift, size, begin, middle, doubtful, GRID: tl.constexpr, EXACT: tl.constexpr):
    """Returns the first whole positions of one mask's buckets, and whether rounding could have
    decided any number so far. EXACT: consistent with `bucket_of`, however the edges were
    rounded."""
    edge = bucket * width + shift
    if GRID:  # in cells
        edge = (edge - middle) / size
    first = tl.ceil(edge)
    if EXACT:
        first = corrected(first, bucket, width, shift, size, middle, GRID)
    else:
        doubtful = doubtful | (first - edge <= NEAR_EDGE) | (first - edge >= 1.0 - NEAR_EDGE)
    if GRID:
        first = first * size + begin
    return first, doubtful


@triton.jit
def fill_block(
    Packed, First, Last, Bitplanes, PivotBlocks, head, masks, padded, origin, tokens, sinks, row, row_mask,
    doubtful,
    LAW: tl.constexpr, CAUSAL: tl.constexpr, NEAR: tl.constexpr, TILE: tl.constexpr, WORDS: tl.constexpr,
    GRID: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """Writes the tables of the rows origin + `row` within `row_mask`. Returns `doubtful`, true
    where rounding could have decided."""
    offsets, tile = row % TILE, head * (padded // TILE) + row // TILE
    i0 = origin + row - offsets
    rows = (origin + row).to(tl.float64)
    columns = 1 + 4 * masks + (3 if GRID else 0)
    first = tl.full(row.shape, FARTHEST, tl.float64)
    last = tl.zeros(row.shape, tl.float64)
    if masks == 0:
        farthest = tl.load(Packed + head * 2 + 1)
        first, last = rows - farthest, rows + farthest
    head_numbers = Packed + head * columns + 1
    size, begin, middle = grid_of(Packed, head, masks, GRID)
    representative = representative_of(rows, size, begin, middle, GRID)
    pivot = row_mask & ((offsets == 0) | (offsets == TILE - 1))
    pivot_block = PivotBlocks + (tile * 4 + tl.where(offsets == 0, 0, 2)) * masks

    for word in tl.static_range(WORDS):
        p0, p1, p2 = tl.zeros(row.shape, tl.int32), tl.zeros(row.shape, tl.int32), tl.zeros(row.shape, tl.int32)
        p3, p4, p5 = p0, p0, p0
        for s in range(word * LANES, tl.minimum(masks, word * LANES + LANES) if counts(LAW) else masks):
            width, shift = tl.load(head_numbers + s), tl.load(head_numbers + masks + s)
            # the row's bucket
            if EXACT:
                bucket = bucket_of(representative, width, shift)
            else:
                quotient = (representative - shift) * tl.load(head_numbers + 3 * masks + s)
                bucket = tl.floor(quotient)
                margin = tl.abs(quotient) * NEAR_WHOLE
                doubtful = doubtful | (quotient - bucket <= margin) | (quotient - bucket >= 1.0 - margin)

            # its block: start, and end where it is needed
            start, doubtful = edge_of(bucket, width, shift, size, begin, middle, doubtful, GRID, EXACT)
            start = tl.maximum(start, 0.0)
            first = tl.minimum(first, start)
            if counts(LAW) or not CAUSAL:
                end, doubtful = edge_of(bucket + 1.0, width, shift, size, begin, middle, doubtful, GRID, EXACT)
                last = tl.maximum(last, end - 1.0)

            # the bits of the block's rank within the tile, and the pivots' blocks
            if counts(LAW):
                block_start = start.to(tl.int32)
                rank = tl.maximum(block_start - i0, 0)
                bit = tl.full([1], 1, tl.int32) << (s - word * LANES)
                p0 |= tl.where((rank & 1) != 0, bit, 0)
                p1 |= tl.where((rank & 2) != 0, bit, 0)
                p2 |= tl.where((rank & 4) != 0, bit, 0)
                p3 |= tl.where((rank & 8) != 0, bit, 0)
                p4 |= tl.where((rank & 16) != 0, bit, 0)
                p5 |= tl.where((rank & 32) != 0, bit, 0)
                tl.store(pivot_block + s, tl.maximum(block_start, sinks if CAUSAL else 0), mask=pivot)
                tl.store(pivot_block + masks + s, tl.minimum(end, FARTHEST).to(tl.int32), mask=pivot)

        if counts(LAW):
            DEPTH: tl.constexpr = tile_depth(TILE)
            bitplane = Bitplanes + (tile * WORDS + word) * (DEPTH * TILE) + offsets
            tl.store(bitplane, p0, mask=row_mask)
            tl.store(bitplane + TILE, p1, mask=row_mask & (DEPTH > 1))
            tl.store(bitplane + 2 * TILE, p2, mask=row_mask & (DEPTH > 2))
            tl.store(bitplane + 3 * TILE, p3, mask=row_mask & (DEPTH > 3))
            tl.store(bitplane + 4 * TILE, p4, mask=row_mask & (DEPTH > 4))
            tl.store(bitplane + 5 * TILE, p5, mask=row_mask & (DEPTH > 5))

    if NEAR > 0:
        first, last = tl.minimum(first, rows - (NEAR - 1)), tl.maximum(last, rows + (NEAR - 1))
    tl.store(First + head * padded + row, tl.maximum(first, sinks).to(tl.int32), mask=row_mask)
    if not CAUSAL:
        tl.store(Last + head * padded + row, tl.minimum(last, tokens - 1).to(tl.int32), mask=row_mask)
    return doubtful


@triton.jit(do_not_specialize=UNSPECIALIZED)
def tables_kernel(
    Packed, First, Last, Bitplanes, PivotBlocks, masks, padded, origin, tokens, sinks,
    LAW: tl.constexpr, CAUSAL: tl.constexpr, NEAR: tl.constexpr, TILE: tl.constexpr, WORDS: tl.constexpr,
    GRID: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Grid (blocks of rows, heads). Packed: `Weights.pack`. The other pointers are those of
    `Tables` with `padded` rows; a table that the law does not need is never written. WORDS: number
    of words if the law counts masks, else 1."""
    head = tl.program_id(1).to(tl.int64)
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    row_mask = row < padded
    doubtful = fill_block(
        Packed, First, Last, Bitplanes, PivotBlocks, head, masks, padded, origin, tokens, sinks, row, row_mask,
        row < 0,
        LAW, CAUSAL, NEAR, TILE, WORDS, GRID, False,
    )  # fmt: skip
    if tl.max(doubtful.to(tl.int32)) > 0:
        fill_block(
            Packed, First, Last, Bitplanes, PivotBlocks, head, masks, padded, origin, tokens, sinks, row, row_mask,
            doubtful,
            LAW, CAUSAL, NEAR, TILE, WORDS, GRID, True,
        )  # fmt: skip


# one rounding for each operation, as in torch
LAUNCH = {"num_warps": 8, "enable_fp_fusion": False}


def has_grid(numbers: torch.Tensor, masks: int) -> bool:
    """Whether the packed numbers of the weights include a grid."""
    return masks > 0 and numbers.shape[1] > 1 + 4 * masks


def table_constants(law: Law, masks: int, near: int, causal: bool, tile: int, grid: bool = False) -> dict:
    """Constants and launch options of the kernel.

    Args:
        law, masks, near: of the weights, as in `Tables`.
        causal: whether rows see no column after them.
        tile: rows of a tile.
        grid: whether the packed numbers include a grid (`has_grid`).
    """
    words = triton.cdiv(masks, LANES.value) if law.per_mask else 1
    fixed = {"LAW": law.value, "CAUSAL": causal, "NEAR": near, "TILE": tile, "WORDS": words, "GRID": grid}
    return fixed | {"BLOCK": BLOCK} | LAUNCH


@functools.cache
def _launcher(law: Law, masks: int, near: int, causal: bool, tile: int, grid: bool) -> Launcher:
    return Launcher(tables_kernel, **table_constants(law, masks, near, causal, tile, grid))


def build(
    numbers: torch.Tensor, law: Law, masks: int, sinks: int, near: int, origin: int, tokens: int, tile: int,
    causal: bool,
) -> dict[str, torch.Tensor]:  # fmt: skip
    """Returns `first`, `last`, `bitplanes` and `pivot_blocks` of `Tables`, on the device of
    `numbers`.

    Args:
        numbers: `Weights.pack`.
        law, masks, sinks, near: of the weights, as in `Tables`.
        origin, tokens, tile, causal: as in `kernels.impl.tables.build_tables`.
    """
    tables = empty_tables(law, masks, origin, tokens, tile, causal, len(numbers), numbers.device)
    first = tables["first"]
    heads, padded = first.shape
    # the first table stands in for a table that the law does not need, and is not written
    pointers = [tables[x] if tables[x].numel() else first for x in ("last", "bitplanes", "pivot_blocks")]
    _launcher(law, masks, near, causal, tile, has_grid(numbers, masks))(
        (triton.cdiv(padded, BLOCK), heads), numbers.device,
        numbers, first, *pointers, masks, padded, origin, tokens, sinks,
    )  # fmt: skip
    return tables
