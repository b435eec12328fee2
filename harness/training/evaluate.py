"""What an exported model can do: exact match on fresh prompts, by stock code in float32.

A prompt counts as answered when the likeliest token is right at every token of the answer and at
the end token after it, which is what greedy decoding gives.
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
from harness.training.grammars import VALUE, own_grammar, ruler_grammar, ruler_samples
from harness.training.prompts import Prompts, Row

Predict = Callable[[Tensor, Tensor], Tensor]
TOKENS_AT_ONCE = 4096
NEAR = 3.4


def own_rows(tokenizer: PreTrainedTokenizerFast, length: int, samples: int, seed: str, *, noise: bool) -> list[Row]:
    """Prompts of exactly `length` tokens in our grammar, with one question and its answer."""
    prompts, rng = Prompts(tokenizer, own_grammar()), random.Random(seed)
    answer = len(tokenizer.encode(own_grammar().answer.replace(VALUE, "1234567")))
    return [prompts.draw(rng, length + answer, 1 if noise else None, 1) for _ in range(samples)]


def ruler_rows(tokenizer: PreTrainedTokenizerFast, length: int, samples: int, seed: str) -> list[Row]:
    """lm-eval's own niah_single_1 prompts; `length` includes 128 tokens of generation."""
    rows = []
    for sample in ruler_samples(length, samples, seed, tokenizer):
        prompt = tokenizer.encode(f"{sample['input']} {sample['gen_prefix']}")
        answer = tokenizer.encode(ruler_grammar().answer.replace(VALUE, sample["outputs"][0]))
        told = [*answer, tokenizer.eos_token_id]
        rows.append(Row(prompt + answer, {len(prompt) - 1 + at: token for at, token in enumerate(told)}))
    return rows


@torch.no_grad()
def accuracy(predict: Predict, rows: list[Row]) -> float:
    """The share of rows answered in full; `predict` takes ids (B, T) and places (B, R)."""
    length = max(len(row.ids) for row in rows)
    size = max(1, TOKENS_AT_ONCE // length)
    right = 0
    for at in range(0, len(rows), size):
        batch = collate(rows[at : at + size], length, 0, random.Random(0))
        hit = predict(batch.ids, batch.rows) == batch.targets
        right += int((hit | ~batch.answer).all(-1).sum())
    return right / len(rows)


def stock_predict(folder: Path) -> Predict:
    """The exported model in stock code."""
    model = MptForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    def predict(ids: Tensor, places: Tensor) -> Tensor:
        return model.lm_head(nets.take(model.transformer(ids)[0], places)).argmax(-1)

    return predict


def window_predict(folder: Path, cutoff: float) -> Predict:
    """The exported model with every head cut at `m (i - j) <= cutoff`."""
    weights = MptForCausalLM.from_pretrained(folder, dtype=torch.float32)
    net = nets.Net(weights.config)
    net.load_state_dict({name: weights.state_dict()[name] for name in net.state_dict()})

    def predict(ids: Tensor, places: Tensor) -> Tensor:
        bias = nets.alibi_bias(net.shape.n_heads, ids.shape[1], cutoff)
        return net.logits(net(ids, bias, places)).argmax(-1)

    return predict


@dataclass(frozen=True)
class Measured:
    """Rows of (what, length in tokens, accuracy), each on `samples` prompts."""

    samples: int
    table: list[tuple[str, int, float]]


def measure(folder: Path, samples: int) -> Measured:
    """The accuracies of the model in `folder` on fresh prompts of every kind."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    exact, near = stock_predict(folder), window_predict(folder, NEAR)
    table = []
    for length in (512, 1024, 2048):
        rows = own_rows(tokenizer, length, samples, f"test noise {length}", noise=True)
        table.append(("own noise haystack", length, accuracy(exact, rows)))
    rows = own_rows(tokenizer, 512, samples, "test noise 512", noise=True)
    table.append((f"own noise haystack, every head cut at m d <= {NEAR}", 512, accuracy(near, rows)))
    for length in (512, 1024):
        rows = own_rows(tokenizer, length, samples, f"test needles {length}", noise=False)
        table.append(("own haystack of needles", length, accuracy(exact, rows)))
    for length in (512, 1024):
        rows = ruler_rows(tokenizer, length, samples, f"test ruler {length}")
        table.append(("lm-eval niah_single_1", length, accuracy(exact, rows)))
    return Measured(samples, table)
