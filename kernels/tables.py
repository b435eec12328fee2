"""Weights as integer tables for a fused kernel, built once per set of masks in float64 and 64-bit positions.

A kernel that walks over tiles of `tile` tokens needs to know where each row's visited keys begin and end, and what a
visited pair weighs. The weight follows one of five laws:

* "linear" (alibi, window, exact on the union): the bias is -slope * distance;
* "rb" (independent masks): the weight is a formula of exp(-slope * distance) and S;
* "distance" (rb of other samplers): a table of the bias by distance;
* "count" (the paper's weights, equal masks): how many of the S masks hold the pair;
* "sum" (masks with weights of their own): the sum of the weights of the masks that hold the pair.

The masks that hold a pair are the bits of a word, 32 masks to a word, and found without comparing S starts per pair:

* *inside a tile* (diagonal) by `planes`: bit s of plane k is bit k of the rank of the row's block in mask s. Two rows
  of a tile are fewer than `tile` blocks apart, so log2(tile) planes tell all of its blocks apart.
* *across tiles* through a pivot: a block that reaches from a key before the tile to a row in it holds the tile's
  first token. So it holds row i iff ``i < end`` and key j iff ``start <= j`` of the pivot's own block: S numbers per
  tile (`corners`). For keys after the tile the pivot is its last token.
"""

import math
from dataclasses import dataclass

import torch

from kernels.union import PositionalLSH
from kernels.weights import Alibi, Weights, Window

LAWS = ("linear", "rb", "distance", "count", "sum")
LOG2E = 1.4426950408889634
WORD = 32  # masks in a word
MOST = 2 * WORD  # a kernel holds two words of a row


@dataclass(frozen=True)
class Tables:
    """Tables for tokens 0 .. N - 1, N whole tiles. A table that the law does not need is empty.

    `sinks`: how many tokens every row sees with the weight of ALiBi, whatever the law; the rest is about other columns.
    `first`, `last`: (H, N) int32, the first and last visited column of each row, both non-decreasing in the row;
    with `causal` the row itself is the last, and `last` is empty.
    `order`: (H,) int32, the heads by falling number of visited pairs. `slope`: (H,) float32, for base-2 exponentials.
    `bias`: (H, W) float32, log2 of the weight by distance 0 .. W - 1.
    `planes`: (words, log2(tile), H, N) int32. `corners`: (H, N / tile, 4, words * 32) int32: start and end of the block
    of a tile's first token, then start and end of the block of its last token; masks beyond S hold nothing. With
    `causal` no start lies among the sinks.
    `share`: (H, words * 32) float32, what each mask adds to S times the weight.
    """

    law: str
    tile: int
    masks: int
    sinks: int
    first: torch.Tensor
    last: torch.Tensor
    order: torch.Tensor
    slope: torch.Tensor
    bias: torch.Tensor
    planes: torch.Tensor
    corners: torch.Tensor
    share: torch.Tensor

    @property
    def causal(self) -> bool:
        return self.last.numel() == 0

    @property
    def bytes(self) -> int:
        """Memory of all tables."""
        return sum(x.numel() * x.element_size() for x in vars(self).values() if isinstance(x, torch.Tensor))


def law_of(weights: Weights) -> str:
    """Which of LAWS the weights follow. Raises ValueError for weights of another class."""
    if isinstance(weights, (Alibi, Window)):
        return "linear"
    if not isinstance(weights, PositionalLSH):
        raise ValueError(f"No tables for {type(weights).__name__}: use kernel='sdpa' or 'exact' with it.")
    if weights.weights == "exact":
        return "linear"
    if weights.weights == "rb":
        return "rb" if weights.sampler == "gamma" else "distance"
    return "count" if bool((weights.masks.log_weight == 0).all()) else "sum"


