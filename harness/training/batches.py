"""Batches for training: the mix of prompts by length, and the positions of the loss."""

import random
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from harness.training.grammars import core_size, harness_grammar, ruler_grammar
from harness.training.prompts import Prompts, Row, echo

# By row length (tokens), the shares of: echo, bare pairs, our noise, our needles only, lm-eval's
# noise, lm-eval's needles only.
MIX = {64: (0.2, 0.8, 0.0, 0.0, 0.0, 0.0), 128: (0.0, 0.4, 0.2, 0.2, 0.1, 0.1)}
MIX_LONG = (0.0, 0.0, 0.35, 0.25, 0.25, 0.15)


@dataclass(frozen=True)
class Batch:
    """A batch.

    ids: token ids (B, T).
    rows: positions of the loss (B, R).
    targets: their next tokens (B, R).
    answer: whether they belong to an answer (B, R).
    """

    ids: Tensor
    rows: Tensor
    targets: Tensor
    answer: Tensor


class Source:
    """Draws batches from a private random state."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, seed: str) -> None:
        self.rng = random.Random(seed)
        self.size = len(tokenizer)
        self.core = torch.arange(core_size())
        self.harness_prompts = Prompts(tokenizer, harness_grammar())
        self.ruler_prompts = Prompts(tokenizer, ruler_grammar())

    def row(self, length: int) -> Row:
        """Draw a row of at most `length` tokens."""
        rng = self.rng
        kind = rng.choices(range(6), MIX.get(length, MIX_LONG))[0]
        if kind == 0:
            return echo(rng, length, self.size)
        if kind == 1:
            return self.harness_prompts.bare(rng, length)
        prompts = self.harness_prompts if kind < 4 else self.ruler_prompts
        if kind % 2:
            return prompts.draw(rng, length, None, rng.randint(1, max(1, length // 64)))
        stored = rng.randint(1, max(1, length // 64))
        return prompts.draw(rng, length, stored, stored if rng.random() < 0.8 else 1)

    def batch(self, length: int, size: int) -> Batch:
        """Draw `size` rows; the loss also reads some random positions outside of answers."""
        return collate([self.row(length) for _ in range(size)], length, length // 16, self.rng)


def collate(rows: list[Row], length: int, extra: int, rng: random.Random) -> Batch:
    """Return a batch of padded rows with the positions of the loss.

    Args:
        rows: the rows.
        length: padded length in tokens.
        extra: minimum number of random positions beside the answers.
        rng: source of these positions.
    """
    width = extra + max(len(row.answers) for row in rows)
    ids = torch.zeros(len(rows), length, dtype=torch.long)
    read_positions = torch.empty(len(rows), width, dtype=torch.long)
    targets = torch.empty(len(rows), width, dtype=torch.long)
    answer = torch.zeros(len(rows), width, dtype=torch.bool)
    for index, row in enumerate(rows):
        ids[index, : len(row.ids)] = torch.tensor(row.ids)
        positions = [rng.randrange(len(row.ids) - 1) for _ in range(width - len(row.answers))]
        read_positions[index] = torch.tensor([*row.answers, *positions])
        targets[index] = torch.tensor([*row.answers.values(), *(row.ids[i + 1] for i in positions)])
        answer[index, : len(row.answers)] = True
    return Batch(ids, read_positions, targets, answer)
