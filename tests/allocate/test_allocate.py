"""`python -m harness.allocate`: the knapsack by brute force, divergences by stock MPT, and the command."""

import functools
import hashlib
import itertools
import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers.models.mpt.modeling_mpt import MptAttention

from harness.allocate import calibration
from harness.allocate.__main__ import main
from harness.allocate.allocation import allocate
from harness.allocate.knapsack import choose
from harness.allocate.sensitivity import Divergence, Sequences, lengths, sensitivities
from harness.common.errors import UserError
from harness.common.paths import TEXTS
from harness.models.load import load_model
from harness.tasks.retrieval import needles
from tests.attentions.test_sliding import planned
from tests.models.random_models import mpt, swapped


@pytest.mark.parametrize("seed", range(4))
def test_the_choice_is_the_best_of_all_within_the_budget(seed):
    rng = np.random.default_rng(seed)
    loss, cost = rng.exponential(size=(4, 5)), np.sort(rng.integers(0, 20, (4, 5)), axis=1).astype(float)
    for budget in (cost[:, 0].sum(), 20.0, 35.0, 80.0):
        if budget < cost[:, 0].sum():
            continue
        every = itertools.product(range(5), repeat=4)
        affordable = [c for c in every if sum(cost[i, k] for i, k in enumerate(c)) <= budget]
        best = min(sum(loss[i, k] for i, k in enumerate(c)) for c in affordable)
        found = choose(loss, cost, budget)
        assert sum(cost[i, k] for i, k in enumerate(found)) <= budget
        assert sum(loss[i, k] for i, k in enumerate(found)) == pytest.approx(best)


def test_a_budget_below_the_cheapest_choice_is_refused():
    with pytest.raises(UserError, match="No lengths of the heads fit"):
        choose(np.ones((2, 2)), np.full((2, 2), 3.0), 5.0)


def test_lengths_reach_from_the_own_token_to_the_context():
    assert lengths(20) == [1, 2, 3, 4, 6, 8, 12, 16, 20]
    assert lengths(16) == [1, 2, 3, 4, 6, 8, 12, 16]


@pytest.fixture
def random_mpt():
    model = mpt(layers=2)
    return SimpleNamespace(model=model, attention=swapped(model))


def stock_divergence(tokens, ids, scored):
    """KL by stock MPT, whose mask hides what is beyond the length of each head."""
    model, count = mpt(layers=2), ids.shape[1]
    exact = model(ids).logits[scored].log_softmax(-1)
    distance = torch.arange(count)[:, None] - torch.arange(count)
    modules = [m for m in model.modules() if isinstance(m, MptAttention)]
    for module, layer in zip(modules, tokens, strict=True):
        beyond = distance >= torch.tensor(layer)[:, None, None]

        def narrowed(module, given, options, beyond=beyond):
            return given, {**options, "attention_mask": options["attention_mask"] | beyond}

        module.register_forward_pre_hook(narrowed, with_kwargs=True)
    changed = model(ids).logits[scored].log_softmax(-1)
    return float(F.kl_div(changed, exact, log_target=True, reduction="sum")) / int(scored.sum())


@torch.inference_mode()
def test_divergences_are_those_of_stock_mpt_with_a_mask_for_each_head(random_mpt):
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(97, (3, 40), generator=generator)
    scored = torch.rand(3, 40, generator=generator) < 0.4
    divergence = Divergence(random_mpt, list(Sequences(ids, scored).batches(2)))
    tokens = [[1, 2, 3, 5, 8, 13, 21, 40], [40, 40, 9, 7, 5, 3, 2, 1]]
    assert divergence(tokens) == pytest.approx(stock_divergence(tokens, ids, scored), rel=1e-3)
    assert divergence([[40] * 8] * 2) < 1e-9
    around = [[40] * 8, [40] * 7 + [4]]
    found = sensitivities(divergence, around, [2, 8, 40])
    assert found.shape == (2, 8, 3)
    assert float(found[0, 2, 0]) == pytest.approx(
        stock_divergence([[40, 40, 2, 40, 40, 40, 40, 40], around[1]], ids, scored), rel=1e-3
    )
    assert float(found[1, 7, 1]) == pytest.approx(
        stock_divergence([[40] * 8, [40] * 7 + [8]], ids, scored), rel=1e-3, abs=1e-6
    )
    assert float(found[1, 3, 2]) == pytest.approx(divergence(around))  # the length that the head has


def test_calibration_scores_the_answers_of_prompts_that_no_run_has():
    cell = planned("model=tiny-plain", "context=160").cell
    found = calibration.sequences("prompts", cell, 3)
    from harness.models.load import load_tokenizer

    tokenizer = load_tokenizer(cell.model)
    for ids, scored in zip(found.ids, found.scored, strict=True):
        positions = scored.nonzero()[:, 0]
        assert len(positions) == int(positions[-1] - positions[0]) + 1  # one run, the answer but its last token
        told = tokenizer.decode(ids[: positions[-1] + 1])
        assert needles.question("").split()[0] in told
        known = tokenizer.decode(ids[positions[0] + 1 : positions[-1] + 1]).strip()
        assert known and known in told.split(needles.question("").split()[0])[0] + told
    assert calibration.digest(found) != calibration.digest(calibration.sequences("prompts", cell, 2))
    with pytest.raises(UserError, match="use --text prompts"):
        calibration.sequences("novel", cell, 1)


