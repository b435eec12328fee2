"""8k tokens in one process: masks and the windows of equal cost beside exact ALiBi, on a random
model of one layer."""

import numpy as np
import pytest
import torch

from harness.attentions.plsh import Plsh
from harness.attentions.registry import references
from harness.models.family import Architecture
from harness.models.load import LoadedModel, random_model
from harness.tasks.throughput.memory import peak_bytes
from harness.tasks.throughput.session import Session, count_costs, random_prompt
from kernels import Alibi, PositionalLSH, Window
from tests.experiment.test_cell import spec
from tests.models.random_models import swapped

TOKENS, DECODE, MASKS = 8192, 4, 16
ARCH = Architecture("mpt", layers=1, heads=2, width=32, vocabulary=64)


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    model = random_model(ARCH, 0).eval().requires_grad_(False)
    return LoadedModel(model, None, swapped(model))


def methods(loaded, tokens: int) -> dict:
    slopes = loaded.attention.slopes
    # any model of two heads has these slopes
    model = spec("model=random", *(f"model.architecture.{n}={v}" for n, v in (("heads", 2), ("width", 32))))
    beside = references(Plsh(MASKS, "gamma", "count"), model, tokens)
    windows = {name: Window(slopes, beside[name].cutoff) for name in ("window", "passes")}
    windows["sliding"] = Window(slopes, 0.0, near=beside["sliding"].tokens)
    masks = {f"plsh {w}": PositionalLSH.draw(slopes, MASKS, seed=0, weights=w) for w in ("count", "rb")}
    return {"exact": Alibi(slopes), **masks, **windows}


def session(loaded, weights, tokens: int) -> Session:
    ids = random_prompt(ARCH, 1, tokens + DECODE, 0, torch.device("cpu"))
    return Session(loaded, [weights], ids, tokens, chunk=tokens, evict=False)


def visited(weights, tokens: int) -> int:
    """Pairs counted row by row: of a window by its reach, of masks from where the row's buckets
    begin."""
    position, total = np.arange(tokens), 0
    for head, slope in enumerate(weights.slopes.tolist()):
        start = position
        if isinstance(weights, Alibi):
            start = np.zeros(tokens, dtype=int)
        elif isinstance(weights, Window):
            start = np.maximum(0, position - max(int(weights.cutoff / slope), weights.near - 1))
        else:
            for width, shift in zip(
                *(x[head].tolist() for x in (weights.masks.width, weights.masks.shift)), strict=True
            ):
                bucket = np.floor((position - shift) / width)
                _, first, member = np.unique(bucket, return_index=True, return_inverse=True)
                start = np.minimum(start, first[member])
        total += int((position - start + 1).sum())
    return total


def test_ratios_errors_and_operations_beside_exact_alibi(loaded):
    sessions = {name: session(loaded, w, TOKENS) for name, w in methods(loaded, TOKENS).items()}
    facts = {name: s.check([1]) | count_costs(s, ARCH) for name, s in sessions.items()}
    laps = [{name: s.measure("prefill", 0) for name, s in sessions.items()} for _ in range(2)]
    linear = facts["exact"]["flops"] - 4 * ARCH.head_dim * facts["exact"]["visited_pairs"]
    for name, found in facts.items():
        times = [lap["exact"]["ms"] / lap[name]["ms"] for lap in laps]
        share = sum(lap[name]["attention_ms"] / lap[name]["ms"] for lap in laps) / len(laps)
        print(
            f"{name:12s} {min(times):.2f} .. {max(times):.2f} times exact ALiBi, attention {share:.0%}, error "
            f"{found['error']:.0e}, differs from exact ALiBi by {found['alibi_difference']:.1e}"
        )
        assert found["error"] <= 1e-5
        assert found["error_cached"] <= 5e-5
        assert found["visited_pairs"] == visited(sessions[name].weights[0], TOKENS)
        assert found["flops"] == linear + 4 * ARCH.head_dim * found["visited_pairs"]
    assert facts["exact"]["visited_pairs"] == 2 * TOKENS * (TOKENS + 1) // 2
    assert facts["plsh count"]["flops"] == facts["plsh rb"]["flops"] < facts["exact"]["flops"]
    # random q and k nearly uniform: what the paper's weights change is their variance, which rb
    # takes most of away
    assert facts["plsh rb"]["alibi_difference"] < facts["plsh count"]["alibi_difference"]


@pytest.mark.parametrize("name", ["plsh count", "plsh rb", "window", "sliding", "passes"])
def test_memory_grows_with_the_tokens_not_with_their_square(loaded, name):
    """Every byte that torch hands out during the prefill is counted; pieces of the kernel's own are
    of bounded size, so that twice the tokens take at most twice the memory."""
    model = loaded.model
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    peak = {}
    for tokens in (TOKENS, 2 * TOKENS):
        one = session(loaded, methods(loaded, TOKENS)[name], tokens)
        with torch.inference_mode(), loaded.attention.use(one.weights):
            peak[tokens] = peak_bytes(model, torch.device("cpu"), one._prefill) - weights
    assert peak[TOKENS] > TOKENS * 2 * ARCH.width * 4  # the KV cache alone
    assert peak[2 * TOKENS] < 2.1 * peak[TOKENS]
