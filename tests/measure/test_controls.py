"""The record of the controls holds what a store says, and its commands are those of the harness."""

import shlex

import pytest

from harness.common.errors import UserError
from harness.experiment.compose import compose_config
from tests.measure import controls
from tests.report import made

TOPK = {**made.ALIBI, "name": "topk", "keys": 16}


def test_each_method_stands_beside_exact(tmp_path):
    made.record(made.cell(tmp_path, made.ALIBI, fused=127.5), lambda k: 1.0)
    made.record(made.cell(tmp_path, TOPK, fused=15.0, label="top-k oracle k=16"), lambda k: float(k < 36))
    (part,) = controls.measure(tmp_path)["parts"]
    assert (part["model"], part["task"], part["samples"]) == ("m", "retrieval", 40)
    exact, oracle = part["rows"]
    assert exact["minus_exact"] is None and oracle["minus_exact"]["value"] == pytest.approx(-0.1)
    assert oracle["pairs_per_row"] == 15.0 and oracle["metrics"]["retrieval/accuracy"]["value"] == 0.9
    shown = controls.markdown({"parts": [part]})
    assert "| top-k oracle k=16 | 15.0 | 0.900 [" in shown


def test_a_store_without_the_runs_is_refused(tmp_path, capsys):
    with pytest.raises(UserError, match="holds none of the runs"):
        controls.measure(tmp_path)
    made.record(made.cell(tmp_path, TOPK, fused=15.0, label="top-k oracle k=16"), lambda k: 1.0)
    assert controls.main(["--results", str(tmp_path), "--json", str(tmp_path / "out.json")]) == 2
    assert "exact ALiBi is not in the store" in capsys.readouterr().err and not (tmp_path / "out.json").exists()


def test_its_commands_name_options_that_there_are():
    for command in list(controls.commands())[::4]:
        program, *words = shlex.split(command)
        assert (program, words[:3]) == ("python", ["-m", "harness.run", "-m"])
        compose_config([word for word in words[3:] if "," not in word or "[" in word])


def test_the_text_is_the_novel_with_a_line_for_each_paragraph(tmp_path, capsys, monkeypatch):
    book = controls.books.BOOKS[-1]
    novel = "Loomings.\n\n\nCall me Ishmael. Some\nyears ago.\n\nIt is a way.\n"
    monkeypatch.setattr(controls.books, "read_books", lambda folder: {book: novel})
    assert controls.main(["--books", str(tmp_path), "--text", str(tmp_path / "novel.txt")]) == 0
    assert (tmp_path / "novel.txt").read_text() == "Loomings.\n\nCall me Ishmael. Some years ago.\nIt is a way.\n"
    assert controls.main(["--books", str(tmp_path)]) == 2
    assert "--books needs --text FILE" in capsys.readouterr().err
