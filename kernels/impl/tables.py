"""Weights as integer tables for a fused kernel, built once per set of masks in float64 and 64-bit
positions: on a GPU by one Triton kernel (`kernels.impl.triton.tables`), of which torch's here are
the reference.

A kernel that walks over tiles of `tile` tokens needs to know where each row's visited keys begin
and end, and what a visited pair weighs. The weight follows one of five laws:

* "linear" (alibi, window, exact on the union): the bias is -slope * distance;
* "rb" (independent masks): the weight is a formula of exp(-slope * distance) and S;
* "distance" (rb of other samplers): a table of the bias by distance;
* "count" (the paper's weights, equal masks): how many of the S masks hold the pair;
* "sum" (masks with weights of their own): the sum of the weights of the masks that hold the pair.

The masks that hold a pair are the bits of a word, 32 masks to a word, and found without comparing S
starts per pair:

* *inside a tile* (diagonal) by `planes`: bit s of plane k is bit k of the place within the tile
  where the row's block in mask s starts, 0 if it starts before the tile: log2(tile) planes tell the
  tile's blocks apart.
* *across tiles* through a pivot: a block that reaches from a key before the tile to a row in it
  holds the tile's first token. So it holds row i iff ``i < end`` and key j iff ``start <= j`` of
  the pivot's own block: S numbers per tile (`corners`). For keys after the tile the pivot is its
  last token.
"""

import weakref
from dataclasses import dataclass

import torch

from kernels.methods.cost import log_coverage
from kernels.methods.laws import Law
from kernels.methods.masks import Masks
from kernels.methods.weights import Weights, no_tables

LOG2E = 1.4426950408889634
WORD = 32  # masks in a word
MAX_MASKS = 2 * WORD  # a kernel holds two words of a row


@dataclass(frozen=True)
class Tables:
    """Tables for the rows `origin` .. origin + N - 1, whole tiles. A table that the law does not
    need is empty.

    `sinks`: how many tokens every row sees with the weight of ALiBi, whatever the law; the rest is
    about other columns. `first`, `last`: (H, N) int32, the first and last visited column of each
    row, both non-decreasing in the row; with `causal` the row itself is the last, and `last` is
    empty. `order`: (H,) int32, the heads by falling number of visited pairs, as the slopes let
    expect. `slope`: (H,) float32, for base-2 exponentials. `bias`: (H, W) float32, log2 of the
    weight by distance 0 .. W - 1, at least those that a pair may have. `planes`: (H, N / tile,
    words, log2(tile), tile) int32. `corners`: (H, N / tile, 4, S) int32: start and end of the block
    of a tile's first token, then start and end of the block of its last token. With `causal` no
    start lies among the sinks. `share`: (H, words * 4, 256) float32, what the masks of each byte of
    a word add to S times the weight.
    """

    law: Law
    tile: int
    masks: int
    sinks: int
    origin: int
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
    def tensors(self) -> list[torch.Tensor]:
        """All tables, in the order of the fields."""
        return [self.first, self.last, self.order, self.slope, self.bias, self.planes, self.corners, self.share]

    @property
    def bytes(self) -> int:
        """Memory of all tables."""
        return sum(x.numel() * x.element_size() for x in self.tensors)


def law_of(weights: Weights) -> Law:
    """`Weights.law`. Raises ValueError for weights without one."""
    if weights.law is None:
        raise ValueError(no_tables(weights))
    return weights.law


def reach_of(weights: Weights, tokens: int) -> int:
    """How many distances, from 0 on, a pair that is no sink's may have among `tokens`."""
    return tokens if weights.span is None else min(tokens, weights.span + 1)


