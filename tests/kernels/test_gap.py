"""Keys that no row reaches any more may be left out between the sinks and the rest."""

from dataclasses import replace

import pytest
import torch

from kernels import Window, attend
from tests.kernels.cases import KERNELS, Case

BASE = Case(heads=(4, 2), masks=4, shape=(301, 20, None), slopes="steep")
GAPS = [
    replace(BASE, rule="window", sinks=3, padding="left"),
    replace(BASE, rule="count/gamma", sinks=3, padding="left"),
    replace(BASE, rule="rb/gamma", sinks=40, near=100),
    replace(BASE, rule="exact/gamma"),
    replace(BASE, rule="count/systematic", sinks=3, shape=(301, 5, None), padding="left", near=64),
    replace(BASE, rule="rb/systematic", sinks=70, shape=(301, 1, None), near=16),
    replace(BASE, rule="count/gamma", sinks=3, near=16),
]


def without_the_unreached(case: Case, spare: int) -> tuple[list[torch.Tensor], dict]:
    """q, k, v without the keys that no head reaches, but for `spare` of them, and the options that
    say so. A sequence that drops fewer keep as many slots by padding; what is dropped is NaN where
    it is padding."""
    weights = case.weights()
    q, k, v = case.inputs()
    (slots, queries, _), sinks = case.shape, case.sinks
    pads = [0] * len(q) if case.pads() is None else case.pads().tolist()
    heads = torch.arange(weights.heads)
    begin = [int(weights.reach(heads, torch.full((len(heads), 1), slots - queries - p))[0].min()) for p in pads]
    gaps = [max(0, first - sinks - spare) for first in begin]
    kept = [slots - pad - gap for pad, gap in zip(pads, gaps, strict=True)]
    room = max(kept)
    short = [torch.full((len(q), k.shape[1], room, case.dim), torch.nan) for _ in range(2)]
    for to, x in zip(short, (k, v), strict=True):
        for i, (pad, gap) in enumerate(zip(pads, gaps, strict=True)):
            own = x[i, :, pad:]
            to[i, :, room - kept[i] :] = torch.cat([own[:, :sinks], own[:, sinks + gap :]], 1)
    return [q, *short], {"padding": torch.tensor([room - n for n in kept]), "gap": torch.tensor(gaps)}


@pytest.mark.parametrize("kernel", ["exact", *KERNELS])
@pytest.mark.parametrize("spare", [0, 9])
@pytest.mark.parametrize("case", GAPS, ids=lambda case: case.id)
def test_what_no_row_reaches_may_be_left_out(case: Case, spare: int, kernel: str):
    short, options = without_the_unreached(case, spare)
    assert options["gap"].max() > 9
    whole = attend(*case.inputs(), case.weights(), kernel="exact", padding=case.pads(), return_lse=True)
    found = attend(*short, case.weights(), kernel=kernel, return_lse=True, **options)
    for mine, true in zip(found, whole, strict=True):
        assert (mine - true).abs().max() < 2e-5


@pytest.mark.parametrize("kernel", ["exact", *KERNELS])
@pytest.mark.parametrize("queries", [3, 20])  # decoding, and a chunk
@pytest.mark.parametrize("rule", ["window", "count/gamma", "rb/gamma", "rb/systematic"])
def test_what_is_left_out_is_not_seen_by_a_query_that_would_reach_it(rule: str, queries: int, kernel: str):
    case, sinks, gap = replace(BASE, rule=rule, sinks=3, shape=(60, queries, None)), 3, 60 - queries - 3 - 5
    (q, k, v), weights = case.inputs(), case.weights()
    assert int(weights.reach(torch.arange(4), torch.full((4, 1), 60 - queries))[0].min()) < sinks + gap
    kept = torch.tensor([*range(sinks), *range(sinks + gap, 60)])
    weight = weights.matrix(60)[:, 60 - queries :, kept] * (kept <= torch.arange(60 - queries, 60)[:, None])
    each = q.double() @ k.double().repeat_interleave(2, 1)[:, :, kept].mT / 4
    share = each.exp() * weight
    true = (share / share.sum(-1, keepdim=True)) @ v.double().repeat_interleave(2, 1)[:, :, kept]
    found, lse = attend(q, k[:, :, kept], v[:, :, kept], weights, kernel=kernel, gap=gap, return_lse=True)
    assert (found - true).abs().max() < 2e-5 and (lse - share.sum(-1).log()).abs().max() < 2e-5


def test_a_query_whose_own_key_is_left_out_is_refused():
    case = replace(BASE, rule="window", sinks=3)
    q, k, v = case.inputs()
    with pytest.raises(ValueError, match="token 20 comes before token 23, the first that a gap of 20 after 3 sinks"):
        attend(q, k, v, case.weights(), gap=20, q_offset=20)


def test_a_gap_needs_weights_that_forget_and_causality():
    case = replace(BASE, rule="alibi")
    q, k, v = case.inputs()
    for wrong, options in ((case, {}), (replace(BASE, rule="window"), {"causal": False})):
        with pytest.raises(ValueError, match="weights that forget"):
            attend(q, k, v, wrong.weights(), gap=5, **options)
    with pytest.raises(ValueError, match="gap must be at least 0"):
        attend(q, k, v, replace(BASE, rule="window").weights(), gap=-1)


def test_places_may_hold_no_gap_below_zero():
    q = torch.zeros(1, 1, 2, 8)
    with pytest.raises(ValueError, match="gap must be at least 0"):
        attend(q, q, q, Window(torch.tensor([0.5]), 2.0), places=torch.tensor([[0], [0], [-1]]), kernel="sdpa")
