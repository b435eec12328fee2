"""Accuracy of an exported model: exact match on fresh prompts, by stock code in float32.

An answer is correct if the likeliest token is correct at each of its tokens and at the end token
after it, as in greedy decoding.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import MptForCausalLM, PreTrainedTokenizerFast

from harness.training import net as nets
from harness.training.batches import collate
from harness.training.grammars import VALUE, harness_grammar, ruler_grammar, ruler_samples
from harness.training.prompts import Prompts, Row

Predict = Callable[[Tensor, Tensor], Tensor]
TOKENS_AT_ONCE = 4096
NEAR_CUTOFF = 3.4


def harness_rows(tokenizer: PreTrainedTokenizerFast, length: int, samples: int, seed: str, *, noise: bool) -> list[Row]:
    """Return prompts of `length` tokens in the harness's grammar, with one question and its answer.

    Args:
        tokenizer: the tokenizer.
        length: tokens of each prompt.
        samples: number of prompts.
        seed: seed of the prompts.
        noise: whether the haystack is noise, instead of needles.
    """
    prompts, rng = Prompts(tokenizer, harness_grammar()), random.Random(seed)
    answer = len(tokenizer.encode(harness_grammar().answer.replace(VALUE, "1234567")))
    return [prompts.draw(rng, length + answer, 1 if noise else None, 1) for _ in range(samples)]


def ruler_rows(tokenizer: PreTrainedTokenizerFast, length: int, samples: int, seed: str) -> list[Row]:
    """Return niah_single_1 prompts of lm-eval.

    Args:
        tokenizer: the tokenizer.
        length: tokens of each prompt, including 128 for generation.
        samples: number of prompts.
        seed: seed of the prompts.
    """
    rows = []
    for sample in ruler_samples(length, samples, seed, tokenizer):
        prompt = tokenizer.encode(f"{sample['input']} {sample['gen_prefix']}")
        answer = tokenizer.encode(ruler_grammar().answer.replace(VALUE, sample["outputs"][0]))
        targets = [*answer, tokenizer.eos_token_id]
        rows.append(Row(prompt + answer, {len(prompt) - 1 + i: token for i, token in enumerate(targets)}))
    return rows


@torch.no_grad()
def accuracy(predict: Predict, rows: list[Row]) -> float:
    """Return the share of correct rows; predict: from ids (B, T) and positions (B, R) to tokens."""
    length = max(len(row.ids) for row in rows)
    size = max(1, TOKENS_AT_ONCE // length)
    correct = 0
    for first in range(0, len(rows), size):
        batch = collate(rows[first : first + size], length, 0, random.Random(0))
        matches = predict(batch.ids, batch.rows) == batch.targets
        correct += int((matches | ~batch.answer).all(-1).sum())
    return correct / len(rows)


def stock_predict(folder: Path) -> Predict:
    """Return the predictions of the exported model in stock code."""
    model = MptForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    def predict(ids: Tensor, places: Tensor) -> Tensor:
        return model.lm_head(nets.take(model.transformer(ids)[0], places)).argmax(-1)

    return predict


def window_predict(folder: Path, cutoff: float) -> Predict:
    """Return the predictions of the exported model with heads limited to `m (i - j) <= cutoff`."""
    weights = MptForCausalLM.from_pretrained(folder, dtype=torch.float32)
    net = nets.Net(weights.config)
    net.load_state_dict({name: weights.state_dict()[name] for name in net.state_dict()})

    def predict(ids: Tensor, places: Tensor) -> Tensor:
        bias = nets.alibi_bias(net.shape.n_heads, ids.shape[1], cutoff)
        return net.logits(net(ids, bias, places)).argmax(-1)

    return predict


@dataclass(frozen=True)
class Accuracies:
    """Rows of (kind of prompts, length in tokens, accuracy), each on `samples` prompts."""

    samples: int
    table: list[tuple[str, int, float]]


def measure(folder: Path, samples: int) -> Accuracies:
    """Return the accuracies of the model in `folder` on fresh prompts of all kinds."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    exact, near = stock_predict(folder), window_predict(folder, NEAR_CUTOFF)
    table = []
    for length in (512, 1024, 2048):
        rows = harness_rows(tokenizer, length, samples, f"test noise {length}", noise=True)
        table.append(("own noise haystack", length, accuracy(exact, rows)))
    rows = harness_rows(tokenizer, 512, samples, "test noise 512", noise=True)
    table.append((f"own noise haystack, every head cut at m d <= {NEAR_CUTOFF}", 512, accuracy(near, rows)))
    for length in (512, 1024):
        rows = harness_rows(tokenizer, length, samples, f"test needles {length}", noise=False)
        table.append(("own haystack of needles", length, accuracy(exact, rows)))
    for length in (512, 1024):
        rows = ruler_rows(tokenizer, length, samples, f"test ruler {length}")
        table.append(("lm-eval niah_single_1", length, accuracy(exact, rows)))
    return Accuracies(samples, table)
