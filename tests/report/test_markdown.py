"""Tables of a store as Markdown."""

import pytest

from harness.report import markdown
from harness.report.__main__ import main
from tests.report import made


def test_tables_of_a_store_are_markdown(tmp_path, capsys):
    made.sweep(tmp_path, models=["a|b<i>"], contexts=[256], masks=[4], samples=20)
    assert main([str(tmp_path), "--markdown"]) == 0
    text = capsys.readouterr().out
    assert "## Verdict" in text and "a\\|b&lt;i>" in text
    tables = [line for line in text.splitlines() if line.startswith("| ")]
    assert len(tables) > 10


def test_a_model_without_records_has_no_tables(tmp_path):
    with pytest.raises(AssertionError, match="has no records of tiny"):
        markdown.store_model(tmp_path, "tiny")


def test_the_windows_of_different_masks_have_lines_of_their_own(tmp_path):
    """Two windows of one name would hide each other."""
    for context in (256, 512):
        for near, masks, fused in ((0, 16, 20.0), (64, 16, 60.0), (64, 32, 70.0)):
            more = {"near": near} if near else {}
            label = f"PLSH S={masks} gamma rb" + f" +{near} near" * bool(near)
            of_masks = {**made.plsh(masks, "rb"), **more}
            made.timed(made.cell(tmp_path, of_masks, context=context, fused=fused, label=label), fused)
            made.timed(made.cell(tmp_path, {**made.window(fused), **more}, context=context, fused=fused), fused / 2)
    shown = markdown.store_model(tmp_path, "m")
    assert [line for line in shown.splitlines() if line.startswith("| window of equal")][:3] == [
        "| window of equal fused cost | 100.0 [90.0, 110.0] | 100.0 [90.0, 110.0] |",
        "| window of equal fused cost as PLSH S=16 gamma rb +64 near | 300.0 [270.0, 330.0] | 300.0 [270.0, 330.0] |",
        "| window of equal fused cost as PLSH S=32 gamma rb +64 near | 350.0 [315.0, 385.0] | 350.0 [315.0, 385.0] |",
    ]