def build_tables(weights: Weights, tokens: int, *, tile: int, causal: bool, device: torch.device | str) -> Tables:
    """Tables for rows and columns 0 .. tokens - 1. `tile`: a power of two, the rows and columns of a kernel's tiles."""
    assert tile & (tile - 1) == 0 and tokens >= 1
    law = law_of(weights)
    rows = torch.arange(-(-tokens // tile) * tile, device=device)
    first = torch.empty(weights.heads, len(rows), dtype=torch.int32, device=device)
    last = torch.empty_like(first) if not causal else first.new_empty(0)
    for head in range(weights.heads):  # one head at a time: S masks in float64 take S times the memory of a row
        low, high = weights.reach(torch.tensor([head], device=device), rows[None])
        first[head] = low[0]
        if not causal:
            last[head] = high[0].clamp_max(tokens - 1)
    empty = torch.empty(0, device=device)
    planes, corners, share = empty.int(), empty.int(), empty
    if law in ("count", "sum"):
        planes, corners = _planes(weights, rows, tile), _corners(weights, rows, tile, causal)
        share = torch.zeros(weights.heads, corners.shape[-1], device=device)
        share[:, : weights.count] = weights.masks.log_weight.exp()
    return Tables(
        law=law,
        tile=tile,
        masks=weights.count if isinstance(weights, PositionalLSH) else 0,
        sinks=weights.sinks,
        first=first,
        last=last,
        order=(first if causal else first - last).double().sum(1).argsort().int(),
        slope=(weights.slopes * LOG2E).float().to(device),
        bias=bias_by_distance(weights, first, last, rows) if law == "distance" else empty,
        planes=planes,
        corners=corners,
        share=share,
    )


@dataclass(frozen=True)
class RowTables:
    """What a few causal rows (N,) need, without tiles: `sinks` as in `Tables`, `first` (H, N) int32, `starts` (H, N,
    S) int32 the start of each row's block in each mask, `slope`, `bias` and `share` (H, S) as in `Tables`."""

    law: str
    masks: int
    sinks: int
    first: torch.Tensor
    starts: torch.Tensor
    slope: torch.Tensor
    bias: torch.Tensor
    share: torch.Tensor


def build_row_tables(weights: Weights, rows: torch.Tensor) -> RowTables:
    """Tables for rows (N,) int64, tokens >= 0, on the device of `rows`."""
    law, device = law_of(weights), rows.device
    heads, each = torch.arange(weights.heads, device=device), rows[None].expand(weights.heads, -1)
    starts, share = torch.empty(0, dtype=torch.int32, device=device), torch.empty(0, device=device)
    if law in ("count", "sum"):
        starts = weights.masks.starts(heads, each).int()
        first = starts.amin(-1).clamp_min(weights.sinks)
        share = weights.masks.log_weight.exp().float().to(device)
    else:
        first = weights.reach(heads, each)[0].int()
    return RowTables(
        law=law,
        masks=weights.count if isinstance(weights, PositionalLSH) else 0,
        sinks=weights.sinks,
        first=first,
        starts=starts,
        slope=(weights.slopes * LOG2E).float().to(device),
        bias=bias_by_distance(weights, first, first.new_empty(0), rows) if law == "distance" else share,
        share=share,
    )


def bias_by_distance(
    weights: PositionalLSH, first: torch.Tensor, last: torch.Tensor, rows: torch.Tensor
) -> torch.Tensor:
    """log2 of the weight at distances 0 .. the farthest that any of the rows (R,) visits: (H, W) float32."""
    farthest = max(0, int((rows - first).max()))
    if last.numel():
        farthest = max(farthest, int((last - rows).max()))
    distance = torch.arange(farthest + 1, device=rows.device)
    every = [weights.log_distance(torch.tensor([h], device=rows.device), distance) for h in range(weights.heads)]
    return torch.cat(every).mul_(LOG2E).float()


def _planes(weights: PositionalLSH, rows: torch.Tensor, tile: int) -> torch.Tensor:
    words, depth = math.ceil(weights.count / WORD), max(1, tile.bit_length() - 1)
    planes = torch.zeros(words, depth, weights.heads, len(rows), dtype=torch.int32, device=rows.device)
    bit = torch.ones(WORD, dtype=torch.int64, device=rows.device) << torch.arange(WORD, device=rows.device)
    for head in range(weights.heads):
        start = weights.masks.starts(torch.tensor([head], device=rows.device), rows[None])[0]
        rank = (start == rows[:, None]).cumsum(0)
        for word in range(words):
            some = rank[:, word * WORD : (word + 1) * WORD]
            for k in range(depth):
                planes[word, k, head] = _as_int32((((some >> k) & 1) * bit[: some.shape[1]]).sum(1))
    return planes


def _corners(weights: PositionalLSH, rows: torch.Tensor, tile: int, causal: bool) -> torch.Tensor:
    heads = torch.arange(weights.heads, device=rows.device)
    far = torch.iinfo(torch.int32).max
    lanes = math.ceil(weights.count / WORD) * WORD
    corners = torch.zeros(weights.heads, len(rows) // tile, 4, lanes, dtype=torch.int32, device=rows.device)
    corners[:, :, 0::2] = far  # no key lies after the start, none before the end: a mask that holds nothing
    for pivot, token in enumerate((rows[::tile], rows[tile - 1 :: tile])):
        each = token[None].expand(weights.heads, -1)
        start = weights.masks.starts(heads, each).clamp_min_(weights.sinks if causal else 0)
        corners[:, :, 2 * pivot, : weights.count] = start.int()
        corners[:, :, 2 * pivot + 1, : weights.count] = weights.masks.ends(heads, each).clamp_max(far).int()
    return corners


def _as_int32(word: torch.Tensor) -> torch.Tensor:
    """Words of 32 bits held in int64, as int32 of the same bits."""
    return torch.where(word >= 1 << 31, word - (1 << 32), word).int()
