"""Kernel `triton`: dk and dv of sinks, whose rows are split over programs."""

import pytest
import torch

from kernels.check.compare import case_errors
from kernels.impl.accuracy import LIMITS
from kernels.impl.triton import dsinks as triton_dsinks
from kernels.impl.triton.dsinks import MIN_PROGRAMS, MIN_TILES, ROWS, sink_constants, splits_of
from tests.kernels.cases import Case


@pytest.mark.parametrize(
    "rule, causal, padding",
    [("window", True, "left"), ("count/gamma", False, "left"), ("count/gamma", True, "all"), ("window", False, "none")],
)
def test_the_splits_add_up_to_the_oracle(rule: str, causal: bool, padding: str, monkeypatch):
    monkeypatch.setattr(triton_dsinks, "MIN_TILES", 1)
    shape = {"slopes": "steep", "heads": (2, 1), "shape": (200, 200, None), "sinks": 20}
    case = Case(rule=rule, masks=1, causal=causal, padding=padding, **shape)
    step, columns = (sink_constants(causal, case.dim, torch.float32)[name] for name in ("STEP", "COLUMNS"))
    tiles = -(-case.sinks // columns)
    splits = splits_of(200, case.batch * 2 * tiles)
    assert tiles == 2 and splits == 3
    rows = [-(-(200 - slots[0].start) // step) for slots in case.real()]  # tiles of them in each sequence
    without = [each - 2 * -(-each // splits) <= 0 for each in rows]
    assert any(without) == (padding != "none")  # the last split
    found = case_errors(case, "triton", "cpu")
    assert found["padding"] == 0.0 and max(found[name] for name in ("dq", "dk", "dv")) < LIMITS[torch.float32]


@pytest.mark.parametrize("others", [1, 8, 32, 40, 160, 1000])
@pytest.mark.parametrize("queries", [1, 255, 256, 777, 4096, 131072])
def test_the_splits_fill_a_gpu_and_each_has_rows_enough(queries: int, others: int):
    splits = splits_of(queries, others)
    assert splits >= 1 and (splits - 1) * others < MIN_PROGRAMS  # so the parts are no larger than the GPU needs
    assert splits == 1 or queries // splits >= MIN_TILES * ROWS
    assert splits * others >= MIN_PROGRAMS or queries // (splits + 1) < MIN_TILES * ROWS
