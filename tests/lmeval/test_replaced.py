"""lm-eval's own command with the model `plsh`: the scores of `harness.run`, document by document."""

import json
import sys

import pytest

from harness import lm_eval as command
from harness.errors import UserError
from tests.lmeval.conftest import embedded


@pytest.fixture
def lm_eval(monkeypatch, capsys):
    """Call lm-eval's command through ours: lm_eval("--tasks", ...) -> (exit code, last line of stdout, stderr)."""
    monkeypatch.setattr("lm_eval.__main__.setup_logging", lambda *_: None)

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["harness.lm_eval", *arguments, "--device", "cpu", "--batch_size", "4"])
        code = command.main()
        out, err = capsys.readouterr()
        return code, out.strip().splitlines()[-1], err

    return call


def test_ruler_has_the_answers_and_scores_of_task_ruler(cell, lm_eval, tmp_path):
    model = f"pretrained={embedded('tiny')},attn=plsh,masks=32,weights=rb,sinks=4,seed=3,draws=3"
    options = ("--tasks", "niah_multikey_2", "--metadata", '{"max_seq_lengths": [512]}', "--limit", "12")
    options += ("--log_samples", "--output_path", str(tmp_path / "out"))
    assert lm_eval("--model", "plsh", "--model_args", model, *options)[0] == 0
    (file,) = (tmp_path / "out").rglob("samples_*.jsonl")
    theirs = {row["doc_id"]: row for row in map(json.loads, file.read_text().splitlines())}

    options = ("model=tiny", "task=ruler", "task.ruler.names=[niah_multikey_2]", "context=512", "samples=12", "draws=3")
    attn = ("masks=32", "attn.weights=rb", "attn.sinks=4", "seed=3", "references=none")
    code, _, rows, _ = cell(*options, *attn)
    ours = {row["key"]: row for row in rows["niah_multikey_2"]}
    assert code == 0 and set(ours) == set(theirs) == set(range(12))
    for number, row in theirs.items():
        assert ours[number]["prediction"] == row["filtered_resps"][0]
        assert ours[number]["score"] == row["512"]
    assert 0 < sum(row["512"] for row in theirs.values()) < 12, "all right or all wrong would show little"


def test_a_mistake_of_an_option_is_one_sentence(lm_eval):
    model = f"pretrained={embedded('tiny')},attn=plsh,sampler=gama"
    code, last, err = lm_eval("--model", "plsh", "--model_args", model, "--tasks", "niah_single_1")
    message = json.loads(last)["message"]
    assert code == 2 and "Did you mean gamma" in message and err.endswith(f"{message}\n")


@pytest.fixture(scope="module")
def lm():
    command.register()
    from lm_eval.api.registry import get_model

    options = {"attn": "plsh", "masks": 4, "draws": 2, "device": "cpu", "max_length": 40}
    return get_model("plsh")(pretrained=str(embedded("tiny")), **options)


def request(kind: str, number: int, *arguments):
    from lm_eval.api.instance import Instance

    return Instance(kind, {}, arguments, 0, metadata=("task", number, 1))


@pytest.mark.parametrize("kind", ["loglikelihood", "loglikelihood_rolling", "generate_until"])
def test_each_document_is_answered_under_its_own_draw(lm, kind):
    before, after = "the pass key is 7", " 3 1"
    arguments = {"loglikelihood": (before, after), "loglikelihood_rolling": (before,)}
    given = arguments.get(kind, (before, {"until": [], "max_gen_toks": 4}))
    found = getattr(lm, kind)([request(kind, number, *given) for number in (0, 1, 2, 3)])
    assert found[0] == found[2] and found[1] == found[3]
    from lm_eval.models.huggingface import HFLM

    for draw in (0, 1):  # as lm-eval itself computes it, with that draw in the model
        lm.replacement.redraw(draw)
        assert getattr(HFLM, kind)(lm, [request(kind, 0, *given)])[0] == found[draw]
    if kind != "generate_until":
        assert found[0] != found[1]


def test_a_prompt_is_never_cut(lm):
    long = "1 2 3 4 5 6 7 8 9 " * 5
    with pytest.raises(UserError, match="No prompt is ever cut"):
        lm.generate_until([request("generate_until", 0, long, {"until": [], "max_gen_toks": 4})])
    with pytest.raises(UserError, match="add max_length="):
        lm.loglikelihood([request("loglikelihood", 0, long, " 3")])
