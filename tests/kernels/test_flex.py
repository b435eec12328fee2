"""Kernel `flex` on the CPU against the oracle. Compiling takes seconds for each kind of call: few
kinds."""

import shutil

import pytest
import torch

from kernels import attend
from kernels.impl import flex
from kernels.impl.flex import BLOCK, block_mask
from tests.kernels.cases import Case
from tests.kernels.test_gap import GAPS, without_the_unreached

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="torch compiles FlexAttention with g++")

CASES = (
    [
        Case(rule=rule, masks=4, heads=(4, 2), slopes="spread", causal=causal, shape=shape, padding=padding)
        for rule, causal, shape, padding in [
            ("alibi", True, (203, 203, None), "all"),
            ("window", True, (203, 203, None), "none"),
            ("window", False, (201, 70, 64), "left"),
            ("rb/gamma", True, (203, 203, None), "left"),
            ("rb/systematic", True, (187, 1, None), "none"),
            ("count/gamma", True, (203, 203, None), "left"),
            ("count/systematic", True, (150, 7, None), "none"),
            ("count/gamma", False, (203, 203, None), "none"),
        ]
    ]
    + [
        Case(rule=rule, masks=4, heads=(4, 2), slopes="press", causal=causal, shape=(403, 403, None), sinks=sinks)
        for rule, causal, sinks in [("count/gamma", True, 140), ("rb/gamma", False, 3)]
    ]
    + [
        # more sinks than keys: none of the zeros that fill the last block is one
        Case(rule=rule, masks=4, heads=(4, 2), causal=False, shape=(150, 50, None), sinks=200)
        for rule in ("window", "count/gamma")
    ]
)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_out_agrees_with_the_oracle(case: Case):
    q, k, v = case.inputs()
    out = attend(q, k, v, case.weights(), kernel="flex", **case.options())
    true = attend(q.double(), k.double(), v.double(), case.weights(), kernel="exact", **case.options())
    assert (out - true).abs().max() < 2e-5


def test_keys_may_be_left_out():
    case = GAPS[2]
    short, options = without_the_unreached(case, 5)
    out = attend(*short, case.weights(), kernel="flex", **options)
    assert (out - attend(*case.inputs(), case.weights(), kernel="exact", padding=case.pads())).abs().max() < 2e-5


def test_one_compilation_serves_every_gap_and_a_limit_is_said(monkeypatch):
    """A cache that evicts while it decodes has another gap at every step."""
    monkeypatch.setattr(flex, "MAX_KINDS", 1)
    torch._dynamo.reset()
    case = Case(rule="window", heads=(2, 2), slopes="steep", sinks=3, shape=(60, 1, None))
    (q, k, v), weights = case.inputs(), case.weights()
    for gap in (300, 301, 355):
        out = attend(q, k, v, weights, kernel="flex", gap=gap)
        assert (out - attend(q, k, v, weights, kernel="exact", gap=gap)).abs().max() < 2e-5
    longer = Case(rule="window", heads=(2, 2), slopes="steep", sinks=3, shape=(160, 1, None)).inputs()
    with pytest.raises(ValueError, match="has been compiled for 1 kinds of calls in this process"):
        attend(*longer, weights, kernel="flex", gap=300)
    torch._dynamo.reset()


@pytest.mark.parametrize("sinks", [0, 140])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("rule", ["window", "count/gamma", "rb/gamma"])
def test_blocks_hold_every_visited_pair_and_few_more(rule: str, causal: bool, sinks: int):
    case = Case(rule=rule, heads=(4, 4), masks=2, slopes="press", sinks=sinks)
    tokens = 6 * BLOCK
    blocks = block_mask(case.weights(), torch.arange(tokens), tokens, causal).to_dense()[0].bool()
    visited = case.weights().matrix(tokens) > 0
    if causal:
        visited = visited.tril()
    wanted = visited.view(4, 6, BLOCK, 6, BLOCK).any(4).any(2)
    assert bool((blocks | ~wanted).all()) and blocks.sum() <= 1.2 * wanted.sum()


def test_what_the_cpu_cannot_do_is_said():
    case = Case(heads=(2, 2))
    q, k, v = case.inputs()
    for inputs, options in (((q, k, v), {"return_lse": True}), ((q.requires_grad_(), k, v), {})):
        with pytest.raises(ValueError, match="neither a log-sum-exp nor gradients on the CPU"):
            attend(*inputs, case.weights(), kernel="flex", **options)
    with pytest.raises(ValueError, match="takes float16, bfloat16 and float32"):
        attend(*(x.detach().double() for x in (q, k, v)), case.weights(), kernel="flex")


def test_without_a_compiler_it_says_what_to_use(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    case = Case(heads=(2, 2))
    with pytest.raises(ValueError, match="compiled with no-such-compiler on the CPU, which is not installed"):
        attend(*case.inputs(), case.weights(), kernel="flex")
