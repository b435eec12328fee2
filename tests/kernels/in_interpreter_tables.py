"""The tables that the Triton kernel builds are those of torch, bit by bit. Run by test_triton.py."""

import pytest
import torch

from kernels import Alibi, PositionalLSH, Window
from kernels.masks import Masks
from kernels.tables import RowTables, Tables, build_row_tables, build_tables
from kernels.triton_ops import numbers_on, row_tables, tables_on_device

CPU = torch.device("cpu")
SLOPES = torch.logspace(3, -9, 3, base=2.0, dtype=torch.float64)
TOKENS = 141


def lsh(masks: int, sampler: str, weights: str, sinks: int = 0) -> PositionalLSH:
    return PositionalLSH.draw(SLOPES, masks, seed=3, sampler=sampler, weights=weights, sinks=sinks)


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
}


def same(got: Tables | RowTables, true: Tables | RowTables) -> None:
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


@pytest.mark.parametrize("name", ALL)
def test_row_tables(name: str):
    rows = torch.tensor([0, 1, 77, 140, 140, 3, *range(100, 117)])
    *numbers, kind = numbers_on(ALL[name], CPU)
    true = build_row_tables(ALL[name], rows, TOKENS)
    same(row_tables(*numbers, true.bias, rows, **kind), true)


def test_edges_that_fall_on_whole_positions():
    """Where rounding could move a block's edge across a token: widths and shifts whose multiples are nearly whole."""
    width = torch.tensor([[0.1, 0.7, 1.1, 3.0, 1 / 3, 2.5]], dtype=torch.float64)
    shift = torch.tensor([[0.3, 0.1, 0.9, 1.0, 0.2, 0.5]], dtype=torch.float64)
    weights = PositionalLSH(SLOPES[:1], Masks(width, shift, torch.zeros_like(width)), "gamma", "count")
    for causal in (True, False):
        same(
            tables_on_device(weights, 1000, tile=64, causal=causal, device=CPU),
            build_tables(weights, 1000, tile=64, causal=causal, device=CPU),
        )


def test_positions_beyond_what_float32_holds():
    rows = torch.tensor([2**24 + 1, 2**24 + 3, 2**26 + 5])
    weights = PositionalLSH.draw(SLOPES, 16, seed=1)
    *numbers, kind = numbers_on(weights, CPU)
    got = row_tables(*numbers, torch.empty(0), rows, **kind)
    assert torch.equal(got.starts.long(), weights.masks.starts(torch.arange(3), rows[None].expand(3, -1)))
    assert len(got.starts.unique()) > 10
