"""kernel="auto" takes the fused kernel only where it agrees with the oracle."""

import warnings

import pytest
import torch

from kernels import Alibi, PositionalLSH, Window, alibi_slopes, attend, auto
from kernels.impl import accuracy

SLOPES = alibi_slopes(2)
ALL = [
    Alibi(SLOPES),
    Window(SLOPES, 2.0, 3),
    PositionalLSH.draw(SLOPES, 5, seed=4, weights="exact"),
    PositionalLSH.draw(SLOPES, 5, seed=4, sampler="systematic", weights="rb", sinks=20),
    PositionalLSH.draw(SLOPES, 3, seed=4, sampler="fixed", near=70),
]


@pytest.fixture(autouse=True)
def small(monkeypatch):
    auto._self_check.cache_clear()
    for name, value in (("HEADS", 2), ("KV_HEADS", 1)):
        monkeypatch.setattr(accuracy, name, value)
    monkeypatch.setattr(auto, "CASE_TOKENS", 45)


@pytest.mark.parametrize("weights", ALL)
def test_the_short_case_is_of_the_same_kind_and_right(weights):
    kind = weights.kind
    own = auto.probe_weights(kind, 2, steep=True)
    first, _ = own.reach(torch.arange(2), torch.full((2, 1), own.sinks + own.near + 2 * auto.CASE_GAP))
    assert type(own) is Alibi or bool((first >= own.sinks + auto.CASE_GAP).all())  # no row reaches what is left out
    assert own.kind == kind and type(own) is type(weights)
    gap = weights.span is not None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert auto.passes_self_check(attend, "cpu", "float32", 16, kind, 16, True, False, gap)


def test_a_kernel_that_is_wrong_or_does_not_run_is_not_taken(monkeypatch):
    call = (attend, "cpu", "float32", 16, ALL[2].kind, 20, True, True, False)
    assert auto.passes_self_check(*call)
    monkeypatch.setattr(accuracy, "LIMITS", {torch.float32: 1e-12})
    assert auto.passes_self_check(*call)  # found out once
    auto._self_check.cache_clear()
    with pytest.warns(UserWarning, match="auto' uses sdpa: .* was off from the oracle: out "):
        assert not auto.passes_self_check(*call)
    auto._self_check.cache_clear()
    monkeypatch.setattr("kernels.impl.triton.attend.attend_on_tables", lambda *a: 1 / 0)
    with pytest.warns(UserWarning, match="did not run here .ZeroDivisionError"):
        assert not auto.passes_self_check(*call)


def test_code_that_is_compiled_learns_the_answer_beforehand():
    weights = ALL[3]

    def function(x):
        call = ("cpu", "float32", 16, tuple(weights.kind), 16, True, False, False)
        return x + 1 if auto.passes_self_check(attend, *call) else x

    torch._dynamo.reset()
    assert torch.compile(function, fullgraph=True, backend="eager")(torch.zeros(1)) == 1


def test_on_the_cpu_it_is_sdpa():
    q = torch.randn(1, 2, 9, 16, generator=torch.Generator().manual_seed(0))
    auto.CHOSEN.clear()
    assert torch.equal(attend(q, q, q, ALL[0]), attend(q, q, q, ALL[0], kernel="sdpa"))
    assert {"sdpa"} == auto.CHOSEN
