"""The retrieval task's rows: what they say of a prompt is said of the one that was fed."""

import hashlib
import json

import pytest
import torch

from harness.models.load import load_model
from harness.models.options import ModelConfig
from harness.models.spec import resolve_model
from harness.tasks.retrieval import prompts
from harness.tasks.retrieval.task import answer, seen_by
from kernels import Alibi, PositionalLSH, Window, alibi_slopes
from tests.conftest import EMBEDDED

SLOPES = alibi_slopes(8)


@pytest.fixture(scope="module")
def tiny():
    spec = resolve_model(ModelConfig(name="tiny", path=str(EMBEDDED / "tiny")), None)
    return load_model(spec, device=torch.device("cpu"), kernel="auto")


def made(tiny, context: int, first: int) -> list[dict]:
    arguments = {"samples": 3, "data_seed": 0, "haystack": "noise", "text": None, "depths": [0.0, 0.5, 1.0]}
    samples = prompts.make_samples(prompts.encoder(tiny.tokenizer), context=context, **arguments)
    return [{**sample, "key": first + 2 * n} for n, sample in enumerate(samples)]


def test_prompts_of_several_lengths_are_answered_as_each_alone(tiny):
    samples = sorted(made(tiny, 300, 0) + made(tiny, 297, 1), key=lambda sample: sample["key"])
    rows = answer(tiny, samples)
    assert [row.key for row in rows] == list(range(6))
    assert {row.tokens_seen for row in rows} == {297, 300}
    for row, sample in zip(rows, samples, strict=True):
        (alone,) = answer(tiny, [sample])
        exact = ("prediction", "score", "doc_hash", "depth", "distance", "tokens_wanted")
        assert [getattr(row, name) for name in exact] == [getattr(alone, name) for name in exact]
        assert row.nll == pytest.approx(alone.nll, abs=1e-4)


def test_the_hash_of_a_question_is_that_of_what_is_fed(tiny):
    (sample, *_) = made(tiny, 300, 0)
    wrong = {**sample, "prompt": sample["prompt"].replace(sample["value"], "1234567"), "doc_hash": "as stored"}
    (found,) = answer(tiny, [wrong])
    assert found.score == 0
    assert found.doc_hash == hashlib.sha256(f"{wrong['prompt']}\0{wrong['value']}".encode()).hexdigest()[:16]


def test_the_share_of_a_users_text_is_in_every_row_and_beside_the_metrics(run, tmp_path):
    (tmp_path / "text").write_text("海上起了大风，船长站在甲板上。" * 90, encoding="utf-8")
    options = ("model=tiny", "attn=alibi", "context=400", "samples=4", "task.retrieval.haystack=text")
    text = f"task.retrieval.text={tmp_path / 'text'}"
    code, document, _, _ = run(*options, text, f"results={tmp_path / 'results'}")
    assert code == 0
    (part,) = tmp_path.glob("results/*/retrieval-*/parts/*.jsonl")
    shares = [json.loads(line)["text_share"] for line in part.read_text().splitlines()]
    assert len(shares) == 4
    assert all(0.8 < share < 1 for share in shares)
    metric = document["metrics"]["retrieval/text_share"]
    assert metric["value"] == pytest.approx(sum(shares) / 4)
    assert metric["unit"] == "share of tokens"
    for name in ("absent", "."):
        code, document, _, err = run(*options, f"task.retrieval.text={tmp_path / name}", f"results={tmp_path}")
        assert code == 2
        assert "no such file" in document["message"]
        assert "Traceback" not in err


@pytest.mark.parametrize(
    "weights",
    [Alibi(SLOPES), Window(SLOPES, 1.0), Window(SLOPES, 1.0, sinks=40), PositionalLSH.draw(SLOPES, 2, seed=1)],
    ids=["exact", "window", "sinks", "masks"],
)
def test_who_sees_the_needle_is_counted_over_layers_and_heads(tiny, weights):
    samples = made(tiny, 300, 0)
    layers = [weights, Window(SLOPES, 0.5)]
    seen_by_someone = 0
    for row, sample in zip(answer(tiny, samples), samples, strict=True):
        before = sample["prompt"].split(sample["value"])[0] + sample["value"]
        needle = len(tiny.tokenizer(before)["input_ids"]) - 1
        at = torch.tensor([row.tokens_seen - 1]), torch.tensor([needle + 1])  # the full stop after the value
        seen = torch.cat([w.log_dense(*at).isfinite() for w in layers])
        assert seen_by(layers, row) == pytest.approx(float(seen.double().mean()))
        seen_by_someone += bool(seen.any())
    assert seen_by_someone >= 1


def test_accuracy_is_split_into_samples_whose_needle_some_head_sees_and_others(run, tmp_path):
    options = ("model=tiny", "attn=window", "attn.cutoff=1.3", "context=400", "samples=40", "references=none")
    code, document, _, _ = run(*options, f"results={tmp_path}")
    assert code == 0
    metrics = {name.removeprefix("retrieval/"): m for name, m in document["metrics"].items()}
    seen, unseen = metrics["accuracy_seen"], metrics["accuracy_unseen"]
    assert seen["n"] + unseen["n"] == 40
    total = seen["value"] * seen["n"] + unseen["value"] * unseen["n"]
    assert total / 40 == pytest.approx(metrics["accuracy"]["value"])
    assert seen["value"] > unseen["value"]
