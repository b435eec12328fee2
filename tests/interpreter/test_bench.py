"""The bench's S passes through kernel `triton`, and the check's matrix on it."""

import math
from dataclasses import replace

import pytest
import torch

from kernels import PositionalLSH
from kernels.bench import measure, methods, ours
from kernels.bench.plan import CALLS, HeadSet
from kernels.bench.problem import Problem
from kernels.check import compare
from kernels.check.cases import Case
from kernels.impl.accuracy import LIMITS

HEADS, TOKENS = HeadSet(2, 16), 70


@pytest.mark.parametrize("call", CALLS)
def test_passes_merge_into_the_attention_under_all_masks(call: str):
    """And the sum of their gradients is its gradient."""
    p = Problem(HEADS, TOKENS, CALLS[call] or TOKENS, backward=call == "backward", device="cpu", dtype=torch.float32)
    weights = PositionalLSH.draw(HEADS.slopes, 3, seed=0)
    method = methods.Method("passes", "plsh", weights, lambda: ours.passes(p, weights, "triton"), 3, separate=True)
    for _ in range(2):  # one forward pass serves all calls of the backward pass
        run = measure.prepare(p, method)
        found = measure.errors(p, method, run.outcome())
        assert found["check_error"] < 1e-5
    costs = [measure.cost(p, own) for own in method.visited]
    assert len({one.floor for one in costs}) == (3 if "decode" in call else 1)  # each mask has blocks of its own
    if "decode" in call:  # needs no tables
        assert run.prepared.extra == 0 and run.kernel is None
        return
    sizes = [
        x.numel() * x.element_size() for own in method.visited for x in tensors(ours.on_prepared_tables(p, own)[0]())
    ]
    assert run.prepared.extra == sum(sizes)
    if run.kernel is not None:  # on the tables built beforehand, as the whole call
        assert torch.equal(run.kernel(), run.timed())
    assert (run.kernel is None) == (call == "backward")


def tensors(tables) -> list[torch.Tensor]:
    return [x for x in vars(tables).values() if isinstance(x, torch.Tensor)]


BASE = Case(masks=4, heads=(2, 1), shape=(70, 40, 20), padding="left", layout="poisoned", sinks=3)
FEW = replace(BASE, rule="exact/fixed", shape=(70, 5, None), padding="none")


@pytest.mark.parametrize(
    "case", [BASE, replace(BASE, rule="rb/gamma", causal=False), FEW], ids=lambda case: case.rule.replace("/", ".")
)
def test_the_matrix_of_the_check_runs(case: Case):
    found = compare.case_errors(case, "triton", "cpu")
    assert set(found) == {"out", "lse", "padding"} | (set() if case == FEW else {"dq", "dk", "dv"})
    assert max(found.values()) < LIMITS[torch.float32] and found["padding"] == 0.0


def test_the_check_finds_what_a_kernel_does_not_write(monkeypatch):
    def decodes_nothing(q, *_, **__):
        return torch.empty_like(q), q.new_empty(q.shape[:3])

    monkeypatch.setattr("kernels.impl.triton.attend.attend_decoding", decodes_nothing)
    found = compare.case_errors(FEW, "triton", "cpu")
    assert found["out"] == found["lse"] == math.inf
