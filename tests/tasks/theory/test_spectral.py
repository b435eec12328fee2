"""Norms without n x n memory against numpy's dense ones."""

import math

import numpy as np
import pytest
import torch

from harness.tasks.theory import spectral
from kernels import Alibi, PositionalLSH, Window
from kernels.methods import bounds

SLOPES = torch.tensor([0.5, 0.11, 0.03])
N = 90
WEIGHTS = {
    "count": lambda **options: PositionalLSH.draw(SLOPES, 5, seed=1, **options),
    "rb": lambda **options: PositionalLSH.draw(SLOPES, 5, seed=2, weights="rb", **options),
    "systematic": lambda **options: PositionalLSH.draw(SLOPES, 8, seed=3, sampler="systematic", **options),
    "window": lambda **options: Window(SLOPES, 1.7, **options),
}


@pytest.fixture(autouse=True)
def several_pieces(monkeypatch):
    monkeypatch.setattr(spectral, "ROWS", 16)


def dense(weights, head: int, causal: bool) -> tuple[np.ndarray, np.ndarray]:
    """W - L and L by their definitions."""
    rows = torch.arange(N)
    w, exact = (x.log_dense(rows, rows)[head].exp().double() for x in (weights, Alibi(SLOPES)))
    w, exact = (x.tril() if causal else x for x in (w, exact))
    return (w - exact).numpy(), exact.numpy()


@pytest.mark.parametrize("options", [{}, {"sinks": 3}, {"near": 7}, {"sinks": 2, "near": 4}], ids=str)
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("name", WEIGHTS)
def test_norms_are_those_of_the_dense_matrix(name, causal, options, monkeypatch):
    weights = WEIGHTS[name](**options)
    for head in range(3):
        monkeypatch.setattr(spectral, "MAX_KEPT", 0 if head == 1 else 1 << 20)  # without and with kept pieces
        norms = spectral.Head(weights, head, N, causal=causal).norms()
        error, exact = dense(weights, head, causal)
        assert norms.exact == pytest.approx(np.linalg.norm(exact, 2), rel=1e-4)
        assert norms.error == pytest.approx(np.linalg.norm(error, 2), rel=1e-3)
        assert norms.largest == pytest.approx(np.abs(error).max(), rel=1e-5)


def test_exact_weights_have_no_error():
    assert spectral.Head(Alibi(SLOPES), 1, N, causal=True).norms().error == 0


def test_psi_holds_the_norm_of_an_unbounded_sequence():
    """||L||_2 of n tokens approaches sum over d of exp(-|d| m) = coth(m / 2) from below."""
    norms = spectral.Head(Alibi(SLOPES), 0, 2000, causal=False).norms()
    limit = bounds.psi(2.0) - 3
    assert limit == pytest.approx(1 / math.tanh(0.25))
    assert norms.exact == pytest.approx(limit, rel=1e-4)


def test_bounds_at_numbers_computed_by_hand():
    """sigma = 1: Psi = 2 + (e + 1) / (e - 1) = 4.16395; n = 100, S = 4."""
    psi = 2 + (math.e + 1) / (math.e - 1)
    assert bounds.psi(1.0) == pytest.approx(psi)
    rate = math.log(100) / 4
    assert bounds.spectral_expectation_bound(1.0, 100, 4) == pytest.approx(psi * (rate**0.5 + rate))
    assert bounds.spectral_tail_bound(1.0, 100, 4, 50.0) == pytest.approx(
        100 * math.exp(-4 * 2500 / (4 * psi * (4 * psi + 50)))
    )
