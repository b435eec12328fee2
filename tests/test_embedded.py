"""The embedded models do what their cards say, through the very path that any model takes: exact ALiBi, fresh
prompts."""

import pytest
import torch

from harness.config import ModelConfig
from harness.models.load import load_model
from harness.models.spec import resolve_model
from harness.tasks import prompts
from harness.tasks.retrieval import answer

PROMPTS = 200


@pytest.mark.parametrize(
    ("name", "context", "least"),
    [("tiny", 512, 0.97), ("tiny", 1024, 0.95), ("tiny", 2048, 0.85), ("tiny-plain", 512, 0.95)],
)
def test_accuracy_on_fresh_prompts(name, context, least):
    spec = resolve_model(ModelConfig(name=name, path=f"harness/embedded/{name}"), None)
    loaded = load_model(spec, device=torch.device("cpu"), kernel="auto")
    made = prompts.build(
        prompts.encoder(loaded.tokenizer),
        samples=PROMPTS,
        context=context,
        data_seed=20261121,
        haystack="noise",
        text=None,
        depths=[0.0, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0],
    )
    samples = list(made)
    rows = [row for i in range(0, PROMPTS, 10) for row in answer(loaded, samples[i : i + 10])]
    assert sum(row["score"] for row in rows) / PROMPTS >= least
