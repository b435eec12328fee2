"""lm-eval's model `plsh`: what it answers and refuses. Its scores beside `task=ruler`:
test_against_lm_eval.py."""

import json

import pytest

from harness import lm_eval as command
from harness.common.errors import UserError
from tests.tasks.lmeval.conftest import embedded, ruler


def test_a_mistake_of_an_option_is_one_sentence(lm_eval):
    model = f"pretrained={embedded('tiny')},attn=plsh,sampler=gama"
    code, last, err = lm_eval("--model", "plsh", "--model_args", model, "--tasks", ruler("niah_single_1"))
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
