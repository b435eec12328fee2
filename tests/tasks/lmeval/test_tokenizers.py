"""Odd tokenizers under lm-eval's requests: one that adds its beginning, one that has none."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoTokenizer

from harness.models.load import load_model
from harness.models.options import ModelConfig
from harness.models.spec import resolve_model
from tests.tasks.lmeval.conftest import PASSAGES


@pytest.fixture(scope="module")
def folder(checkpoint, tmp_path_factory):
    """folder("adds" | "names" | "none"): a random model whose tokenizer puts its bos_token before
    every text, has a bos_token, or has neither that nor an eos_token."""

    def made(kind: str) -> str:
        place = tmp_path_factory.mktemp(kind)
        shutil.copytree(checkpoint, place, dirs_exist_ok=True)
        words = json.loads((place / "tokenizer.json").read_text())
        config = json.loads((place / "tokenizer_config.json").read_text())
        begin = config["eos_token"]
        if kind == "adds":
            number = AutoTokenizer.from_pretrained(checkpoint).eos_token_id
            text = {"Sequence": {"id": "A", "type_id": 0}}
            single = [{"SpecialToken": {"id": begin, "type_id": 0}}, text]
            special = {begin: {"id": begin, "ids": [number], "tokens": [begin]}}
            pair = [*single, {"Sequence": {"id": "B", "type_id": 1}}]
            words["post_processor"] = {"type": "TemplateProcessing", "single": single, "pair": pair}
            words["post_processor"]["special_tokens"] = special
        if kind == "none":
            config = {k: v for k, v in config.items() if k not in ("eos_token", "bos_token", "pad_token", "unk_token")}
        else:
            config["bos_token"] = begin
        (place / "tokenizer.json").write_text(json.dumps(words))
        (place / "tokenizer_config.json").write_text(json.dumps(config))
        return str(place)

    return made


def loaded_from(place: str):
    spec = resolve_model(ModelConfig(name="local", path=place), None)
    return load_model(spec, device=torch.device("cpu"), kernel="sdpa")


def asked(kind: str, *arguments):
    return SimpleNamespace(request_type=kind, args=arguments, arguments=arguments)


def log_likelihood(loaded, ids: list[int], since: int) -> float:
    """Of the tokens from `since` on, by the model's own logits."""
    with torch.inference_mode():
        logits = loaded.model(torch.tensor([ids[:-1]])).logits[0].double()
    each = torch.log_softmax(logits, -1).gather(1, torch.tensor(ids[1:])[:, None])
    return float(each[since - 1 :].sum())


@pytest.mark.parametrize("kind", ["adds", "names"])
def test_a_text_has_one_beginning(folder, kind):
    from harness.tasks.lmeval.model import RunnerLM

    loaded = loaded_from(folder(kind))
    bos = loaded.tokenizer.bos_token_id
    own = loaded.tokenizer(PASSAGES[0], add_special_tokens=False)["input_ids"]
    assert (loaded.tokenizer(PASSAGES[0])["input_ids"][0] == bos) == (kind == "adds") and own[0] != bos
    lm = RunnerLM(loaded, context=400, generates=4, batch=2)
    (rolling,) = lm.loglikelihood_rolling([asked("loglikelihood_rolling", PASSAGES[0])])
    assert rolling == pytest.approx(log_likelihood(loaded, [bos, *own], 1), abs=1e-3)
    request = asked("loglikelihood", "", PASSAGES[0])
    ((empty, _),) = lm.loglikelihood([request])
    assert empty == pytest.approx(rolling, abs=1e-3) and lm.tokens(request) == len(own)
    # one that brings the beginning with it, as chat templates do, gets no other, whatever it stands
    # beside
    begun, plain = loaded.tokenizer.bos_token + PASSAGES[0], PASSAGES[1]
    ids, mask = lm.tok_batch_encode([begun, plain])
    for text, row, seen in zip((begun, plain), ids, mask, strict=True):
        assert row[seen.bool()].tolist() == lm.tok_encode(text)
    assert lm.tok_encode(begun) == [bos, *own]


def test_without_a_beginning_prompts_work_and_whole_texts_are_refused(folder, cell, definitions, tmp_path):
    place = folder("none")
    loaded = loaded_from(place)
    assert loaded.tokenizer.eos_token is None and loaded.tokenizer.bos_token is None
    options = ("model=local", f"model.path={place}", "task=lm_eval", "context=200", "samples=3", "attn=alibi")
    include = f"task.lm_eval.include_path={definitions}"
    code, document, rows, err = cell(*options, include, "task.lm_eval.names=[endings,repeats]")
    assert code == 0, err
    for row in rows["endings"]:
        before = loaded.tokenizer(PASSAGES[row["key"]])["input_ids"]
        likelihoods = []
        for choice in (" salt", " rope", " rain"):
            whole = loaded.tokenizer(PASSAGES[row["key"]] + choice)["input_ids"]
            likelihoods.append(log_likelihood(loaded, whole, len(before)))
        assert row["values"]["acc"] == float(max(likelihoods) == likelihoods[0])
    prompt = torch.tensor([loaded.tokenizer(PASSAGES[0])["input_ids"]])
    generated = loaded.model.generate(prompt, max_new_tokens=5, do_sample=False)[0, prompt.shape[1] :]
    assert rows["repeats"][0]["prediction"] == loaded.tokenizer.decode(generated)
    code, document, _, err = cell(*options, include, "task.lm_eval.names=[passages]")
    assert code == 2 and "no bos_token and no eos_token" in document["message"] and "Traceback" not in err
