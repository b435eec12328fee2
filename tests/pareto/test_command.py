"""`python -m harness.pareto` on stores made by hand: tables, record, picture, words and plan."""

import json
import re
import xml.etree.ElementTree as ET

import pytest

from harness.analysis import reader
from harness.common.files import read_json
from harness.common.paths import ROOT
from harness.pareto import page, picture
from harness.pareto.__main__ import main
from harness.pareto.record import Verdict, points
from tests.report import made


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Retrieval and text of one model at two contexts, timed on text."""
    root = tmp_path_factory.mktemp("store")
    made.sweep(root, models=["m"], contexts=[256, 512], masks=[4, 16], samples=20)
    for attn, fused, value in ((made.plsh(4, "rb"), 21.25, 0.4), (made.window(4.0), 21.25, 0.02)):
        cell = made.cell(root, attn, fused=fused)
        made.on_text(cell, lambda k, d, v=value: v + 0.01 * (k % 3) + 0.01 * d)
        made.timed(cell, 2.0, speedup=2.0)
    return root


@pytest.fixture
def ran(store, tmp_path, capsys):
    """The command with everything it writes: (last JSON line, stdout, record, picture)."""
    record, drawn = tmp_path / "pareto.json", tmp_path / "pareto.svg"
    assert main([str(store), "--record", str(record), "--picture", str(drawn)]) == 0
    out = capsys.readouterr().out
    return json.loads(out.strip().splitlines()[-1]), out, read_json(record), drawn.read_text()


def test_tables_words_and_json(ran):
    last, out, record, _ = ran
    assert (last["status"], last["cells"]) == ("ok", len(record["points"]))
    assert sum(last["decisions"].values()) == last["comparisons"] == len(record["findings"])
    assert "PLSH S=4 gamma rb" in out and "KV MiB" in out
    assert last["words"][-1].startswith("m, retrieval: ") or last["words"][0].startswith(
        "m, divergence on text 00000000"
    )
    assert all(sentence in out for sentence in last["words"])


def test_a_point_joins_tasks_and_costs_of_a_cell(ran):
    points = {(p["label"], p["context"]): p for p in ran[2]["points"]}
    masks = points["PLSH S=4 gamma rb", 256]
    assert masks["metrics"].keys() == {"retrieval/accuracy", "fidelity/kl"}
    assert masks["cost"] == {"pairs": 21.25, "ms": 20.0, "time": 0.5, "kv_bytes": 2 * 2**20, "evicting": False}
    assert points["exact ALiBi", 512]["cost"]["time"] == 1.0  # by definition
    assert points["window T=16.0", 512]["cost"]["time"] is None


def test_one_question_at_two_contexts_has_one_name(tmp_path):
    """The stride of a text, and so a task's options, follow the context."""
    for context, text in ((256, "1" * 64), (512, "2" * 64)):
        cell = made.cell(tmp_path, made.plsh(4, "rb"), context=context, fused=20.0)
        made.on_text(cell, lambda k, d: 0.1 + 0.01 * (k % 3), text=text)
    found = points(reader.comparisons(reader.records(tmp_path)))
    assert [list(p.metrics) for p in found] == [["fidelity/kl"], ["fidelity/kl"]]


def test_the_record_is_enough_for_page_and_picture(ran):
    _, _, record, drawn = ran
    assert Verdict.read(record).as_dict() == record
    assert picture.svg(Verdict.read(record).points) == drawn
    said = page.markdown(record)
    assert said.startswith("Of all ") and "\n\n**m, " in said
    for p in record["points"]:
        assert p["label"] in said
    assert all(len(line) <= page.WIDTH for line in page.PARTS["short"](record).splitlines())
    assert "0.05 after Holm's correction over all" in page.PARTS["made"](record)


def test_the_picture_shows_every_point_of_every_metric(ran):
    root = ET.fromstring(ran[3])
    marks = [
        e for e in root.iter() if re.sub("{.*}", "", e.tag) in ("circle", "rect", "polygon") and "stroke" in e.attrib
    ]
    points = Verdict.read(ran[2]).points
    assert len(marks) == len({p.curve for p in points}) + sum(len(p.metrics) for p in points)
    words = " ".join(e.text or "" for e in root.iter())
    assert "m, 256 tokens" in words and "fidelity: kl" in words and "slope window" in words


def test_a_record_of_another_version_is_refused(ran):
    with pytest.raises(Exception, match="version 99"):
        Verdict.read({**ran[2], "version": 99})


def test_the_plan_says_prompts_and_draws(store, capsys):
    assert main([str(store), "--plan", "--difference", "0.1"]) == 0
    out = capsys.readouterr().out
    last = json.loads(out.strip().splitlines()[-1])
    assert last["difference"] == 0.1 and last["tests"] > 0
    assert {o["against"] for o in last["observed"]} >= {"exact ALiBi", "window T=4.0"}
    assert all(0 <= o["discordant"] <= 1 and (o["draws"] is None or o["draws"] >= 2) for o in last["observed"])
    assert "Draws of 20 prompts that decide 10 points" in out


def test_a_plan_needs_no_store(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["--plan"]) == 0
    out = capsys.readouterr().out
    assert "Prompts that decide 2 points" in out
    assert re.search(r"0\.1 +. +1,957 ", out)  # statsmodels' TTestPower().solve_power says 1956.3


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["absent"], "There is no folder absent"),
        (["absent", "--plan"], "There is no folder absent"),
        (["empty"], "empty holds no masks beside exact ALiBi"),
        (["empty", "--plan", "--difference", "2"], "--difference must be between 0 and 1, not 2"),
        (["empty", "--recrod", "x"], "unrecognized arguments: --recrod x"),
    ],
)
def test_mistakes_are_sentences(arguments, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert said in err
    assert json.loads(out.strip().splitlines()[-1])["status"] == "invalid"


def test_a_record_that_cannot_be_written_is_a_sentence(store, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main([str(store), "--record", str(tmp_path / "file" / "r.json")]) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_the_committed_picture_shows_the_committed_record():
    """Run `make verdict` if this fails."""
    record = read_json(ROOT / "docs" / "results" / "pareto.json")
    assert (ROOT / "docs" / "pictures" / "pareto.svg").read_text() == picture.svg(Verdict.read(record).points)
