"""The worst case of approximate weights, against closed forms and searches that know nothing of it."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import differential_evolution

from harness.analysis import reader
from harness.tasks.theory import worst
from kernels import Alibi, PositionalLSH


def total_variation(log_exact, log_changed, scores) -> float:
    p, q = (np.exp(log + scores) for log in (log_exact, log_changed))
    return float(np.abs(p / p.sum() - q / q.sum()).sum() / 2)


@pytest.mark.parametrize("seed", range(8))
def test_no_search_over_the_scores_finds_a_larger_variation(seed):
    generator = np.random.default_rng(seed)
    keys, r = 5, [0.3, 1.0, 2.5][seed % 3]
    log_exact, log_changed = -generator.exponential(1, keys), -generator.exponential(1, keys)
    if seed % 2:
        log_changed[3] = -np.inf
    found = worst.largest_variation(log_exact, log_changed, r)
    search = differential_evolution(
        lambda s: -total_variation(log_exact, log_changed, s), [(-r, r)] * keys, seed=seed, tol=1e-10, maxiter=300
    )
    assert found == pytest.approx(-search.fun, abs=2e-5)


@pytest.mark.parametrize("kappa", [1.5, 10.0, 1e4])
@pytest.mark.parametrize("odds", [0.2, 1.0, 30.0])
def test_two_keys_have_a_closed_form(kappa, odds):
    """With odds o of the exact weights, between exp(-2r) and exp(2r) times their own, those of the
    approximate ones are kappa o; the variation is largest at o = kappa ** -1/2."""
    for r in (0.1, 0.8, 5.0):
        o = min(max(kappa**-0.5, odds * math.exp(-2 * r)), odds * math.exp(2 * r))
        expected = kappa * o / (1 + kappa * o) - o / (1 + o)
        found = worst.largest_variation(np.log([odds, 1.0]), np.log([odds * kappa, 1.0]), r)
        assert found == pytest.approx(expected, rel=1e-5)


def test_without_a_bound_on_the_scores_the_extreme_ratios_decide():
    generator = np.random.default_rng(3)
    log_exact, change = -0.1 * np.arange(30.0), generator.uniform(-1, 1, 30)
    root = math.exp((change.max() - change.min()) / 2)
    found = worst.largest_variation(log_exact, log_exact + change, 40)
    assert found == pytest.approx((root - 1) / (root + 1), rel=1e-6)
    change[7] = -np.inf
    assert worst.largest_variation(log_exact, log_exact + change, 40) == pytest.approx(1, abs=1e-6)


def test_a_common_factor_changes_nothing():
    log_exact = -0.2 * np.arange(20.0)
    assert worst.largest_variation(log_exact, log_exact + 0.7, 3.0) == pytest.approx(0, abs=1e-12)


def row_weights(tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    slopes, at = torch.tensor([1 / 16]), torch.arange(tokens)
    exact, masks = Alibi(slopes), PositionalLSH.draw(slopes, 8, seed=1)
    return exact.log_dense(at[-1:], at)[0].float(), masks.log_dense(at[-1:], at)[0].float()


@pytest.mark.parametrize("r", [0.5, 2.0])
def test_the_gradient_reaches_the_worst_case_of_one_row(r):
    log_exact, log_changed = row_weights(64)
    largest = worst.largest_variation(log_exact[0].double().numpy(), log_changed[0].double().numpy(), r)
    found = float(worst.adversary(log_exact, log_changed, r, dim=16, seed=0)[0])
    assert 0.97 * largest < found < largest * (1 + 1e-5)


def words(results, *more: str) -> list[str]:
    return ["model=random", "task=theory", "context=256", f"results={results}", "tracking=disabled", *more]


def test_ranges_are_measured_on_request(run, tmp_path, monkeypatch):
    monkeypatch.setattr(worst, "STEPS", 20)
    given = words(tmp_path, "draws=1", "masks=8", "references=none", "task.theory.score_ranges=[1,4]")
    code, document, _, err = run(*given)
    assert code == 0, err
    metrics = {name.removeprefix("theory/"): m["value"] for name, m in document["metrics"].items()}
    assert 0 < metrics["variation_gaussian"] < metrics["variation_worst_4"] <= 1
    for r in ("1", "4"):
        assert metrics[f"variation_found_{r}"] <= metrics[f"variation_worst_{r}"] * (1 + 1e-5)
    assert metrics["variation_worst_1"] < metrics["variation_worst_4"]
    assert run(*words(tmp_path, "draws=1", "masks=8", "references=none"))[0] == 0
    ids = {(r.cell_id, r.store.task_id) for r in reader.records(tmp_path)}
    assert len(ids) == 2
    assert len({cell for cell, _ in ids}) == 1


def test_ranges_are_positive_numbers(run, tmp_path):
    code, _, _, err = run(*words(tmp_path, "references=none", "task.theory.score_ranges=[0]"))
    assert code == 2
    assert "task.theory.score_ranges must be numbers above 0" in err
