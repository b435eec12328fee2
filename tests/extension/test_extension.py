"""docs/architecture.md promises that an attention method is one file, one line and one YAML, a
sampler one file and one line. Both are added here as a user would, and run through everything that
a cell passes."""

import json
import re

import pytest

from harness.analysis import reader
from harness.attentions.registry import ATTENTIONS
from harness.report.__main__ import main as report
from harness.tracking.content import content_of
from kernels import Window
from kernels.methods.samplers import SAMPLERS
from tests.conftest import ROOT
from tests.extension.antithetic import Antithetic
from tests.extension.layered import Layered

FAST = ("context=160", "samples=8", "references=compute")


@pytest.fixture(autouse=True)
def added(monkeypatch):
    monkeypatch.setitem(ATTENTIONS, Layered.name, Layered)
    monkeypatch.setitem(SAMPLERS, Antithetic.name, Antithetic())


@pytest.fixture
def page(tmp_path, capsys):
    """The page of the store tmp_path / "store" as text."""

    def made() -> str:
        assert report([str(tmp_path / "store"), "--out", str(tmp_path / "page")]) == 0
        capsys.readouterr()
        return (tmp_path / "page" / "index.html").read_text()

    return made


def test_a_method_runs_from_the_command_to_the_table_the_page_and_tracking(run, tmp_path, page):
    options = ("--config-dir", str(ROOT / "tests" / "extension" / "conf"), "attn=layered", "attn.reach=0.75")
    code, document, out, err = run(*options, *FAST, f"results={tmp_path / 'store'}")
    assert code == 0, err
    assert set(document["references"]) == {"exact", "window", "sliding"}
    cell = json.loads((tmp_path / "store" / document["cell_id"] / "cell.json").read_text())
    own = {"name": "layered", "masks": None, "sampler": None, "weights": None, "cutoff": None, "reach": 0.75}
    assert cell["identity"]["attn"] == own
    assert cell["identity"]["draws"] is None
    exact, window = (json.loads((tmp_path / "store" / document["references"][r] / "cell.json").read_text())
                     for r in ("exact", "window"))  # fmt: skip
    slopes = cell["identity"]["model"]["slopes"]
    seen = Window(slopes, 0.75).pairs(160).sum() / (160 * len(slopes))  # its edge is rounded to a token
    visited = cell["pairs_per_row"]["fused"]
    assert visited == pytest.approx(float(seen + exact["pairs_per_row"]["fused"]) / 2, rel=0.02)
    assert window["pairs_per_row"]["fused"] == pytest.approx(visited, rel=1e-4)
    row = next(line for line in out.splitlines() if "layered T=0.75" in line)
    assert f"{visited:.1f}" in row
    config = content_of(tmp_path / "store", document["cell_id"])["config"]
    assert config["attn"] == own
    assert config["label"] == "layered T=0.75"
    html = page()
    assert "layered T=0.75" in html
    assert re.search(r'"name": ?"layered"', html)  # a row, and a curve of its own
    (record,) = (r for r in reader.records(tmp_path / "store") if r.cell_id == document["cell_id"])
    assert record.method == Layered(0.75)
    code, again, _, _ = run(*options, *FAST, "attn.every=2", "masks=3", "seed=9", f"results={tmp_path / 'store'}")
    assert code == 0
    assert again["rows_written"] == 0  # options of other methods are not in its identity


def test_a_sampler_without_formulas_runs_under_count_and_lacks_what_needs_them(run, tmp_path, page):
    options = ("attn.sampler=antithetic", "masks=4", "draws=4", *FAST, f"results={tmp_path / 'store'}")
    code, document, out, err = run(*options)
    assert code == 0, err
    assert list(document["references"]) == ["exact"]
    assert document["tasks"] == {"retrieval": "ok"}
    cell = json.loads((tmp_path / "store" / document["cell_id"] / "cell.json").read_text())
    assert cell["pairs_per_row"] == {}
    assert cell["identity"]["attn"]["sampler"] == "antithetic"
    assert "PLSH S=4 antithetic count" in out
    config = content_of(tmp_path / "store", document["cell_id"])["config"]
    assert config["attn"]["sampler"] == "antithetic"
    html = page()
    assert "PLSH S=4 antithetic count" in html
    assert "window of equal fused pairs not in the store" not in html
    for more, needs in (("attn.weights=rb", "P(covered)"), ("attn=window", "the expected pairs of the masks")):
        code, _, _, err = run(*options, more)
        assert code == 2
        assert needs in err
        assert "gamma or systematic" in err


@pytest.mark.parametrize("file", ["layered.py", "antithetic.py", "conf/attn/layered.yaml"])
def test_the_page_shows_this_very_code(file):
    code = (ROOT / "tests" / "extension" / file).read_text()
    if file.endswith(".py"):
        code = code[code.index("\n\n") :]  # without the docstring
    assert code.strip() in (ROOT / "docs" / "architecture.md").read_text()


def test_the_page_shows_the_line_of_the_registry():
    page = (ROOT / "docs" / "architecture.md").read_text()
    (line,) = (line for line in page.splitlines() if line.startswith("KINDS"))
    registry = (ROOT / "harness" / "attentions" / "registry.py").read_text()
    assert line.replace(", Layered)", ")") in registry.splitlines()


def test_layers_that_differ_are_not_measured_by_one(run, tmp_path):
    options = ("--config-dir", str(ROOT / "tests" / "extension" / "conf"), "attn=layered", "task=theory")
    code, _, _, err = run(*options, "context=256", f"results={tmp_path}")
    assert code == 2
    assert "measures one layer, and the layers of layered T=0.5 differ" in err
    code, _, _, err = run(*options, "context=256", "attn.every=1", "references=none", f"results={tmp_path}")
    assert code == 0, err  # every layer is exact


def test_weights_for_too_few_layers_are_an_error_in_words(run, tmp_path, monkeypatch):
    weights_of = Layered.weights_of
    monkeypatch.setattr(Layered, "weights_of", lambda self, *rest, **more: weights_of(self, *rest, **more)[:-1])
    options = ("--config-dir", str(ROOT / "tests" / "extension" / "conf"), "attn=layered", "references=none")
    code, _, out, err = run(*options, "context=160", "samples=2", f"results={tmp_path}")
    assert code == 1
    assert "attn=layered returned the weights of 1 layers of 2" in out + err


def test_a_file_without_its_line_in_the_registry_is_a_mistake(run, tmp_path, monkeypatch):
    monkeypatch.delitem(ATTENTIONS, "layered")
    code, _, _, err = run("--config-dir", str(ROOT / "tests" / "extension" / "conf"), "attn=layered")
    assert code == 2
    assert "registry.py" in err and "A file in conf/attn sets" in err


def test_a_method_that_is_not_there_is_named_with_its_neighbours(run):
    code, _, _, err = run("attn=layred")
    assert code == 2
    assert "There is no attn=layred" in err
