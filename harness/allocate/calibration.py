"""The token sequences on which heads are measured: windows of a text, or prompts of task=retrieval."""

import hashlib
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from harness.allocate.sensitivity import Sequences
from harness.cell import Cell
from harness.common.errors import UserError
from harness.models.load import load_tokenizer
from harness.tasks.retrieval import needles, prompts
from harness.tasks.retrieval.task import RETRIEVAL
from harness.tasks.retrieval.task import Options as RetrievalOptions
from harness.tasks.text.perplexity import PERPLEXITY
from harness.tasks.text.perplexity import Options as TextOptions
from harness.tasks.text.windows import Windows, stride_of

PROMPTS = "prompts"


def sequences(text: str, cell: Cell, samples: int) -> Sequences:
    """Return the sequences of calibration.

    Args:
        text: a UTF-8 file or a held-out text, of which the second half of each window is scored; or
            "prompts", of which the answer is scored.
        cell: for its model, context and data seed.
        samples: number of sequences; a short text may have fewer.

    Raises:
        UserError: for a text that is missing or too short, or a model that does not read text.
    """
    return _of_prompts(cell, samples) if text == PROMPTS else _of_text(text, cell, samples)


def digest(found: Sequences) -> str:
    """Return the hash of the sequences and of the scored positions."""
    content = found.ids.int().numpy().tobytes() + found.scored.numpy().tobytes()
    return hashlib.sha256(content).hexdigest()


def _of_text(text: str, cell: Cell, samples: int) -> Sequences:
    if cell.model.reads == PROMPTS:
        raise UserError(
            f"--text {text} is natural text, and model={cell.model.name} knows no words but those of its own prompts: "
            f"use --text {PROMPTS}."
        )
    options = TextOptions(text=text)
    PERPLEXITY.check(options, cell)
    stride = stride_of(options, cell.context)
    with tempfile.TemporaryDirectory() as folder:
        place = PERPLEXITY.prepare(options, cell, samples, Path(folder)).place
        all_windows = Windows(place, context=cell.context, stride=stride, data_seed=cell.data_seed)
        chosen = [all_windows[key] for key in range(min(samples, len(all_windows)))]
    ids = torch.stack([window.ids[:-1] for window in chosen])
    scored = torch.zeros(ids.shape, dtype=torch.bool)
    scored[:, -stride:] = True
    return Sequences(ids, scored)


def _of_prompts(cell: Cell, samples: int) -> Sequences:
    options = RetrievalOptions()
    RETRIEVAL.check(options, cell)
    tokenizer = load_tokenizer(cell.model)
    encode = prompts.encoder(tokenizer)
    made = prompts.make_samples(
        encode,
        samples=samples,
        context=cell.context,
        data_seed=-1 - cell.data_seed,  # no run has a negative seed, so that none is scored on these prompts
        haystack=options.haystack,
        text=None,
        depths=options.depths,
    )
    rows: list[tuple[list[int], int]] = []
    for sample in made:
        answer = tokenizer(needles.answer(sample["value"]), add_special_tokens=False)["input_ids"]
        rows.append((encode(sample["prompt"]) + answer[:-1], len(answer)))
    return _padded(rows)


def _padded(rows: Sequence[tuple[list[int], int]]) -> Sequences:
    """Sequences of equal length. Padding after the tokens changes nothing before it.

    rows: token ids, and how many of the last positions are scored.
    """
    longest = max(len(ids) for ids, _ in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    scored = torch.zeros(len(rows), longest, dtype=torch.bool)
    for i, (tokens, count) in enumerate(rows):
        ids[i, : len(tokens)] = torch.tensor(tokens)
        scored[i, len(tokens) - count : len(tokens)] = True
    return Sequences(ids, scored)
