"""task=theory against dense matrices, and the laws that the paper and theory state, at fixed
seeds."""

import math

import numpy as np
import pytest
import torch

from harness.analysis import reader
from harness.tasks.theory import task
from kernels import Alibi, PositionalLSH, Window, alibi_slopes


def words(results, *more: str) -> list[str]:
    return ["model=random", "task=theory", "context=256", f"results={results}", "tracking=disabled", *more]


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("options", [{}, {"sinks": 4}, {"near": 9}], ids=str)
def test_output_errors_are_those_of_dense_attention(options, causal):
    slopes, n, head = alibi_slopes(4), 320, 2
    weights, exact = PositionalLSH.draw(slopes, 6, seed=4, **options), Alibi(slopes)
    errors = task.output_errors(weights, exact, head, n, seed=3, causal=causal)
    generator = torch.Generator().manual_seed(3000 + head)
    q, k, v = (torch.randn(n, task.HEAD_DIM, generator=generator) for _ in range(3))
    shifted = v + torch.randn(task.HEAD_DIM, generator=generator)
    rows = torch.arange(n)
    chosen = torch.cat([torch.arange(n * (b + 1) // 8 - 32, n * (b + 1) // 8) for b in range(8)])
    dense = []
    for w in (exact, weights):
        matrix = w.log_dense(rows, rows)[head].exp()
        matrix = matrix.tril() if causal else matrix
        p = (q.double() @ k.double().T / 8).exp() * matrix
        dense.append(p / p.sum(1, keepdim=True))
    for name, values in (("output_error", v), ("output_error_common_mean", shifted)):
        true, changed = ((p @ values.double())[chosen] for p in dense)
        assert errors[name] == pytest.approx(float((changed - true).norm() / true.norm()), rel=1e-3)
    true, changed = ((p @ v.double())[chosen] for p in dense)
    relative = ((changed - true).norm(dim=1) / true.norm(dim=1)).numpy()
    assert errors["row_errors"] == pytest.approx(np.quantile(relative, [0.5, 0.9, 0.99]), rel=1e-3)
    cosines = [float(a @ b / a.norm() / b.norm()) for a, b in zip(true, changed, strict=True)]
    assert errors["cosine"] == pytest.approx(sum(cosines) / len(cosines), rel=1e-4)


def test_a_row_for_each_head_and_draw(run, tmp_path):
    code, document, _, err = run(*words(tmp_path, "draws=3", "masks=4"))
    assert code == 0, err
    record, window = (next(r for r in reader.records(tmp_path) if r.attention.name == n) for n in ("plsh", "window"))
    heads = record.cell.architecture["heads"]
    assert {(row.draw, row.more["head"]) for row in record.rows.values()} == {
        (d, h) for d in range(3) for h in range(heads)
    }
    assert sorted(row.more["head"] for row in window.rows.values()) == list(range(heads))
    for row in record.rows.values():
        sigma = 1 / float(alibi_slopes(heads)[row.more["head"]])
        assert row.more["sigma"] == pytest.approx(sigma)
        assert 0 < row.more["spectral_error"] < row.more["expectation_bound"] * 5
    errors = [row.score for row in record.rows.values() if row.more["head"] == 1]
    metric = document["metrics"]["theory/spectral_error_head_2"]
    assert metric["value"] == pytest.approx(sum(errors) / 3)
    assert "expectation_bound" not in next(iter(window.rows.values())).more


def test_the_checkpoints_own_attention_has_no_weights(run, tmp_path):
    code, document, _, err = run(*words(tmp_path, "attn=stock", "references=none"))
    assert (code, document["status"]) == (2, "invalid")
    assert "attn=stock has none" in err


@pytest.mark.parametrize("attn", ["attn=topk", "attn=window attn.stagger=true"])
def test_attentions_that_one_layer_of_weights_does_not_describe(run, tmp_path, attn):
    code, _, _, err = run(*words(tmp_path, *attn.split(), "references=none"))
    assert code == 2
    assert ("depend on the scores" if "topk" in attn else "measures one layer") in err


@pytest.mark.parametrize("bad", ["context=255"])
def test_a_context_that_is_too_short(run, tmp_path, bad):
    code, _, _, err = run(*words(tmp_path, bad, "references=none"))
    assert code == 2
    assert "at least 256 tokens" in err


def errors_of(weights, head: int, n: int, seed: int) -> dict:
    return task.output_errors(weights, Alibi(weights.slopes), head, n, seed, causal=True)


def test_the_output_error_of_a_window_is_the_root_of_two_times_exp_of_minus_t():
    """For rows far from the start, sigma >> 1 and zero-mean values: sqrt(2) exp(-T) to leading order."""
    slopes = torch.tensor([1 / 16])
    for cutoff in (2.0, 3.0):
        errors = [errors_of(Window(slopes, cutoff), 0, 2048, seed)["output_error"] for seed in range(8)]
        assert np.mean(errors) == pytest.approx(math.sqrt(2) * math.exp(-cutoff), rel=0.12)


def test_rao_blackwell_weights_need_fewer_masks():
    """16 masks under "rb" have the error of at least 40 of the paper's (error ~ 1 / sqrt(S))."""
    slopes = torch.tensor([1 / 16])
    squares = {}
    for kind in ("count", "rb"):
        draws = [PositionalLSH.draw(slopes, 16, seed=seed, weights=kind) for seed in range(16)]
        squares[kind] = [errors_of(w, 0, 2048, seed)["output_error"] ** 2 for seed, w in enumerate(draws)]
    equivalent = 16 * np.mean(squares["count"]) / np.mean(squares["rb"])
    assert equivalent >= 40
