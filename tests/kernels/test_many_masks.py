"""Pieces of the count of many masks, which are summed block by block, against the definition."""

import math

import pytest
import torch

from kernels import PositionalLSH
from kernels.methods import plsh

SLOPES = torch.tensor([0.7, 1 / 16, 1 / 300], dtype=torch.float64)


@pytest.mark.parametrize("options", [{}, {"sinks": 5}, {"near": 9}, {"sinks": 3, "near": 4}, {"align": 8}], ids=str)
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("row, first, width", [(0, 0, 90), (37, 0, 70), (37, 41, 30), (60, 2, 7)])
def test_a_piece_is_the_dense_count(row, first, width, causal, options, monkeypatch):
    monkeypatch.setattr(plsh, "MANY_MASKS", 1)
    weights = PositionalLSH.draw(SLOPES, 40, seed=3, **options)
    heads, rows, columns = torch.tensor([2, 0, 1]), torch.arange(row, row + 20), torch.arange(first, first + width)
    found = weights.log_piece(heads, rows.expand(3, -1), torch.tensor([first] * 3), width, causal)
    expected = weights.log_dense(rows, columns)[heads]
    hidden = (columns < weights.sinks) | ((columns > rows[:, None]) if causal else torch.tensor(False))
    torch.testing.assert_close(found.double(), expected.masked_fill(hidden, -math.inf), atol=1e-6, rtol=1e-6)


def test_a_hundred_thousand_masks_estimate_the_weights():
    weights = PositionalLSH.draw(SLOPES[2:], 100_000, seed=1)
    piece = weights.log_piece(torch.tensor([0]), torch.arange(512)[None], torch.tensor([0]), 512, True)[0]
    at = torch.arange(512)
    error = (piece.exp() - torch.exp(-(at[:, None] - at) / 300.0).tril()).abs()
    assert error.max() < 5 * 0.5 / 100_000**0.5  # standard error of a share of 1/2
