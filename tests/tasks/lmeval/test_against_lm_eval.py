"""The runner's scores are lm-eval's: the same documents, requests and answers through its own
simple_evaluate."""

import json
import math

import pytest
import torch

from harness.models.load import load_model
from harness.models.options import ModelConfig
from harness.models.spec import resolve_model
from kernels import Window
from tests.conftest import ROOT
from tests.tasks.lmeval.conftest import embedded, ruler


def simple_evaluate(loaded, tasks, *, manager, samples=None, max_length=4096):
    """lm-eval's own evaluation with its own HFLM."""
    import lm_eval
    from lm_eval.models.huggingface import HFLM

    lm = HFLM(
        pretrained=loaded.model,
        tokenizer=loaded.tokenizer,
        max_length=max_length,
        batch_size=4,
        softmax_dtype="float32",
    )
    return lm_eval.simple_evaluate(
        model=lm,
        tasks=tasks,
        task_manager=manager,
        samples=samples,
        log_samples=True,
        bootstrap_iters=0,
        random_seed=0,
        numpy_random_seed=1234,
    )


def load(**options):
    spec = resolve_model(ModelConfig(**options), None)
    return load_model(spec, device=torch.device("cpu"), kernel="sdpa")


@pytest.fixture(scope="module")
def tiny():
    return load(name="tiny", path=str(embedded("tiny")))


def test_ruler_has_the_same_documents_answers_and_score(cell, tiny):
    from lm_eval.tasks import TaskManager

    metadata = {"tokenizer": str(embedded("tiny")), "max_seq_lengths": [512]}
    manager = TaskManager(include_defaults=False, metadata=metadata)
    wanted = list(range(12))
    window = [Window(tiny.attention.slopes, 2.0)] * tiny.attention.layers
    with tiny.attention.use(window):
        theirs = simple_evaluate(tiny, [ruler("niah_multikey_2")], manager=manager, samples={"niah_multikey_2": wanted})
    options = ("model=tiny", "task=ruler", "task.ruler.names=[niah_multikey_2]", "context=512", "samples=12")
    code, document, rows, _ = cell(*options, "attn=window", "attn.cutoff=2.0", "references=none")
    assert code == 0
    ours = {row["key"]: row for row in rows["niah_multikey_2"]}
    for sample in theirs["samples"]["niah_multikey_2"]:
        assert ours[sample["doc_id"]]["prediction"] == sample["filtered_resps"][0]
        assert ours[sample["doc_id"]]["score"] == sample["512"]
    scores = [s["512"] for s in theirs["samples"]["niah_multikey_2"]]
    assert 0 < sum(scores) < len(scores), "all right or all wrong would show little"
    assert document["metrics"]["niah_multikey_2/accuracy"]["value"] == pytest.approx(sum(scores) / len(scores))


def test_lm_evals_own_command_has_the_answers_and_scores_of_task_ruler(cell, lm_eval, tmp_path):
    model = f"pretrained={embedded('tiny')},attn=plsh,masks=8,weights=rb,sinks=4,seed=3,draws=2"
    options = ("--tasks", ruler("niah_multikey_2"), "--metadata", '{"max_seq_lengths": [512]}', "--limit", "12")
    options += ("--log_samples", "--output_path", str(tmp_path / "out"))
    assert lm_eval("--model", "plsh", "--model_args", model, *options)[0] == 0
    (file,) = (tmp_path / "out").rglob("samples_*.jsonl")
    theirs = {row["doc_id"]: row for row in map(json.loads, file.read_text().splitlines())}

    options = ("model=tiny", "task=ruler", "task.ruler.names=[niah_multikey_2]", "context=512", "samples=12", "draws=2")
    attn = ("masks=8", "attn.weights=rb", "attn.sinks=4", "seed=3", "references=none")
    code, _, rows, _ = cell(*options, *attn)
    ours = {row["key"]: row for row in rows["niah_multikey_2"]}
    assert code == 0 and set(ours) == set(theirs) == set(range(12))
    for number, row in theirs.items():
        assert ours[number]["prediction"] == row["filtered_resps"][0]
        assert ours[number]["score"] == row["512"]
    assert 0 < sum(row["512"] for row in theirs.values()) < 12, "all right or all wrong would show little"


