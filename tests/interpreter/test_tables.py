"""The tables that the Triton kernel builds are those of torch, bit by bit."""

import pytest
import torch
import triton
import triton.language as tl

from kernels import Alibi, PositionalLSH, Window
from kernels.impl.tables import Tables, build_tables
from kernels.impl.triton.decode import _starts
from kernels.impl.triton.ops import tables_on_device
from kernels.impl.triton.packed import packed_on_device
from kernels.impl.triton.weights import lanes
from kernels.methods.masks import Masks

CPU = torch.device("cpu")
SLOPES = torch.logspace(3, -9, 3, base=2.0, dtype=torch.float64)
TOKENS = 141


def lsh(masks: int, sampler: str, weights: str, sinks: int = 0, near: int = 0) -> PositionalLSH:
    return PositionalLSH.draw(SLOPES, masks, seed=3, sampler=sampler, weights=weights, sinks=sinks, near=near)


ALL = {
    "alibi": Alibi(SLOPES),
    "window": Window(SLOPES, 2.5, 3),
    "exact": lsh(5, "gamma", "exact"),
    "rb": lsh(100, "gamma", "rb", 40),
    "distance": lsh(6, "systematic", "rb"),
    "count 1": lsh(1, "gamma", "count"),
    "count 33": lsh(33, "gamma", "count", 3),
    "count 64": lsh(64, "gamma", "count"),
    "sum": lsh(16, "systematic", "count", 40),
    "fixed": lsh(4, "fixed", "count"),
    "near, exact": lsh(5, "gamma", "exact", near=16),
    "near, count": lsh(5, "gamma", "count", 3, 100),
    "near, distance": lsh(6, "systematic", "rb", near=64),
    "grid": PositionalLSH.draw(SLOPES, 33, seed=3, sinks=3, align=24),
    "grid, sum": PositionalLSH.draw(SLOPES, 16, seed=3, sampler="systematic", align=32),
}


def same(got: Tables, true: Tables) -> None:
    for name, value in vars(true).items():
        own = getattr(got, name)
        if isinstance(value, torch.Tensor):
            assert own.dtype == value.dtype and torch.equal(own, value), name
        else:
            assert own == value, name


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("name", ALL)
def test_tables(name: str, causal: bool):
    tile = 64 if causal else 32
    for origin in (0, 64):
        got = tables_on_device(ALL[name], TOKENS, tile=tile, causal=causal, device=CPU, origin=origin)
        same(got, build_tables(ALL[name], TOKENS, tile=tile, causal=causal, device=CPU, origin=origin))


@triton.jit
def starts_kernel(Numbers, Rows, Out, MASKS: tl.constexpr, LANES: tl.constexpr, GRID: tl.constexpr):
    place, lane = tl.arange(0, 16), tl.arange(0, LANES)
    for begin in range(0, MASKS, LANES):
        found = _starts(Numbers, tl.program_id(0).to(tl.int64), tl.load(Rows + place), begin, MASKS, LANES, GRID)
        to = Out + (tl.program_id(0) * 16 + place)[:, None] * MASKS + begin + lane[None, :]
        tl.store(to, found, mask=(begin + lane < MASKS)[None, :])


def check_starts(weights: PositionalLSH, rows: list[int]) -> torch.Tensor:
    """Decoding makes the starts of its rows itself: as the masks have them."""
    heads, masks = weights.heads, weights.count
    got, own = torch.empty(heads, 16, masks, dtype=torch.int32), torch.tensor(rows)
    numbers, grid = packed_on_device(weights, CPU).numbers, weights.masks.grid is not None
    starts_kernel[(heads,)](numbers, own.int(), got, MASKS=masks, LANES=lanes(masks), GRID=grid)
    assert torch.equal(got.long(), weights.masks.starts(torch.arange(heads), own[None].expand(heads, -1)))
    return got


@pytest.mark.parametrize("name", [name for name, weights in ALL.items() if isinstance(weights, PositionalLSH)])
def test_starts_of_rows(name: str):
    check_starts(ALL[name], [0, 1, 77, 140, 140, 3, *range(100, 110)])


def test_edges_that_fall_on_whole_positions():
    """Where rounding could move a block's edge across a token: widths and shifts whose multiples
    are nearly whole."""
    width = torch.tensor([[0.1, 0.7, 1.1, 3.0, 1 / 3, 2.5]], dtype=torch.float64)
    shift = torch.tensor([[0.3, 0.1, 0.9, 1.0, 0.2, 0.5]], dtype=torch.float64)
    weights = PositionalLSH(SLOPES[:1], Masks(width, shift, torch.zeros_like(width)), "gamma", "count")
    for causal in (True, False):
        same(
            tables_on_device(weights, 1000, tile=64, causal=causal, device=CPU),
            build_tables(weights, 1000, tile=64, causal=causal, device=CPU),
        )
    for begin in range(0, 320, 16):
        check_starts(weights, list(range(begin, begin + 16)))


def test_positions_beyond_what_float32_holds():
    rows = [2**24 + 1, 2**24 + 3, *range(2**26 + 5, 2**26 + 19)]
    assert len(check_starts(PositionalLSH.draw(SLOPES, 16, seed=1), rows).unique()) > 10
