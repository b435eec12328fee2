"""The sampling error of each row, from two halves of the masks: against its formula and against
many draws."""

import math
from dataclasses import replace

import pytest
import torch

from kernels import Alibi, PositionalLSH, Window, attend
from tests.kernels.cases import Case

CASES = [
    Case(heads=(6, 2)),
    Case(rule="rb/gamma", heads=(6, 2), masks=4, sinks=3, padding="left", layout="poisoned"),
    Case(masks=2, shape=(150, 7, None), causal=False, slopes="spread"),
    Case(rule="rb/gamma", shape=(187, 1, None), dtype=torch.bfloat16, padding="all"),
    Case(shape=(129, 129, None), sinks=140, dtype=torch.float64),
]


def by_definition(case: Case, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Dense softmax under the matrix of each half of the masks, sequence by sequence."""
    weights, half = case.weights(), case.masks // 2
    outputs = []
    for part in (slice(0, half), slice(half, None)):
        some = replace(weights, masks=weights.masks.some(part))
        assert some.count == half
        log_w = some.matrix(case.shape[0]).log()
        outputs.append(log_w.tril() + torch.full_like(log_w, -math.inf).triu(1) if case.causal else log_w)
    spread = torch.zeros(q.shape[:3], dtype=torch.float64)
    repeat = case.heads[0] // case.heads[1]
    for i, (rows, slots, _) in enumerate(case.real()):
        own, key, value = q[i, :, rows].double(), k[i, :, slots].double(), v[i, :, slots].double()
        key, value = key.repeat_interleave(repeat, 0), value.repeat_interleave(repeat, 0)
        tokens = key.shape[1]
        first = case.begin + rows.start - slots.start
        found = []
        for log_w in outputs:
            bias = log_w[:, first : first + own.shape[1], :tokens]
            found.append(torch.softmax(own @ key.mT * own.shape[-1] ** -0.5 + bias, -1) @ value)
        spread[i, :, rows] = (found[0] - found[1]).square().mean(-1).sqrt() / 2
    return spread


@pytest.mark.parametrize("kernel", ["exact", "sdpa"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_spread_is_half_the_difference_of_two_halves(case: Case, kernel: str):
    q, k, v = case.inputs()
    out, lse, spread = attend(
        q, k, v, case.weights(), kernel=kernel, return_lse=True, return_spread=True, **case.options()
    )
    assert spread.shape == q.shape[:3] and spread.dtype == torch.float32
    assert (spread - by_definition(case, q, k, v)).abs().max() < 5e-6
    plain = attend(q, k, v, case.weights(), kernel=kernel, return_lse=True, **case.options())
    assert torch.equal(out, plain[0]) and torch.equal(lse, plain[1])  # looking does not change what is seen


def over_draws(masks: int, weights: str, draws: int = 3000) -> tuple[torch.Tensor, torch.Tensor]:
    """Of each draw the mean over rows and dimensions of spread^2, and of the squared deviation of
    out from the mean over draws. A head with the same slope, query and key is one more draw; the
    values are uncorrelated."""
    generator = torch.Generator().manual_seed(3)
    q, k, v = (torch.randn(1, 1, n, 16, generator=generator).double() for n in (12, 320, 320))
    drawn = PositionalLSH.draw(torch.full((draws,), 1 / 30), masks, seed=8, weights=weights)
    out, spread = attend(q.expand(-1, draws, -1, -1), k, v, drawn, kernel="sdpa", return_spread=True)
    deviation = (out - out.mean(1, keepdim=True)).square() * draws / (draws - 1)
    return spread[0].double().square().mean(-1), deviation[0].mean((-1, -2))


def z_score(difference: torch.Tensor) -> float:
    return float(difference.mean() / (difference.std() / len(difference) ** 0.5))


def test_spread_is_the_standard_deviation_over_draws():
    estimate, truth = over_draws(64, "count")
    assert abs(z_score(estimate - truth)) < 4
    assert (estimate - truth).std() / len(truth) ** 0.5 < 0.03 * truth.mean()  # so that the test can tell
    few, many = over_draws(4, "count")
    assert 1 < few.mean() / many.mean() < 1.6  # second order


@pytest.mark.parametrize("masks", [32, 64])
def test_spread_of_rb_bounds_the_standard_deviation_by_a_known_factor(masks):
    def variance(masks: int) -> torch.Tensor:
        law = torch.exp(-torch.arange(1, 320).double() / 30)
        return (law.square() * (1 / (1 - (1 - law) ** masks) - 1)).sum()

    estimate, truth = over_draws(masks, "rb")
    factor = float(variance(masks) / (variance(masks // 2) / 2))
    assert 0.5 < factor < 0.6
    assert z_score(estimate - truth) > 4  # an upper estimate
    assert abs(z_score(factor * estimate - truth)) < 4


def test_spread_has_no_gradient_and_takes_none_from_out():
    q, k, v = (x.double().requires_grad_() for x in Case().inputs())
    for kernel in ("exact", "sdpa"):
        out, spread = attend(q, k, v, Case().weights(), kernel=kernel, return_spread=True)
        assert not spread.requires_grad
        found = torch.autograd.grad(out.square().sum(), (q, k, v))
        plain = torch.autograd.grad(attend(q, k, v, Case().weights(), kernel=kernel).square().sum(), (q, k, v))
        assert all(torch.equal(a, b) for a, b in zip(found, plain, strict=True))


def test_auto_takes_a_kernel_that_gives_it():
    q, k, v = Case().inputs()
    auto, sdpa = (attend(q, k, v, Case().weights(), kernel=kernel, return_spread=True) for kernel in ("auto", "sdpa"))
    assert all(torch.equal(a, b) for a, b in zip(auto, sdpa, strict=True))


@pytest.mark.parametrize(
    "weights, kernel, hint",
    [
        (Alibi, "auto", r"Alibi has none: use PositionalLSH.draw"),
        (lambda slopes: Window(slopes, 3.0), "exact", "Window has none"),
        ({"masks": 1}, "sdpa", "1 is odd: draw 2 masks"),
        ({"masks": 7}, "exact", "7 is odd: draw 8 masks"),
        ({"sampler": "systematic"}, "sdpa", "use sampler='gamma'"),
        ({"sampler": "fixed"}, "exact", "use sampler='gamma'"),
        ({"weights": "exact"}, "sdpa", "use weights='count' or 'rb'"),
        ({}, "triton", "kernel='triton' gives no spread: use kernel='sdpa'"),
        ({}, "flex", "kernel='flex' gives no spread: use kernel='sdpa'"),
    ],
)
def test_what_has_no_spread_says_what_to_change(weights, kernel, hint):
    q, k, v = Case().inputs()
    slopes = Case().slope_list()
    if isinstance(weights, dict):
        options = {"masks": 4, **weights}
        weights = lambda s: PositionalLSH.draw(s, options.pop("masks"), seed=0, **options)  # noqa: E731
    with pytest.raises(ValueError, match=hint):
        attend(q, k, v, weights(slopes), kernel=kernel, return_spread=True)
