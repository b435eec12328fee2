"""The integer tables of the fused kernels against the definition of the masks, pair by pair."""

import math

import pytest
import torch

from kernels import Alibi, PositionalLSH, Window
from kernels.impl.tables import WORD, build_tables

SLOPES = torch.logspace(3, -9, 5, base=2.0, dtype=torch.float64)
TOKENS, TILE = 141, 16


def bits(word: torch.Tensor, count: int) -> torch.Tensor:
    """The lowest `count` bits of int32 words, as a last dimension."""
    return (word[..., None].long() >> torch.arange(count)) & 1 == 1


def held(tables, masks: int) -> torch.Tensor:
    """(H, N, N, masks): which masks hold each pair, as a kernel reads it from the tables."""
    heads, padded = tables.first.shape
    tile = torch.arange(padded) // tables.tile
    result = torch.empty(heads, padded, padded, masks, dtype=torch.bool)
    position = torch.arange(padded)
    for s in range(masks):
        plane = tables.bitplanes[:, :, s // WORD].transpose(2, 3).reshape(heads, padded, -1)
        rank = (bits(plane, WORD)[..., s % WORD]).long() @ (1 << torch.arange(plane.shape[-1]))
        same_tile = rank[:, :, None] == rank[:, None, :]
        start, end, last_start, last_end = tables.pivot_blocks[:, tile, :, s].permute(2, 0, 1)[..., None]
        before = (position[:, None] < end) & (position[None, :] >= start)
        after = (position[:, None] >= last_start) & (position[None, :] < last_end)
        result[..., s] = torch.where(
            tile[:, None] == tile[None, :], same_tile, torch.where(tile[:, None] > tile[None, :], before, after)
        )
    return result


@pytest.mark.parametrize("masks", [1, 5, 32, 33, 64])
@pytest.mark.parametrize("sampler", ["gamma", "systematic", "fixed"])
def test_bitplanes_and_pivot_blocks_hold_the_pairs_that_the_masks_hold(masks: int, sampler: str):
    weights = PositionalLSH.draw(SLOPES, masks, seed=3, sampler=sampler)
    tables = build_tables(weights, TOKENS, tile=TILE, causal=False, device="cpu")
    position = torch.arange(tables.first.shape[1])
    bucket = weights.masks.bucket(torch.arange(5), position[None].expand(5, -1))
    assert torch.equal(held(tables, masks), bucket[:, :, None] == bucket[:, None, :])
    if tables.law == "sum":
        pattern = torch.tensor([0, 1, 6, 255])
        mask_weights = torch.nn.functional.pad(
            weights.masks.log_weight.exp(), (0, tables.byte_weights.shape[1] * 8 - masks)
        )
        sums = (bits(pattern, 8) * mask_weights.view(5, -1, 1, 8)).sum(-1)
        assert (tables.byte_weights[:, :, pattern] - sums).abs().max() < 1e-6 * sums.max()
        assert not bool(tables.byte_weights[:, -(-masks // 8) :].any())


@pytest.mark.parametrize(
    "weights, law",
    [
        (Alibi(SLOPES), "linear"),
        (Window(SLOPES, 2.5), "linear"),
        (PositionalLSH.draw(SLOPES, 4, seed=3, weights="exact"), "linear"),
        (PositionalLSH.draw(SLOPES, 4, seed=3, weights="rb"), "rb"),
        (PositionalLSH.draw(SLOPES, 4, seed=3, weights="rb", sampler="systematic"), "distance"),
        (PositionalLSH.draw(SLOPES, 4, seed=3), "count"),
        (PositionalLSH.draw(SLOPES, 4, seed=3, sampler="systematic"), "sum"),
    ],
)
@pytest.mark.parametrize("causal", [True, False])
def test_reach_and_bias_are_those_of_the_dense_weights(weights, law: str, causal: bool):
    tables = build_tables(weights, TOKENS, tile=TILE, causal=causal, device="cpu")
    assert tables.law == law and tables.causal == causal
    row = torch.arange(TOKENS)
    log_w = weights.log_dense(row, row)
    visited = log_w > -math.inf
    if causal:
        visited = visited.tril()
    first = visited.long().argmax(-1)
    assert torch.equal(tables.first[:, :TOKENS].long(), first)
    pairs = visited.sum((1, 2))
    assert bool((pairs[tables.order.long()].diff() <= 0).all())
    if not causal:
        assert torch.equal(tables.last[:, :TOKENS].long(), TOKENS - 1 - visited.flip(-1).long().argmax(-1))
    if law == "distance":
        apart = (row[:, None] - row[None, :]).abs()
        for head in range(5):
            error = tables.bias[head, apart[visited[head]]] - log_w[head][visited[head]] / math.log(2)
            assert error.abs().max() < 1e-5
    later = build_tables(weights, TOKENS, tile=TILE, causal=causal, device="cpu", origin=2 * TILE)
    for name in ("first", "last") if not causal else ("first",):
        assert torch.equal(getattr(later, name), getattr(tables, name)[:, 2 * TILE :])
    if law in ("count", "sum"):
        assert torch.equal(later.bitplanes, tables.bitplanes[:, 2:])
        assert torch.equal(later.pivot_blocks, tables.pivot_blocks[:, 2:])
