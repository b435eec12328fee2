"""Weights as integer tables for a fused kernel, built once per set of masks in float64 and 64-bit
positions. On a GPU one Triton kernel builds them (`kernels.impl.triton.tables`); the functions here
are its reference.

A kernel that walks over tiles of `tile` tokens needs to know where the visited keys of each row
begin and end, and the weight of each visited pair. The weight follows one of five laws
(`kernels.methods.laws.Law`):

* "linear" (alibi, window, exact on the union): the bias is -slope * distance;
* "rb" (independent masks): the weight is a formula of exp(-slope * distance) and S;
* "distance" (rb of other samplers): the bias is read from a table by distance;
* "count" (the paper's weights, equal masks): the weight is the number of masks that cover the pair;
* "sum" (masks with weights of their own): the weight is the sum of these masks' weights.

The masks that cover a pair are the bits of a word, 32 masks to a word. They are found without
comparing S block starts for each pair:

* *inside a tile* (diagonal) by `bitplanes`: bit s of plane k is bit k of the rank of the row's
  block in mask s, which is the block's start within the tile, 0 for a start before the tile. Two
  tokens of the tile share the block iff their ranks agree: log2(tile) planes tell the blocks apart.
* *across tiles* by a pivot: a block that reaches from a key before the tile to a row in the tile
  contains the tile's first token, the pivot. So it contains row i iff ``i < end`` and key j iff
  ``start <= j``, with start and end of the pivot's own block: S pairs of numbers per tile
  (`pivot_blocks`). For keys after the tile the pivot is the tile's last token.
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
MAX_MASKS = 2 * WORD  # that a kernel counts pair by pair: it keeps two words of a row


@dataclass(frozen=True)
class Tables:
    """Tables for the rows `origin` .. origin + N - 1, whole tiles. A table that the law does not
    need is empty.

    * `sinks`: number of first tokens that every row sees with ALiBi's weight, whatever the law. The
      other tables describe the columns after them.
    * `first`, `last`: (H, N) int32, the first and last visited column of each row, non-decreasing
      in the row. With `causal` the row itself is the last column, and `last` is empty.
    * `near`: number of nearest keys that have ALiBi's weight whatever the masks say, 0 without masks:
      the other weights know their near field by themselves.
    * `order`: (H,) int32, the heads by falling number of visited pairs, as expected from the
      slopes.
    * `slope`: (H,) float32, for base-2 exponentials.
    * `bias`: (H, W) float32, log2 of the weight by distance 0 .. W - 1, at least the distances that
      a pair may have.
    * `bitplanes`: (H, N / tile, words, log2(tile), tile) int32.
    * `pivot_blocks`: (H, N / tile, 4, S) int32: start and end of the block of the tile's first
      token, then start and end of the block of its last token. With `causal` no start lies among
      the sinks.
    * `byte_weights`: (H, words * 4, 256) float32, S times the weight that the masks of each byte of
      a word add.
    """

    law: Law
    tile: int
    masks: int
    sinks: int
    near: int
    origin: int
    first: torch.Tensor
    last: torch.Tensor
    order: torch.Tensor
    slope: torch.Tensor
    bias: torch.Tensor
    bitplanes: torch.Tensor
    pivot_blocks: torch.Tensor
    byte_weights: torch.Tensor

    @property
    def causal(self) -> bool:
        """Whether the tables are for causal calls."""
        return self.last.numel() == 0

    @property
    def tensors(self) -> list[torch.Tensor]:
        """All tables, in the order of the fields."""
        return [
            self.first, self.last, self.order, self.slope, self.bias, self.bitplanes, self.pivot_blocks,
            self.byte_weights,
        ]  # fmt: skip

    @property
    def bytes(self) -> int:
        """Memory of all tables."""
        return sum(x.numel() * x.element_size() for x in self.tensors)


def law_of(weights: Weights) -> Law:
    """`Weights.law`. Raises ValueError for weights without a law."""
    if weights.law is None:
        raise ValueError(no_tables(weights))
    return weights.law


def near_of(weights: Weights) -> int:
    """`Tables.near`."""
    return weights.near if weights.count else 0


def distances_of(weights: Weights, tokens: int) -> int:
    """Number of distances, from 0 on, that a pair without a sink may have among `tokens`."""
    return tokens if weights.span is None else min(tokens, weights.span + 1)


def whole_tiles(tokens: int, tile: int) -> int:
    """`tokens` rounded up to a multiple of `tile`."""
    return -(-tokens // tile) * tile


def build_tables(
    weights: Weights, tokens: int, *, tile: int, causal: bool, device: torch.device | str, origin: int = 0
) -> Tables:
    """Builds the tables of the rows origin .. tokens - 1 and columns 0 .. tokens - 1: the reference
    of `kernels.impl.triton.ops.tables_on_device`.

    Args:
        weights: with a law.
        tokens: length of the context.
        tile: rows and columns of a kernel's tile, a power of two.
        causal: whether rows see no column after them.
        device: of the tables.
        origin: the first row, a multiple of `tile`.

    Raises:
        ValueError: for weights without a law.
    """
    device = torch.device(device)
    law, masks = law_of(weights), weights.count
    slopes = weights.slopes.to(device)
    mask_weights = weights.mask_set().log_weight.exp().to(device) if masks else slopes[:, None]
    order, slope, byte_weights = fixed_tables(law, slopes, mask_weights)
    tables = Tables(
        law=law, tile=tile, masks=masks, sinks=weights.sinks, near=near_of(weights), origin=origin, order=order,
        slope=slope, byte_weights=byte_weights, bias=bias_of(weights, whole_tiles(tokens, tile), slopes),
        **empty_tables(law, masks, origin, tokens, tile, causal, weights.heads, device),
    )  # fmt: skip
    rows = origin + torch.arange(tables.first.shape[1], device=device)
    for head in range(weights.heads):  # one head at a time: S masks in float64 take S times the memory of a row
        low, high = weights.reach(torch.tensor([head], device=device), rows[None])
        tables.first[head] = low[0]
        if not causal:
            tables.last[head] = high[0].clamp_max(tokens - 1)
    if law.per_mask:
        _fill_bitplanes(tables.bitplanes, weights.mask_set(), rows, tile)
        _fill_pivot_blocks(tables.pivot_blocks, weights.mask_set(), rows, tile, weights.sinks if causal else 0)
    return tables


def empty_tables(
    law: Law, masks: int, origin: int, tokens: int, tile: int, causal: bool, heads: int, device: torch.device
) -> dict[str, torch.Tensor]:
    """Returns `first`, `last`, `bitplanes` and `pivot_blocks` of Tables, not yet written.

    Args:
        law, masks: of the weights; 0 masks for weights without any.
        origin, tokens, tile, causal, device: as in `build_tables`.
        heads: number of heads.
    """
    assert tile & (tile - 1) == 0 and 0 <= origin < tokens and origin % tile == 0
    padded, words, counted = whole_tiles(tokens - origin, tile), -(-masks // WORD), law.per_mask

    def make(*shape: int, needed: bool = True) -> torch.Tensor:
        return torch.empty(shape if needed else 0, dtype=torch.int32, device=device)

    return {
        "first": make(heads, padded),
        "last": make(heads, padded, needed=not causal),
        "bitplanes": make(heads, padded // tile, words, max(1, tile.bit_length() - 1), tile, needed=counted),
        "pivot_blocks": make(heads, padded // tile, 4, masks, needed=counted),
    }


def fixed_tables(
    law: Law, slopes: torch.Tensor, mask_weights: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns `Tables.order`, `slope` and `byte_weights`, which are the same for every call.

    Args:
        law: of the weights.
        slopes: (H,) float64. The flatter a head, the more it visits.
        mask_weights: (H, S) float64; not read without masks.
    """
    byte_weights = slopes.new_empty(0, dtype=torch.float32)
    if law is Law.SUM:
        words = -(-mask_weights.shape[1] // WORD)
        padded = torch.nn.functional.pad(mask_weights, (0, words * WORD - mask_weights.shape[1])).unflatten(1, (-1, 8))
        bits = torch.arange(256, device=padded.device)[:, None] >> torch.arange(8, device=padded.device) & 1
        byte_weights = (padded @ bits.to(padded.dtype).T).float()
    return slopes.argsort(stable=True).int(), (slopes * LOG2E).float(), byte_weights


# bias tables shared by all live draws, see bias_of
_SHARED: weakref.WeakValueDictionary[tuple, torch.Tensor] = weakref.WeakValueDictionary()


def bias_of(weights: Weights, tokens: int, slopes: torch.Tensor) -> torch.Tensor:
    """Returns `Tables.bias` for a context of `tokens`, empty unless the law is "distance".

    The table is the same for every draw and layer, and is kept for as long as one of them lives:
    built at every call, it would cost decoding more launches than all the rest. A table made while
    a CUDA graph is being captured is not kept: it lies in the graph's memory, and is not computed
    before a replay.

    Args:
        weights: with a law.
        tokens: length of the context.
        slopes: the slopes of the weights, (H,) float64, on the device of the table.

    Raises:
        ValueError: for weights without a law.
    """
    if law_of(weights) is not Law.DISTANCE:
        return slopes.new_empty(0, dtype=torch.float32)
    width = 1 << (distances_of(weights, tokens) - 1).bit_length()  # few lengths for a context that grows
    kept, place = vars(weights).setdefault("_bias", {}), (slopes.device, width)
    if place not in kept:
        key = (*place, weights.kind.sampler, weights.count, weights.near, *weights.slopes.tolist())
        bias = _SHARED.get(key)
        if bias is None:
            with torch.inference_mode(False), torch.no_grad():
                bias = bias_by_distance(slopes, weights.count, weights.kind.sampler, width, weights.near)
            if capturing(slopes.device):
                return bias
            _SHARED[key] = bias
        kept[place] = bias
    return kept[place]


def capturing(device: torch.device) -> bool:
    """Whether a CUDA graph is being captured on the device."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def bias_by_distance(slopes: torch.Tensor, masks: int, sampler: str, width: int, near: int) -> torch.Tensor:
    """log2 of the "rb" weight by distance, and of ALiBi's weight within the near field: (H, width)
    float32.

    Args:
        slopes: (H,) float64, in 1/tokens, on the device of the result.
        masks: masks of each head.
        sampler: how they are drawn.
        width: number of distances, 0 .. width - 1.
        near: distances below it have ALiBi's weight.

    Raises:
        ValueError: for a sampler without `log_coverage`.
    """
    t = slopes[:, None] * torch.arange(width, device=slopes.device)
    log_covered = log_coverage(t, masks, sampler)
    log_covered[:, :near] = 0.0
    return ((-t - log_covered) * LOG2E).float()


def _fill_bitplanes(bitplanes: torch.Tensor, masks: Masks, rows: torch.Tensor, tile: int) -> None:
    heads, _, words, depth, _ = bitplanes.shape
    bit = torch.ones(WORD, dtype=torch.int64, device=rows.device) << torch.arange(WORD, device=rows.device)
    for head in range(heads):
        start = masks.starts(torch.tensor([head], device=rows.device), rows[None])[0]
        rank = (start - (rows // tile * tile)[:, None]).clamp_min_(0).view(-1, tile, start.shape[1])
        for word in range(words):
            ranks = rank[..., word * WORD : (word + 1) * WORD]
            for k in range(depth):
                bitplanes[head, :, word, k] = _as_int32((((ranks >> k) & 1) * bit[: ranks.shape[2]]).sum(2))


def _fill_pivot_blocks(pivot_blocks: torch.Tensor, masks: Masks, rows: torch.Tensor, tile: int, least: int) -> None:
    """least: a start before this column is moved to it."""
    heads = torch.arange(len(pivot_blocks), device=rows.device)
    largest = torch.iinfo(torch.int32).max
    for pivot, token in enumerate((rows[::tile], rows[tile - 1 :: tile])):
        tokens = token[None].expand(len(heads), -1)
        pivot_blocks[:, :, 2 * pivot] = masks.starts(heads, tokens).clamp_min_(least).int()
        pivot_blocks[:, :, 2 * pivot + 1] = masks.ends(heads, tokens).clamp_max(largest).int()


def _as_int32(word: torch.Tensor) -> torch.Tensor:
    """Words of 32 bits in int64 -> int32 with the same bits."""
    return torch.where(word >= 1 << 31, word - (1 << 32), word).int()
