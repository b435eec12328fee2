"""Every kernel against the oracle in float64, over the shared matrix of cases."""

import itertools
import math

import pytest
import torch

from kernels import attend
from tests.kernels.cases import CASES, FACTORS, KERNELS, Case

FULL = 2e-5  # absolute, for fp32 outputs and log-sum-exps of order 1 to 10


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_kernel_agrees_with_the_oracle(case: Case, kernel: str):
    weights, options = case.weights(), case.options()
    q, k, v = case.inputs()
    out, lse = attend(q, k, v, weights, kernel=kernel, return_lse=True, **options)
    true_out, true_lse = attend(q.double(), k.double(), v.double(), weights, kernel="exact", return_lse=True, **options)
    assert out.shape == q.shape and out.dtype == case.dtype
    assert lse.dtype == (torch.float64 if case.dtype == torch.float64 else torch.float32)
    padded = true_lse == -math.inf
    assert torch.equal(padded, _rows_of_padding(case))
    assert bool((lse[padded] == -math.inf).all()) and bool((out[padded] == 0).all())
    assert bool((true_out[padded] == 0).all())
    seen = ~padded
    assert bool(torch.isfinite(out).all()) and bool(torch.isfinite(lse[seen]).all())
    if not bool(seen.any()):
        return
    error = (out.double() - true_out)[seen].abs().max().item()
    lse_error = (lse.double() - true_lse)[seen].abs().max().item()
    if case.dtype in (torch.float32, torch.float64):
        assert error <= FULL and lse_error <= FULL
    else:
        plain, plain_lse = _dense_in_own_dtype(case, q, k, v)
        assert error <= 2 * (plain.double() - true_out)[seen].abs().max().item() + 1e-3
        assert lse_error <= 2 * (plain_lse.double() - true_lse)[seen].abs().max().item() + 1e-3


def test_matrix_meets_every_pair_of_levels():
    names = list(FACTORS)
    for a, b in itertools.combinations(names, 2):
        met = {(getattr(case, a), getattr(case, b)) for case in CASES}
        assert set(itertools.product(FACTORS[a], FACTORS[b])) <= met


def test_out_without_lse_is_the_same_out():
    case = Case(padding="left")
    q, k, v = case.inputs()
    for kernel in [*KERNELS, "exact", "auto"]:
        with_lse, _ = attend(q, k, v, case.weights(), kernel=kernel, return_lse=True, **case.options())
        assert torch.equal(with_lse, attend(q, k, v, case.weights(), kernel=kernel, **case.options()))


def test_scale_is_the_callers():
    case = Case()
    q, k, v = case.inputs()
    for kernel in KERNELS:
        got = attend(q, k, v, case.weights(), kernel=kernel, scale=0.7)
        rescaled = attend(q * (0.7 * 4), k, v, case.weights(), kernel="exact")  # the default is 1/sqrt(16)
        assert (got - rescaled).abs().max() < FULL
        assert (got - attend(q, k, v, case.weights(), kernel=kernel)).abs().max() > 1e-2


def _rows_of_padding(case: Case) -> torch.Tensor:
    keys, queries, offset = case.shape
    token = torch.arange(queries) + (keys - queries if offset is None else offset)
    pads = torch.zeros(1, dtype=torch.long) if case.pads() is None else case.pads()
    return (token[None, None, :] < pads[:, None, None]).expand(-1, case.heads[0], -1)


def _dense_in_own_dtype(case: Case, q, k, v) -> tuple[torch.Tensor, torch.Tensor]:
    """Plain dense attention with every intermediate in the inputs' dtype."""
    keys, queries, offset = case.shape
    repeat = case.heads[0] // case.heads[1]
    k, v = (x.nan_to_num(0.0).repeat_interleave(repeat, 1) for x in (k, v))
    out, lse = torch.zeros_like(q), torch.full(q.shape[:3], -math.inf, dtype=q.dtype)
    pads = [0] if case.pads() is None else case.pads().tolist()
    for i, pad in enumerate(pads):
        token = torch.arange(queries) + (keys - queries if offset is None else offset) - pad
        real = token >= 0
        if pad == keys or not bool(real.any()):
            continue
        column = torch.arange(keys - pad)
        log_w = case.weights().log_dense(token[real], column)
        if case.causal:
            log_w = log_w.masked_fill(column[None, :] > token[real][:, None], -math.inf)
        score = q[i][:, real] @ k[i, :, pad:].transpose(-1, -2) * q.shape[3] ** -0.5 + log_w.to(q.dtype)
        out[i][:, real] = torch.softmax(score, -1) @ v[i, :, pad:]
        lse[i][:, real] = torch.logsumexp(score, -1)
    return out, lse
