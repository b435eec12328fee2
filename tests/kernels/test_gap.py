"""Keys that no row reaches any more may be left out between the sinks and the rest."""

from dataclasses import replace

import pytest
import torch
from cases import KERNELS, Case

from kernels import attend

BASE = Case(heads=(4, 2), masks=4, shape=(301, 20, None), slopes="steep")
GAPS = [
    replace(BASE, rule="window", sinks=3, padding="left"),
    replace(BASE, rule="count/gamma", sinks=3, padding="left"),
    replace(BASE, rule="rb/gamma", sinks=40),
    replace(BASE, rule="exact/gamma"),
    replace(BASE, rule="count/systematic", sinks=3, shape=(301, 5, None), padding="left"),
    replace(BASE, rule="rb/systematic", sinks=70, shape=(301, 1, None)),
]


def without_the_unreached(case: Case, spare: int) -> tuple[list[torch.Tensor], dict]:
    """q, k, v without the keys that no head reaches, but for `spare` of them, and the options that say so. A sequence
    that drops fewer keep as many slots by padding; what is dropped is NaN where it is padding."""
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


def test_a_gap_needs_weights_that_forget_and_causality():
    case = replace(BASE, rule="alibi")
    q, k, v = case.inputs()
    for wrong, options in ((case, {}), (replace(BASE, rule="window"), {"causal": False})):
        with pytest.raises(ValueError, match="weights that forget"):
            attend(q, k, v, wrong.weights(), gap=5, **options)
    with pytest.raises(ValueError, match="gap must be at least 0"):
        attend(q, k, v, replace(BASE, rule="window").weights(), gap=-1)
