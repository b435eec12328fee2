"""Tables as Markdown: of a store, and those of README.md and docs/, which show what the committed records say."""

import shutil

import pytest

from harness.config import ROOT
from harness.report import markdown
from harness.report.__main__ import main
from tests.report import made


def test_tables_in_the_pages_are_current():
    """Run `make tables` if this fails."""
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    assert main(["--check", "--markdown", *map(str, pages)]) == 0


def test_a_stale_table_is_found_and_rewritten(tmp_path, capsys):
    page = tmp_path / "README.md"
    shutil.copy(ROOT / "README.md", page)
    whole = page.read_text()
    assert "<!-- table:" in whole
    page.write_text(whole.replace("exact ALiBi | 511.5", "exact ALiBi | 1.0"))
    assert main(["--check", "--markdown", str(page)]) == 1
    assert page.read_text() != whole
    assert main(["--markdown", str(page)]) == 0 and page.read_text() == whole
    assert "Rewritten: README.md" in capsys.readouterr().out
    with pytest.raises(AssertionError):
        markdown.markdown(tmp_path, "tiny")


def test_tables_of_a_store_are_markdown(tmp_path, capsys):
    made.sweep(tmp_path, models=["a|b<i>"], contexts=[256], masks=[4], samples=20)
    assert main([str(tmp_path), "--markdown"]) == 0
    text = capsys.readouterr().out
    assert "## Verdict" in text and "a\\|b&lt;i>" in text
    tables = [line for line in text.splitlines() if line.startswith("| ")]
    assert len(tables) > 10


def test_a_store_in_the_place_of_a_page_is_a_mistake(tmp_path, capsys):
    assert main(["--markdown", str(tmp_path)]) == 2
    assert "before --markdown" in capsys.readouterr().err