def whole_tiles(tokens: int, tile: int) -> int:
    """`tokens` rounded up to tiles."""
    return -(-tokens // tile) * tile


def build_tables(
    weights: Weights, tokens: int, *, tile: int, causal: bool, device: torch.device | str, origin: int = 0
) -> Tables:
    """Tables for rows origin .. tokens - 1 and columns 0 .. tokens - 1. `tile`: a power of two, the
    rows and columns of a kernel's tiles; `origin` a multiple of it. The reference of
    `kernels.impl.triton.ops.tables_on_device`."""
    device = torch.device(device)
    law, masks = law_of(weights), weights.count
    slopes = weights.slopes.to(device)
    shares = weights.mask_set().log_weight.exp().to(device) if masks else slopes[:, None]
    order, slope, share = fixed_tables(law, slopes, shares)
    tables = Tables(
        law=law, tile=tile, masks=masks, sinks=weights.sinks, origin=origin, order=order, slope=slope, share=share,
        bias=bias_of(weights, whole_tiles(tokens, tile), slopes),
        **empty_tables(law, masks, origin, tokens, tile, causal, weights.heads, device),
    )  # fmt: skip
    rows = origin + torch.arange(tables.first.shape[1], device=device)
    for head in range(weights.heads):  # one head at a time: S masks in float64 take S times the memory of a row
        low, high = weights.reach(torch.tensor([head], device=device), rows[None])
        tables.first[head] = low[0]
        if not causal:
            tables.last[head] = high[0].clamp_max(tokens - 1)
    if law.per_mask:
        _fill_planes(tables.planes, weights.mask_set(), rows, tile)
        _fill_corners(tables.corners, weights.mask_set(), rows, tile, weights.sinks if causal else 0)
    return tables


def empty_tables(
    law: Law, masks: int, origin: int, tokens: int, tile: int, causal: bool, heads: int, device: torch.device
) -> dict[str, torch.Tensor]:
    """`first`, `last`, `planes` and `corners` of Tables, not yet written; `masks` 0 for weights
    without any."""
    assert tile & (tile - 1) == 0 and 0 <= origin < tokens and origin % tile == 0
    padded, words, counted = whole_tiles(tokens - origin, tile), -(-masks // WORD), law.per_mask

    def make(*shape: int, wanted: bool = True) -> torch.Tensor:
        return torch.empty(shape if wanted else 0, dtype=torch.int32, device=device)

    return {
        "first": make(heads, padded),
        "last": make(heads, padded, wanted=not causal),
        "planes": make(heads, padded // tile, words, max(1, tile.bit_length() - 1), tile, wanted=counted),
        "corners": make(heads, padded // tile, 4, masks, wanted=counted),
    }


def fixed_tables(
    law: Law, slopes: torch.Tensor, shares: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """`Tables.order`, `slope` and `share`, which are the same for every call: from the slopes (H,)
    float64 and the masks' weights (H, S) float64, empty where there are no masks. The flatter a
    head, the more it visits."""
    share = slopes.new_empty(0, dtype=torch.float32)
    if law is Law.SUM:
        words = -(-shares.shape[1] // WORD)
        each = torch.nn.functional.pad(shares, (0, words * WORD - shares.shape[1])).unflatten(1, (-1, 8))
        held = torch.arange(256, device=each.device)[:, None] >> torch.arange(8, device=each.device) & 1
        share = (each @ held.to(each.dtype).T).float()
    return slopes.argsort(stable=True).int(), (slopes * LOG2E).float(), share


# what draws that live have in common: `bias_of`
_SHARED: weakref.WeakValueDictionary[tuple, torch.Tensor] = weakref.WeakValueDictionary()


def bias_of(weights: Weights, tokens: int, slopes: torch.Tensor) -> torch.Tensor:
    """`Tables.bias` among so many tokens, empty where the law is not "distance"; `slopes` (H,)
    float64 those of the weights, on the device. It is the same for every draw and layer, and stays
    as long as one of them lives: built at every call it would take decoding more launches than the
    rest. What a CUDA graph that is being captured makes is not kept: it is in the graph's memory,
    and not computed before a replay."""
    if law_of(weights) is not Law.DISTANCE:
        return slopes.new_empty(0, dtype=torch.float32)
    width = 1 << (reach_of(weights, tokens) - 1).bit_length()  # few lengths for a context that grows
    kept, place = vars(weights).setdefault("_bias", {}), (slopes.device, width)
    if place not in kept:
        key = (*place, weights.kind.sampler, weights.count, *weights.slopes.tolist())
        found = _SHARED.get(key)
        if found is None:
            with torch.inference_mode(False), torch.no_grad():
                found = bias_by_distance(slopes, weights.count, weights.kind.sampler, width)
            if capturing(slopes.device):
                return found
            _SHARED[key] = found
        kept[place] = found
    return kept[place]


def capturing(device: torch.device) -> bool:
    """Whether a CUDA graph is being captured there."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def bias_by_distance(slopes: torch.Tensor, masks: int, sampler: str, width: int) -> torch.Tensor:
    """log2 of the "rb" weight at distances 0 .. width - 1, by slopes (H,) float64: (H, width)
    float32."""
    t = slopes[:, None] * torch.arange(width, device=slopes.device)
    return ((-t - log_coverage(t, masks, sampler)) * LOG2E).float()


def _fill_planes(planes: torch.Tensor, masks: Masks, rows: torch.Tensor, tile: int) -> None:
    heads, _, words, depth, _ = planes.shape
    bit = torch.ones(WORD, dtype=torch.int64, device=rows.device) << torch.arange(WORD, device=rows.device)
    for head in range(heads):
        start = masks.starts(torch.tensor([head], device=rows.device), rows[None])[0]
        place = (start - (rows // tile * tile)[:, None]).clamp_min_(0).view(-1, tile, start.shape[1])
        for word in range(words):
            some = place[..., word * WORD : (word + 1) * WORD]
            for k in range(depth):
                planes[head, :, word, k] = _as_int32((((some >> k) & 1) * bit[: some.shape[2]]).sum(2))


def _fill_corners(corners: torch.Tensor, masks: Masks, rows: torch.Tensor, tile: int, least: int) -> None:
    """least: a start before it counts as this column."""
    heads = torch.arange(len(corners), device=rows.device)
    largest = torch.iinfo(torch.int32).max
    for pivot, token in enumerate((rows[::tile], rows[tile - 1 :: tile])):
        each = token[None].expand(len(heads), -1)
        start = masks.starts(heads, each).clamp_min_(least)
        corners[:, :, 2 * pivot] = start.int()
        corners[:, :, 2 * pivot + 1] = masks.ends(heads, each).clamp_max(largest).int()


def _as_int32(word: torch.Tensor) -> torch.Tensor:
    """Words of 32 bits held in int64, as int32 of the same bits."""
    return torch.where(word >= 1 << 31, word - (1 << 32), word).int()
