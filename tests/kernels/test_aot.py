"""What the compiler says to the kernels, for GPUs that are not at hand, against
docs/results/aot.json."""

import itertools
import json
import re

import pytest

pytest.importorskip("triton", reason="Triton exists on Linux only")

import triton

from kernels.aot import configurations as aot
from kernels.aot.configurations import Configuration, blocks_per_sm, build, compare, every
from kernels.impl.triton import tables as triton_tables
from kernels.methods.laws import Law

RECORD = json.loads(aot.RECORD.read_text())
CHOSEN = [
    *(Configuration("causal", 90, law) for law in (Law.LINEAR, Law.RAO_BLACKWELL, Law.COUNT)),
    *(Configuration("causal", 90, law, near=aot.NEAR) for law in (Law.RAO_BLACKWELL, Law.COUNT)),
    Configuration("causal_dq", 90, Law.COUNT),
    *(Configuration("causal_dkdv", 90, law) for law in (Law.RAO_BLACKWELL, Law.COUNT)),
    *(Configuration("forward", 90, law) for law in (Law.DISTANCE, Law.COUNT, Law.SUM)),
    Configuration("forward", 90, Law.COUNT, 64, "fp16"),
    Configuration("forward", 90, Law.COUNT, masks=64),
    Configuration("forward", 90, Law.SUM, causal=False),
    Configuration("forward", 90, Law.SUM, dtype="fp32"),
    Configuration("forward", 80, Law.COUNT),
    *(Configuration("dq", 90, law) for law in (Law.DISTANCE, Law.SUM)),
    Configuration("dq", 90, Law.SUM, masks=64, causal=False),
    Configuration("dq", 90, Law.DISTANCE, causal=False),
    Configuration("dq", 90, Law.COUNT, sinks=4),
    Configuration("dq", 80, Law.COUNT),
    Configuration("dkdv", 90, Law.COUNT),
    Configuration("dkdv", 90, Law.SUM, causal=False),
    Configuration("dsinks", 90, Law.LINEAR),
    Configuration("decode", 90, Law.COUNT),
    Configuration("tables", 90, Law.COUNT, causal=False),
]
POSITIONS = [c for c in CHOSEN if c.kernel in aot.TABLES]


def check_unit(c: Configuration, found: dict):
    if c.kernel in (*aot.KERNELS, *aot.STREAMED, "dsinks"):
        # few query rows or sinks at a time are no work for wgmma, and float32 is none for the
        # tensor cores
        few = c.kernel in ("decode", "dsinks")
        unit = "none" if c.dtype == "fp32" else "HGMMA" if c.cap == 90 and not few else "HMMA"
        assert found["unit"] == unit and (found["mma"] > 0) == (unit != "none")


def check_limits(c: Configuration, found: dict):
    assert found["spilled"] == 0
    if c.cap == 90 and c.kernel in ("forward", "dq", *aot.STREAMED) and c.dtype != "fp32":
        few = c.kernel not in ("causal", "causal_dq") or c.law == Law.COUNT and c.masks > 16
        assert blocks_per_sm(found) >= (2 if few else 3)


@pytest.mark.parametrize("configuration", CHOSEN, ids=lambda configuration: configuration.id)
def test_resources(configuration: Configuration):
    found = build(configuration)
    check_unit(configuration, found)
    if triton.__version__ != RECORD["triton"]:
        pytest.skip(f"registers and spills were recorded with triton {RECORD['triton']}, here is {triton.__version__}")
    check_limits(configuration, found)
    assert compare(found, RECORD["kernels"][configuration.id]) == []


@pytest.mark.parametrize("configuration", every(), ids=lambda configuration: configuration.id)
def test_the_record_keeps_the_limits(configuration: Configuration):
    check_unit(configuration, RECORD["kernels"][configuration.id])
    check_limits(configuration, RECORD["kernels"][configuration.id])


def test_two_blocks_need_registers_and_shared_memory_for_two():
    fits = {"registers": 255, "warps": 4, "shared": 232448 // 2 - 1024}
    assert blocks_per_sm(fits) == 2
    assert blocks_per_sm(fits | {"warps": 8}) == 1
    assert blocks_per_sm(fits | {"shared": 131072}) == 1


@pytest.mark.parametrize("configuration", POSITIONS, ids=lambda configuration: configuration.id)
def test_positions_are_rounded_as_torch_rounds_them(configuration: Configuration):
    """Each float64 operation by itself, to nearest; without `.rn` the assembler may contract a
    product and a sum."""
    code = aot.compiled(configuration).asm["ptx"]
    used = set(re.findall(r"\b(?:fma|mad|mul|add|sub|div|rcp|sqrt)\.[a-z.]*f64\b", code))
    assert used == {"mul.rn.f64", "add.rn.f64", "sub.rn.f64", "div.rn.f64"}
    assert "cvt.rmi.f64.f64" in code and "cvt.rpi.f64.f64" in code  # floor and ceil


def test_decoding_divides_positions_as_torch_does():
    """The bucket of a position decides; an edge next to it is corrected, so that it may be
    contracted."""
    code = aot.compiled(Configuration("decode", 90, Law.COUNT)).asm["ptx"]
    used = set(re.findall(r"\b(?:fma|mad|mul|add|sub|div|rcp)\.[a-z.]*f64\b", code))
    assert "div.rn.f64" in used and not any(x.startswith("rcp") for x in used)


def test_contraction_would_show(monkeypatch):
    monkeypatch.setitem(triton_tables.LAUNCH, "enable_fp_fusion", True)
    assert "fma.rn.f64" in aot.compiled(POSITIONS[0]).asm["ptx"]


def test_the_suite_compiles_a_few_of_the_recorded_configurations():
    assert len(CHOSEN) <= 27 and {c.id for c in CHOSEN} <= {c.id for c in every()} == set(RECORD["kernels"])


def test_a_near_field_leaves_the_rest_of_the_loop_as_it_is():
    """And as many blocks on a multiprocessor."""
    for kernel, law in itertools.product(aot.STREAMED, (Law.RAO_BLACKWELL, Law.COUNT)):
        near, without = (RECORD["kernels"][Configuration(kernel, 90, law, near=n).id] for n in (aot.NEAR, 0))
        assert blocks_per_sm(near) >= blocks_per_sm(without)
        ((turn, _),), ((turn_without, _),) = near["path"]["loops"], without["path"]["loops"]
        assert turn <= 1.03 * turn_without


def test_the_page_has_the_table_of_the_record():
    assert aot.table(RECORD["kernels"]) in (aot.RECORD.parents[1] / "kernels.md").read_text()


def test_a_regression_shows():
    known = RECORD["kernels"][CHOSEN[0].id]
    assert compare(known, known) == []
    worse = known | {"registers": known["registers"] + 20, "spilled": known["spilled"] + 8, "unit": "HMMA"}
    assert [change.split()[0] for change in compare(worse, known)] == ["spilled", "unit", "registers"]