def test_the_command_makes_a_file_for_a_run(tmp_path, capsys):
    file = tmp_path / "a.json"
    words = ["--pairs", "24", "--out", str(file), "--samples", "2", "model=tiny", "context=96", "device=cpu"]
    assert main(words) == 0
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    content = json.loads(file.read_text())
    assert said["status"] == "ok" and [made["file"] for made in said["allocations"]] == [str(file)]
    assert content["calibration"]["text"] == "prompts" and content["calibration"]["text_sha256"] is None
    assert content["calibration"]["sequences"] == 2
    pairs = [sum(min(i, n - 1) for i in range(96)) / 96 for layer in content["tokens"] for n in layer]
    assert content["pairs_per_row"] == pytest.approx(sum(pairs) / 16) and content["pairs_per_row"] <= 24
    found = planned("attn=allocated", f"attn.allocation={file}", "context=96").cell
    assert found.cost()["fused"] == pytest.approx(content["pairs_per_row"])
    assert main(words) == 0 and json.loads(file.read_text()) == content  # no chance, no time in it


@pytest.mark.parametrize(
    "words, said",
    [
        (["--pairs", "-1"], "--pairs must be numbers of at least 0"),
        (["--pairs", "nan"], "--pairs must be numbers of at least 0"),
        (["--pairs", "9,"], "--pairs must be numbers of at least 0"),
        (["--pairs", "9", "--samples", "0"], "--samples must be at least 1"),
        (["--pairs", "9", "--rounds", "0"], "--rounds must be at least 1"),
        (["--pairs", "9", "attn=plsh"], "attn is no option of this command"),
        (["--pairs", "9", "attn.sinks=4"], "attn.sinks is no option of this command"),
        (["--pairs", "9", "+masks=4"], "masks is no option of this command"),
        (["--pairs", "9", "--text", "novel"], "use --text prompts"),
        (["--pairs", "9", "--text", "nowhere.txt", "model=tiny-books"], "there is no such file"),
        (["--pairs", "9", "model=random"], "Random weights"),
        ([], "--pairs"),
    ],
)
def test_mistakes_are_said_before_anything_is_measured(words, said, tmp_path, capsys):
    assert main(["--out", str(tmp_path / "a.json"), *words]) == 2
    captured = capsys.readouterr()
    assert said in captured.err and json.loads(captured.out.splitlines()[-1])["status"] == "invalid"
    assert not (tmp_path / "a.json").exists()


def test_a_folder_that_is_missing_is_said_first(tmp_path, capsys):
    assert main(["--pairs", "9", "--out", str(tmp_path / "no" / "a.json")]) == 2
    assert "there is no folder" in capsys.readouterr().err


def test_a_figure_on_the_text_of_the_calibration_is_refused(tmp_path, capsys):
    """There the chosen lengths lose less than on any other text."""
    same, other = tmp_path / "copy.txt", tmp_path / "other.txt"
    text = (TEXTS / "novel.txt").read_text()[:20_000]
    same.write_text(text)
    other.write_text(text[1:])
    file = tmp_path / "a.json"
    about = planned("model=tiny-books", "context=256").cell.model
    tokens = [[8] * about.architecture.heads] * about.architecture.layers
    fitted = {"text": "novel", "text_sha256": hashlib.sha256(text.encode()).hexdigest()}
    file.write_text(json.dumps({"schema": 1, "model": about.identity, "tokens": tokens, "calibration": fitted}))
    words = ["model=tiny-books", "context=64", "attn=allocated", f"attn.allocation={file}"]
    for task in ("fidelity", "perplexity"):
        with pytest.raises(UserError, match="fitted to.*use another text"):
            planned(*words, f"task={task}", f"task.{task}.text={same}")
        planned(*words, f"task={task}", f"task.{task}.text={other}")
        planned("model=tiny-books", "context=64", f"task={task}", f"task.{task}.text={same}")


def test_the_file_holds_the_hash_of_its_text(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text((TEXTS / "novel.txt").read_text()[:2000])
    cell = replace(planned("model=tiny-books", "context=256").cell, context=32)
    loaded = functools.partial(load_model, cell.model, device=torch.device("cpu"), kernel="auto")
    options = {"text": str(text), "samples": 1, "budgets": [9.0], "rounds": 1, "batch": 1}
    (content,) = allocate(cell, loaded, **options, say=lambda line: None)
    assert content["calibration"]["text_sha256"] == hashlib.sha256(text.read_bytes()).hexdigest()
