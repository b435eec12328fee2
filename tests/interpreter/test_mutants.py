"""What `kernels.check.calls` says of kernel `triton` on tables that are wrong in one place, in
bfloat16."""

from dataclasses import replace

import pytest
import torch

from kernels import PositionalLSH, alibi_slopes
from kernels.check import calls as check
from kernels.impl import accuracy
from kernels.impl.tables import Tables
from kernels.impl.triton import attend as triton_attend
from kernels.impl.triton import ops as triton_ops
from kernels.methods.masks import Masks

HEADS = [9, 13]  # of MPT's 32: in this draw pairs that they see lie 16 blocks apart, half of a tile of 32
LOST = 5  # a mask


def drawn(draw: int) -> PositionalLSH:
    whole = PositionalLSH.draw(alibi_slopes(32), 16, seed=1, draw=draw)
    masks = (getattr(whole.masks, name)[HEADS] for name in ("width", "shift", "log_weight"))
    return PositionalLSH(whole.slopes[HEADS], Masks(*masks), whole.sampler, whole.weights)


RIGHT, OTHER = drawn(0), drawn(1)


def plane_dropped(tables: Tables) -> Tables:
    bitplanes = tables.bitplanes.clone()
    bitplanes[:, :, :, -1] = 0
    return replace(tables, bitplanes=bitplanes)


def edge_moved(tables: Tables) -> Tables:
    """The start of the pivot's block in one mask."""
    pivot_blocks = tables.pivot_blocks.clone()
    pivot_blocks[:, :, 0, LOST] += 1
    return replace(tables, pivot_blocks=pivot_blocks)


def end_moved(tables: Tables) -> Tables:
    pivot_blocks = tables.pivot_blocks.clone()
    pivot_blocks[:, :, 1, LOST] -= 1
    return replace(tables, pivot_blocks=pivot_blocks)


def mask_lost(tables: Tables) -> Tables:
    """Before the tile it holds nothing; within it every token of it is alone, as far as planes
    tell."""
    pivot_blocks, bitplanes = tables.pivot_blocks.clone(), tables.bitplanes.clone()
    pivot_blocks[:, :, 1, LOST] = 0
    bitplanes &= ~(1 << LOST)
    return replace(tables, pivot_blocks=pivot_blocks, bitplanes=bitplanes)


def row_cut(tables: Tables) -> Tables:
    """Each row's first key is taken for one that it does not see."""
    row = tables.origin + torch.arange(tables.first.shape[1], dtype=torch.int32)
    return replace(tables, first=torch.minimum(tables.first + 1, row))


def stale(tables: Tables) -> Tables:
    """The tables of the draw before."""
    return replace(tables, first=STALE.first, bitplanes=STALE.bitplanes, pivot_blocks=STALE.pivot_blocks)


MUTANTS = (plane_dropped, edge_moved, end_moved, mask_lost, row_cut, stale)
STALE = triton_ops.tables_on_device(OTHER, 70, tile=32, causal=True, device=torch.device("cpu"))


@pytest.fixture
def verdict(monkeypatch):
    """What fails of a few calls."""
    few = {"causal": {"queries": 70}, "decoding 3": {"queries": 3}}
    for module, name, value in (
        (accuracy, "HEADS", 2),
        (accuracy, "KV_HEADS", 1),
        (check, "DIMS", (16,)),
        (check, "calls", lambda tokens: few),
    ):
        monkeypatch.setattr(module, name, value)
    monkeypatch.setattr(check, "all_weights", lambda: {"count": RIGHT})

    def found() -> list[str]:
        rows = check.check("count", torch.bfloat16, kernel="triton", device="cpu", tokens=70)
        assert len(rows) == 2 and not any("reason" in row for row in rows)
        return [row["call"] for row in rows if check.failure(row)]

    return found


def test_right_tables_pass(verdict):
    assert verdict() == []


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.__name__)
def test_wrong_tables_fail(mutant, verdict, monkeypatch):
    right = triton_attend.tables_on_device
    monkeypatch.setattr(triton_attend, "tables_on_device", lambda *a, **k: mutant(right(*a, **k)))
    assert verdict() == ["causal"]


@pytest.mark.parametrize("near", [15, 17])
def test_a_near_field_that_is_one_token_off_fails(near: int, verdict, monkeypatch):
    """Forward, and in decoding, which has no tables."""
    monkeypatch.setattr(check, "all_weights", lambda: {"count": replace(RIGHT, near=16)})
    right_tables, right_weights = triton_attend.tables_on_device, triton_attend.packed_on_device
    monkeypatch.setattr(triton_attend, "tables_on_device", lambda *a, **k: replace(right_tables(*a, **k), near=near))
    monkeypatch.setattr(triton_attend, "packed_on_device", lambda *a: replace(right_weights(*a), near=near))
    assert verdict() == ["causal", "decoding 3"]


def test_rows_of_the_step_before_fail(verdict, monkeypatch):
    """In decoding: a place that was not brought up to date."""
    right = triton_attend.attend_decoding

    def late(q, k, v, numbers, bias, places, scale):
        return right(q, k, v, numbers, bias, (places[0], tuple(start - 1 for start in places[1])), scale)

    monkeypatch.setattr(triton_attend, "attend_decoding", late)
    assert verdict() == ["decoding 3"]


def test_masks_of_the_draw_before_fail(verdict, monkeypatch):
    """In decoding, which has no tables."""
    stale_numbers = triton_attend.packed_on_device(OTHER, torch.device("cpu"))
    monkeypatch.setattr(triton_attend, "packed_on_device", lambda weights, device: stale_numbers)
    assert verdict() == ["decoding 3"]
