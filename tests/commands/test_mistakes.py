"""A mistake has exit code 2, at most four lines, and one JSON line, whichever command it is made in and
whichever file it stands in."""

import importlib
import json
import os
import sys

import pytest

from harness.common.errors import LINES, report_mistake
from harness.common.streams import LONGEST, say_once
from harness.experiment.execute import failure_status
from tests.odd.make import checkpoint, setting

USAGE = [
    ("show", ("--nowhere",), "unrecognized arguments: --nowhere. See python -m harness.show --help."),
    ("show", ("--results",), "expected one argument"),
    ("show", ("a", "b"), "unrecognized arguments: b"),
    ("report.__main__", ("--wandb", "--markdown"), "not allowed with"),
    ("report.__main__", ("--compare", "a"), "expected 2 arguments"),
    ("report.__main__", ("x" * 300,), "no folder"),
    ("collect", (), "required: --out"),
    ("collect", ("--out",), "expected one argument"),
    ("collect", ("x" * 300, "--out", "o.csv"), "no folder"),
    ("show", ("--results=" + "x" * 3000,), "holds no records"),
    ("sync", ("--timeout", "soon"), "invalid float value: 'soon'"),
    ("sync", ("--timeout", "1" * 5000 + "x"), "invalid float value"),
    ("sweep.__main__", (), "required: file"),
    ("sweep.__main__", ("--jobs", "many", "f"), "invalid int value: 'many'"),
    ("sweep.__main__", ("/dev/zero",), "no regular file"),
    ("sweep.__main__", ("nowhere.yaml",), "nowhere.yaml cannot be read: there is no such file"),
    ("check", ("--fixed",), "unrecognized arguments: --fixed"),
    ("data", ("--results",), "is a flag of the command line"),
    ("data", ("masks=many",), "could not be converted"),
    ("data", ("draws=${oc.env:HOME}",), "draws"),
    ("lm_eval", ("--model", "plsh", "--limit", "many"), "invalid float value: 'many'"),
    ("lm_eval", ("--model", "plsh", "--nowhere"), "--nowhere"),
    ("lm_eval", ("--model", "plsh", "--tasks", "nobody_has_this"), "Tasks not found: nobody_has_this"),
    ("results.schema", ("--nowhere",), "unrecognized arguments: --nowhere"),
    ("training.__main__", ("--only", "nobody"), "invalid choice: 'nobody'"),
    ("training.__main__", ("--only", "tiny-books"), "go together"),
    ("run", ("--cfg", "nothing"), "invalid choice: 'nothing'"),
    ("run", ("--info=x",), "invalid choice: 'x'"),
    ("run", ("hydra.mode=9",), "hydra.mode"),
    ("run", ("masks=" + "9" * 5000,), "masks"),
]


def held(capsys, monkeypatch, tmp_path, module, words):
    """The message of a refusal, after its form was checked."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [module, *words])
    capsys.readouterr()
    say_once.cache_clear()
    assert importlib.import_module(f"harness.{module}").main() == 2
    out, err = capsys.readouterr()
    lines = [*out.splitlines(), *err.splitlines()]
    document = json.loads(out.splitlines()[-1])
    assert document["status"] == "invalid" and len(lines) <= 4 and len(out + err) < 4 * LONGEST
    assert not {"usage:", "Traceback"} & set(" ".join(lines).split())
    return document["message"]


@pytest.mark.parametrize(("module", "words", "says"), USAGE, ids=[f"{m} {' '.join(w)[:40]}" for m, w, _ in USAGE])
def test_of_every_command(capsys, monkeypatch, tmp_path, module, words, says):
    assert says in held(capsys, monkeypatch, tmp_path, module, words)


def test_two_long_mistakes_have_room_in_a_terminal(capsys):
    report_mistake("a" * 5000 + "\n" + "b" * 5000)
    out, err = capsys.readouterr()
    assert len(out + err) < 4000 and len(err.splitlines()) == 2
    report_mistake("a", mistakes=[{"message": "b" * 5000}])
    assert len(capsys.readouterr().out) < 1000


def link(target):
    return lambda path: path.symlink_to(target)


KINDS = {"folder": os.mkdir, "fifo": os.mkfifo, "device": link("/dev/zero"), "dangling": link("nowhere")}


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"])
@pytest.mark.parametrize("kind", KINDS)
def test_of_a_checkpoint_whose_file_is_none(capsys, monkeypatch, tmp_path, name, kind):
    words = checkpoint()(tmp_path / "made")
    (tmp_path / "made" / name).unlink(missing_ok=True)
    KINDS[kind](tmp_path / "made" / name)
    said = held(capsys, monkeypatch, tmp_path, "run", [*words, "attn=alibi", "references=none"])
    assert "no regular file" in said or "cannot be read" in said


@pytest.mark.parametrize("kind", [*KINDS, "missing", "beyond a file", "long"])
def test_of_a_text(capsys, monkeypatch, tmp_path, kind):
    place = tmp_path / "book"
    if kind in KINDS:
        KINDS[kind](place)
    (tmp_path / "file").touch()
    name = {"long": "x" * 300, "beyond a file": str(tmp_path / "file" / "x")}.get(kind, str(place))
    words = ["task.retrieval.haystack=text", f"task.retrieval.text={name}", "attn=alibi"]
    assert "task.retrieval.text=" in held(capsys, monkeypatch, tmp_path, "run", words)


VALUES = [None, True, [], {}, "8", -1, 0, 0.5, 2**63 - 1, 10**400, [[1]], "x" * 5000]
FIELDS = ["model_type", "n_heads", "d_model", "n_layers", "vocab_size", "expansion_ratio", "attn_config", "max_seq_len"]


@pytest.mark.parametrize("field", FIELDS)
def test_of_a_setting_of_another_kind(capsys, monkeypatch, tmp_path, field):
    """Each is refused, but for null and those that the family ignores."""
    for number, value in enumerate(VALUES):
        words = checkpoint(config=setting(**{field: value}))(tmp_path / str(number))
        if value is None or (field == "attn_config" and not value and not isinstance(value, bool)):
            continue  # the family's own default
        if field in ("expansion_ratio", "max_seq_len") and value in (True, 0.5):
            continue
        words = [*words, "attn=alibi", "references=none", "tracking=disabled", "samples=1", "context=160"]
        assert held(capsys, monkeypatch, tmp_path, "run", words)


def test_of_many_lines(capsys):
    assert report_mistake("\n".join(f"mistake {n}" for n in range(9))) == 2
    out, err = capsys.readouterr()
    assert err.splitlines() == ["mistake 0", "mistake 1", "... and 7 more mistakes, which are in the JSON line."]
    assert len(json.loads(out)["message"].splitlines()) == 9
    report_mistake("\n".join("abc"))
    assert capsys.readouterr().err.splitlines() == ["a", "b", "c"] and LINES == 3


def test_out_of_memory_in_c_code_is_oom():
    for error in (MemoryError(), RuntimeError("std::bad_alloc"), OSError(12, "Cannot allocate memory")):
        assert failure_status(error) == "oom"
    assert failure_status(SystemError("<built-in> returned NULL without setting an exception")) == "oom"
    assert failure_status(RuntimeError("x")) == failure_status(OSError(28, "No space left on device")) == "error"
