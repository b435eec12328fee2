"""The notebook of the documentation runs from top to bottom, in a kernel of its own."""

import re

import nbclient
import nbformat
import pytest

from tests.conftest import ROOT

NOTEBOOK = ROOT / "docs" / "quickstart.ipynb"


@pytest.fixture(scope="module")
def executed():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client = nbclient.NotebookClient(
        notebook, timeout=120, startup_timeout=120, resources={"metadata": {"path": str(NOTEBOOK.parent)}}
    )
    return client.execute()


def outputs_of(notebook) -> list:
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


def test_it_replaces_compares_and_plots(executed):
    answers, divergence, accuracy, table, plot = (o["data"] for o in outputs_of(executed) if "data" in o)
    assert "'stock': ' 4071365." in answers["text/plain"]
    assert "PLSH S=256 gamma rb +4 sinks': ' 4071365." in answers["text/plain"]
    assert re.match(r"\{4: [\d.e-]+, 16: [\d.e-]+, 64: [\d.e-]+\}", divergence["text/plain"])
    assert "n=24" in accuracy["text/plain"]
    assert table["text/html"].count("PLSH S=") == 3
    traces = plot["application/vnd.plotly.v1+json"]["data"]
    assert [trace["name"] for trace in traces] == ["alibi", "plsh", "sliding", "window"]
    assert all(len(trace["y"]) == len(trace["error_y"]["array"]) > 0 for trace in traces)


def test_a_printed_cell_is_the_table_of_the_command(executed):
    """As wide as it needs to be and without colours, which a notebook's kernel asks for."""
    printed = "".join(o["text"] for o in outputs_of(executed) if o.get("name") == "stdout")
    assert printed.startswith("retrieval · tiny · 256 tokens") and "\x1b" not in printed
    assert re.search(r"│ PLSH S=64 gamma count +│ +[\d.]+ \([\d.]+ in passes\) │", printed)


def test_the_committed_notebook_holds_no_figures_of_an_earlier_run():
    cells = [cell for cell in nbformat.read(NOTEBOOK, as_version=4).cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in cells)
