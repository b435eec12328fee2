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
