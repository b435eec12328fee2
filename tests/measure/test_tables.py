"""The tables of README.md and docs/ show what the committed records say."""

import shutil

from harness.common.paths import ROOT
from tests.measure.tables import main, rewritten


def test_tables_in_the_pages_are_current():
    """Run `make tables` if this fails."""
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    assert main(["--check", *map(str, pages)]) == 0


def test_a_stale_table_is_found_and_rewritten(tmp_path, capsys):
    page = tmp_path / "README.md"
    shutil.copy(ROOT / "README.md", page)
    whole = page.read_text()
    assert "<!-- table:" in whole
    page.write_text(whole.replace("exact ALiBi | 511.5", "exact ALiBi | 1.0"))
    assert main(["--check", str(page)]) == 1
    assert page.read_text() != whole
    assert main([str(page)]) == 0 and page.read_text() == whole
    assert "Rewritten: README.md" in capsys.readouterr().out


def test_a_mark_may_ask_for_the_comparison_alone():
    mark = "<!-- table: docs/results/first {} -->\n<!-- end of table -->\n"
    whole, comparison = (
        rewritten(mark.format(words)).splitlines() for words in ("tiny-plain", "tiny-plain comparison")
    )
    start = next(i for i, line in enumerate(whole) if line.startswith("| accuracy at needle depth"))
    assert len([line for line in comparison if line.startswith("| ")]) == 6
    assert comparison[1:-1] == whole[1 : start - 1]
