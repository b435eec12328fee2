"""README.md and docs/ as text: their length, the width of prose, links between pages, and the map of all pages."""

import itertools
import re

import pytest

from harness.common.paths import ROOT

PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "slurm/README.md", "docs/results/README.md")]
PAGES += sorted((ROOT / "docs").glob("*.md"))
GENERATED = re.compile(r"<!-- table: .*?<!-- end of table -->", re.DOTALL)
FENCED = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)


def prose(text: str) -> list[str]:
    """Lines that are neither code, tables, marks, headings nor pictures."""
    lines = FENCED.sub("", GENERATED.sub("", text)).splitlines()
    return [line for line in lines if not line.startswith(("    ", "|", "<!--", "#", "!["))]


def anchors(text: str) -> set[str]:
    """The anchors that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", FENCED.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_readme_is_one_page():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 140


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_prose_wraps_at_100_columns(page):
    assert [line for line in prose(page.read_text()) if len(line) > 100] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_between_pages_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)\s]*\.md[^)\s]*|#[^)\s]+)\)", page.read_text()):
        if "://" in link:
            continue
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        assert target.is_file(), link
        assert not anchor or anchor in anchors(target.read_text()), link


def test_the_map_has_a_line_for_each_page():
    index = (ROOT / "docs" / "index.md").read_text()
    listed = re.findall(r"^\| \[[\w]+\]\(([^)]+)\) \|", index[index.index("## Pages") :], re.MULTILINE)
    pages = itertools.chain((ROOT / "docs").glob("*.md"), (ROOT / "docs").glob("*.ipynb"))
    names = {page.name for page in pages} - {"index.md"}
    assert sorted(listed) == sorted(names | {"results/README.md", "../slurm/README.md"})
