"""Batches for training: which prompts at which length, and which positions the loss reads."""

import random
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from harness.training.grammars import core_size, own_grammar, ruler_grammar
from harness.training.prompts import Prompts, Row, echo

# By row length (tokens), the shares of: echo, bare pairs, our noise, our needles only, lm-eval's
# noise, lm-eval's needles only.
MIX = {64: (0.2, 0.8, 0.0, 0.0, 0.0, 0.0), 128: (0.0, 0.4, 0.2, 0.2, 0.1, 0.1)}
MIX_LONG = (0.0, 0.0, 0.35, 0.25, 0.25, 0.15)


@dataclass(frozen=True)
class Batch:
    """Token ids (B, T); positions the loss reads, their next tokens, if in an answer (B, R)."""

    ids: Tensor
    rows: Tensor
    targets: Tensor
    answer: Tensor


class Source:
    """Draws batches from its own random state."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, seed: str) -> None:
        self.rng = random.Random(seed)
        self.size = len(tokenizer)
        self.core = torch.arange(core_size())
        self.own = Prompts(tokenizer, own_grammar())
        self.ruler = Prompts(tokenizer, ruler_grammar())

    def row(self, length: int) -> Row:
        """One row of at most `length` tokens."""
        rng = self.rng
        kind = rng.choices(range(6), MIX.get(length, MIX_LONG))[0]
        if kind == 0:
            return echo(rng, length, self.size)
        if kind == 1:
            return self.own.bare(rng, length)
        prompts = self.own if kind < 4 else self.ruler
        if kind % 2:
            return prompts.draw(rng, length, None, rng.randint(1, max(1, length // 64)))
        stored = rng.randint(1, max(1, length // 64))
        return prompts.draw(rng, length, stored, stored if rng.random() < 0.8 else 1)

    def batch(self, length: int, size: int) -> Batch:
        """`size` rows; the loss also reads some random positions outside of the answers."""
        return collate([self.row(length) for _ in range(size)], length, length // 16, self.rng)


def collate(rows: list[Row], length: int, others: int, rng: random.Random) -> Batch:
    """Pad rows to `length`; choose the positions to read: all answers, at least `others` more."""
    width = others + max(len(row.answers) for row in rows)
    ids = torch.zeros(len(rows), length, dtype=torch.long)
    read = torch.empty(len(rows), width, dtype=torch.long)
    targets = torch.empty(len(rows), width, dtype=torch.long)
    answer = torch.zeros(len(rows), width, dtype=torch.bool)
    for at, row in enumerate(rows):
        ids[at, : len(row.ids)] = torch.tensor(row.ids)
        extra = [rng.randrange(len(row.ids) - 1) for _ in range(width - len(row.answers))]
        read[at] = torch.tensor([*row.answers, *extra])
        targets[at] = torch.tensor([*row.answers.values(), *(row.ids[i + 1] for i in extra)])
        answer[at, : len(row.answers)] = True
    return Batch(ids, read, targets, answer)
