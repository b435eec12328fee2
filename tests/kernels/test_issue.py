"""The executed path of machine code, and the issue floor that follows from it, against counts by
hand."""

import re

import pytest
import torch

from kernels import PositionalLSH, Window, alibi_slopes
from kernels.aot.sass import path

pytest.importorskip("triton", reason="Triton exists on Linux only")

from kernels.aot import issue

# an early end, a side path of two instructions, a loop with a side path of its own, and a
# subroutine
CODE = """
    /*0000*/                   LDC R1, c[0x0][0x28] ;      /* 0x00000a00ff017b82 */
    /*0010*/               @P0 EXIT ;
    /*0020*/                   HGMMA.64x64x16.F32 R24, gdesc[UR4], R24 ;
    /*0030*/              @!P4 BRA 0x60 ;
    /*0040*/                   MOV R2, R3 ;
    /*0050*/                   CALL.REL.NOINC 0x120 ;
    /*0060*/               @P1 BRA 0xf0 ;
    /*0070*/                   MOV R4, R5 ;
    /*0080*/                   HGMMA.64x64x16.F32 R24, gdesc[UR4], R24 ;
    /*0090*/               @P2 BRA P3, 0xb0 ;
    /*00a0*/                   FADD R1, R2, R3 ;
    /*00b0*/                   BSSY B1, 0xd0 ;
    /*00c0*/                   FADD R1, R2, R3 ;
    /*00d0*/              @!P5 BRA 0x80 ;
    /*00e0*/                   MOV R6, R7 ;
    /*00f0*/                   STG.E [R2.64], R3 ;
    /*0100*/                   EXIT ;
    /*0110*/                   BRA 0x110;
    /*0120*/                   FADD R1, R2, R3 ;
    /*0130*/                   RET.REL.NODEC R6 0x0 ;
"""


def test_the_executed_path_is_the_shortest_through_every_loop():
    found = path(CODE)
    # 80, 90, b0, c0, d0; through it 00 .. 30, 60, 70, then e0, f0, 100; around it 00 .. 30, 60, f0,
    # 100
    assert found == {"straight": [9, 1], "none": [7, 1], "loops": [[5, 1]]}
    assert path(CODE.replace("BRA 0x80 ;", "BRA 0x90 ;"))["loops"] == [[4, 0]]
    assert path(CODE.replace("@!P5 BRA 0x80 ;", "NOP ;"))["loops"] == []
    assert path(CODE.replace("@P1 BRA 0xf0", "BRX R2 -0x10")) is None and path("") is None


def test_a_loop_that_ends_in_its_middle_and_loops_in_a_loop():
    code = CODE.replace("@!P5 BRA 0x80 ;", "BRA 0x80 ;").replace("BSSY B1, 0xd0 ;", "@P3 BRA 0xe0 ;")
    # a turn takes 80, 90, b0, c0, d0, and the last one leaves after b0
    assert path(code) == {"straight": [9 - 2, 1], "none": [7, 1], "loops": [[5, 1]]}
    inner = CODE.replace("BSSY B1, 0xd0 ;", "@P3 BRA 0x90 ;")
    assert path(inner)["loops"] == [[5, 1]]


def test_a_wait_and_code_out_of_line_are_no_loops():
    """As with the copy engine: where a tile is not there yet, the way goes on elsewhere, waits, and
    comes back."""
    away = CODE.replace("@P2 BRA P3, 0xb0 ;", "@P2 BRA 0x120 ;").replace("RET.REL.NODEC R6 0x0 ;", "BRA 0xa0;")
    away = away.replace("/*0130*/", "/*0130*/              @!P0 BRA 0x120 ;\n    /*0140*/")
    assert len(path(away)["loops"]) == 2  # without a wait it may turn as often as it likes
    waits = re.sub(r"(/\*0120\*/ +)FADD R1, R2, R3", r"\1SYNCS.TRYWAIT P0, R2", away)
    # a turn takes 80, 90, a0, b0, c0, d0: by 90, 120, 130, 140, a0 it is longer
    assert path(waits) == {"straight": [9, 1], "none": [7, 1], "loops": [[6, 1]]}


NEAR = ("", "-near64")


def record(loops: list[list[int]]) -> dict:
    way = {"straight": [100, 0], "none": [90, 0], "loops": [[5, 0], [30, 8]]}
    tables = {"straight": [70, 0], "none": [3, 0], "loops": loops}
    laws = ("count-S16", "rb-S16", "linear")
    found = {f"causal-sm90-{law}-d64-bf16{near}": {"warps": 4, "path": way} for law in laws for near in NEAR}
    of_tables = {"warps": 8, "path": tables}
    return found | {f"tables-sm90-{law}{near}": of_tables for law in ("count", "rb") for near in NEAR}


@pytest.mark.parametrize(
    ("loops", "of_masks"), [([[20, 0], [33, 0]], 16 * 20), ([[60, 0], [20, 0], [33, 0]], 4 * 60)], ids=["one", "four"]
)
def test_instructions_are_those_of_the_tiles_that_are_visited(loops, of_masks: int, monkeypatch):
    """Counted on dense weights: steps of 32 keys from the first of each tile's first row to the
    last of the tile, and blocks of 256 rows, which take the masks one or four in a turn."""
    monkeypatch.setattr(issue, "_recorded", lambda: record(loops))
    slopes = alibi_slopes(4)
    for weights in (PositionalLSH.draw(slopes, 16, seed=2), PositionalLSH.draw(slopes, 16, seed=2, weights="rb"),
                    PositionalLSH.draw(slopes, 16, seed=2, near=64), Window(slopes, 1.0), Window(slopes, 1.0, 0, 64),
                    ):  # fmt: skip
        first = (weights.matrix(640).tril() > 0).int().argmax(-1)[:, ::64]  # of the first row of each tile of 64
        steps = 2 * (torch.arange(10) + 1) - first // 32
        found = issue.issued(weights, 640, 64, torch.bfloat16)
        assert found["forward"] == 4 * (100 * steps.numel() + 30 * int(steps.sum()))
        assert found["tables"] == 8 * 4 * 3 * (3 if isinstance(weights, Window) else 3 + of_masks)


def test_what_is_not_recorded_has_no_floor(monkeypatch):
    found = record([[20, 0], [33, 0]])
    monkeypatch.setattr(issue, "_recorded", lambda: found)
    slopes = alibi_slopes(4)
    assert issue.issued(PositionalLSH.draw(slopes, 4, seed=0), 640, 64, torch.bfloat16) is None
    assert issue.issued(PositionalLSH.draw(slopes, 16, seed=0, near=63), 640, 64, torch.bfloat16) is None
    assert issue.issued(Window(slopes, 1.0), 640, 80, torch.float16) is None
    assert issue.issued(Window(slopes, 1.0), 640, 64, torch.bfloat16) is not None
    found["causal-sm90-linear-d64-bf16"]["path"]["loops"] = []  # without a loop over tiles
    assert issue.issued(Window(slopes, 1.0), 640, 64, torch.bfloat16) is None


def test_the_page_has_the_floors_of_the_record():
    page = (issue.RECORD.parents[1] / "kernels.md").read_text()
    assert issue.table(alibi_slopes(32), 131072) in page