def test_likelihoods_choices_and_generations_agree(cell, definitions, checkpoint, language):
    from lm_eval.tasks import TaskManager

    loaded = load(name="local", path=str(checkpoint))
    manager = TaskManager(include_path=str(definitions), include_defaults=False)
    theirs = simple_evaluate(loaded, ["passages", "endings", "repeats"], manager=manager, max_length=24)["results"]
    names = "task.lm_eval.names=[both,repeats]"
    options = ("model=local", language, "task=lm_eval", names, f"task.lm_eval.include_path={definitions}")
    # windows of 24 tokens for the passages, whole prompts for the others
    code, windowed, _, err = cell(*options, "attn=alibi", "context=24", "samples=6", "batch=4")
    assert code == 2 and "No prompt is ever cut" in err
    code, whole, _, _ = cell(*options, "attn=alibi", "context=128", "samples=6", "batch=4")
    assert code == 0
    for name in ("word_perplexity", "byte_perplexity", "bits_per_byte"):
        ours = windowed["metrics"][f"passages/{name}"]
        assert ours["value"] == pytest.approx(theirs["passages"][f"{name},none"], rel=1e-5)
        assert ours["low"] < ours["value"] < ours["high"]
    theirs = simple_evaluate(loaded, ["endings", "repeats"], manager=manager, max_length=133)["results"]
    for task, name in (("endings", "acc"), ("endings", "acc_norm"), ("repeats", "exact_match")):
        assert whole["metrics"][f"{task}/{name}"]["value"] == pytest.approx(theirs[task][f"{name},none"])


def test_a_task_that_is_a_python_class_agrees(cell, definitions, checkpoint, language):
    """It asks two kinds of requests and has an aggregation of its own."""
    from lm_eval.tasks import TaskManager

    loaded = load(name="local", path=str(checkpoint))
    manager = TaskManager(include_path=str(definitions), include_defaults=False)
    theirs = simple_evaluate(loaded, ["python"], manager=manager, max_length=131)["results"]["python"]
    names = ("task=lm_eval", "task.lm_eval.names=[python]", f"task.lm_eval.include_path={definitions}")
    code, document, _, _ = cell("model=local", language, *names, "attn=alibi", "context=128", "samples=6", "batch=4")
    assert code == 0
    for name in ("likelihood", "length"):
        assert document["metrics"][f"python/{name}"]["value"] == pytest.approx(theirs[f"{name},none"], rel=1e-5)


def test_retrieval_is_a_task_of_lm_eval_with_the_same_score(cell, tiny):
    from lm_eval.tasks import TaskManager

    metadata = {"tokenizer": str(embedded("tiny")), "context": 512, "samples": 20, "data_seed": 3}
    tasks = str(ROOT / "harness" / "tasks")
    manager = TaskManager(include_path=tasks, include_defaults=False, metadata=metadata)
    with tiny.attention.use([Window(tiny.attention.slopes, 1.5)] * tiny.attention.layers):
        theirs = simple_evaluate(tiny, ["plsh_retrieval"], manager=manager)
    options = ("model=tiny", "task=retrieval", "context=512", "samples=20", "data_seed=3", "references=none")
    code, document, rows, _ = cell(*options, "attn=window", "attn.cutoff=1.5")
    assert code == 0
    ours = {row["key"]: row["score"] for row in rows["retrieval"]}
    assert {s["doc_id"]: s["accuracy"] for s in theirs["samples"]["plsh_retrieval"]} == ours
    assert 0 < sum(ours.values()) < 20, "all right or all wrong would show little"
    value = theirs["results"]["plsh_retrieval"]["accuracy,none"]
    assert document["metrics"]["retrieval/accuracy"]["value"] == pytest.approx(value)


@pytest.mark.parametrize("context", [512, 1024])
def test_the_embedded_model_finds_what_lm_eval_hides(cell, context):
    """Issue: at least 0.97 with exact ALiBi on lm-eval's own niah_single_1, 100 samples."""
    options = ("model=tiny", "task=ruler", "task.ruler.names=[niah_single_1]", f"context={context}", "samples=100")
    code, document, rows, _ = cell(*options, "attn=alibi", "batch=20")
    assert code == 0
    metric = document["metrics"]["niah_single_1/accuracy"]
    assert metric["n"] == 100 and metric["value"] >= 0.97
    # Wilson's interval in closed form
    p, n, z = metric["value"], 100, 1.959963984540054
    centre, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    assert metric["low"] == pytest.approx((centre - half) / (1 + z * z / n))
    assert metric["high"] == pytest.approx(min(1.0, (centre + half) / (1 + z * z / n)))
