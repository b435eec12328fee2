"""Overlapping windows of a text.

A window holds `context` tokens and the next one; the model predicts the last `stride` of them. So
each scored token sees at least context - stride earlier tokens, and no token is scored twice (the
sliding evaluation of Press et al., 2022). Windows are computed in an order shuffled by
`data_seed`, so that a few of them are a sample of the whole text.
"""

import hashlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from harness.cell import Cell
from harness.common.errors import UserError
from harness.models.load import load_tokenizer
from harness.tasks.base import PlannedTask, Prepared, Task, TaskContext
from harness.tasks.prepared import prepare_once
from harness.tasks.texts import read_text, text_hash

VERSION = 1  # of the windows; part of the tasks' ids
QUARTERS = 4  # of the scored tokens of a window, by position
TOKENS, BYTES = "tokens.npy", "bytes.npy"


@dataclass(kw_only=True)
class TextOptions:
    """Options of the tasks on natural text.

    text: a UTF-8 file, a held-out text of the package or a corpus, as in `harness.tasks.texts.read_text`.
    stride: scored tokens of a window; by default half the context.
    """

    text: str | None = "novel"
    stride: int | None = None


@dataclass(frozen=True)
class Window:
    """One window.

    Attributes:
        key: number of the sample.
        ids: (context + 1,), input tokens and the token after them.
        sizes: (stride,), bytes of text of each scored token.
        doc_hash: hash of the tokens and the number of scored ones.
    """

    key: int
    ids: torch.Tensor
    sizes: torch.Tensor
    doc_hash: str

    @property
    def stride(self) -> int:
        """Number of scored tokens."""
        return len(self.sizes)


def stride_of(options: TextOptions, context: int) -> int:
    """Return the number of scored tokens of a window."""
    return max(1, context // 2) if options.stride is None else options.stride


class TextTask:
    """What the tasks on natural text share: everything but their rows and metrics."""

    name: str
    rows_are = "samples"
    needs_model = True
    runs_weights = True
    needs_trained_weights = True
    natural_text = True
    generates = 0

    def tasks(self, options: Any) -> list[PlannedTask]:
        return [PlannedTask(cast(Task, self), options)]  # a subclass has the rest

    def identity(self, options: Any) -> dict:
        return {**asdict(options), **_recipe(self._text(options))}

    def identity_on(self, options: Any, cell: Cell) -> dict:
        return {"stride": stride_of(options, cell.context)}

    def check(self, options: Any, cell: Cell) -> None:
        """Raise UserError for an invalid text or stride, for the text that the attention's options
        were fitted to, and for a tokenizer without offsets."""
        if text_hash(self._text(options)) == cell.attention.fitted_text:
            raise UserError(
                f"task.{self.name}.text={options.text} is the text that {cell.attention.label} were fitted to, where "
                "they lose less than elsewhere: use another text."
            )
        if not 1 <= stride_of(options, cell.context) <= cell.context:
            raise UserError(f"task.{self.name}.stride must be from 1 to context={cell.context}, not {options.stride}.")
        if not load_tokenizer(cell.model).is_fast:
            raise UserError(
                f"task={self.name} needs a tokenizer that knows where its tokens lie in the text (a fast one, "
                f"tokenizer.json), which model={cell.model.name} lacks."
            )

    def amount(self, options: Any, cell: Cell, samples: int, batch: int) -> tuple[int, int]:
        return samples, batch

    def prepare(self, options: Any, cell: Cell, samples: int, folder: Path) -> Prepared:
        """Tokenize the text once, and return its tokens on disk (`Task.prepare`).

        Raises:
            UserError: if the text is shorter than one window, or cannot be stored.
        """
        text = self._text(options)

        def make(draft: Path) -> Prepared:
            tokens, sizes = tokenize(load_tokenizer(cell.model), text)
            draft.mkdir(parents=True)
            np.save(draft / TOKENS, tokens)
            np.save(draft / BYTES, sizes)
            return Prepared(draft, len(tokens), hashlib.sha256(tokens.tobytes() + sizes.tobytes()).hexdigest())

        recipe = {**_recipe(text), "tokenizer": cell.model.tokenizer}
        prepared = prepare_once(folder, "text", recipe, make)
        if prepared.count <= cell.context:
            raise UserError(
                f"task.{self.name}.text={options.text} has {prepared.count} tokens, and a window takes "
                f"{cell.context + 1}: use a longer text or a smaller context."
            )
        return replace(prepared, count=window_count(prepared.count, cell.context, stride_of(options, cell.context)))

    def _text(self, options: TextOptions) -> str:
        return read_text(f"task.{self.name}.text", options.text)


def _recipe(text: str) -> dict:
    """Return what windows depend on besides the tokenizer, as JSON."""
    return {"text": text_hash(text), "windows": VERSION}


def window_count(tokens: int, context: int, stride: int) -> int:
    """Return the number of windows of a text.

    Args:
        tokens: of the text, more than `context`.
        context: input tokens of a window.
        stride: scored tokens of a window.
    """
    return (tokens - 1 - context) // stride + 1


def tokenize(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the tokens of a text, and for each the bytes of text since the token before it.

    Special tokens are not added. Of several tokens within one character, the first has its bytes.

    Returns:
        Two arrays (tokens,) of int32.
    """
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    ends = np.maximum.accumulate(np.array([end for _, end in encoded["offset_mapping"]], dtype=np.int64))
    bytes_before = np.concatenate([[0], np.cumsum([len(c.encode()) for c in text])])  # of each character
    sizes = np.diff(bytes_before[ends], prepend=0)
    return np.array(encoded["input_ids"], dtype=np.int32), sizes.astype(np.int32)


class Windows(Sequence[Window]):
    """The windows of a prepared text, in the order of the samples.

    Args:
        place: folder of the prepared text.
        context: input tokens of a window.
        stride: scored tokens of a window.
        data_seed: seed of the order.
    """

    def __init__(self, place: Path, *, context: int, stride: int, data_seed: int) -> None:
        self._tokens, self._sizes = (torch.from_numpy(np.load(place / name)) for name in (TOKENS, BYTES))
        self._context, self._stride = context, stride
        count = window_count(len(self._tokens), context, stride)
        # hashes, because random generators may change with their library
        self._order = sorted(range(count), key=lambda n: hashlib.sha256(f"{data_seed} {n}".encode()).digest())

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, key):
        start = self._order[key] * self._stride
        ids = self._tokens[start : start + self._context + 1].long()
        doc_hash = hashlib.sha256(f"{self._stride} {ids.tolist()}".encode()).hexdigest()[:16]
        return Window(key, ids, self._sizes[start : start + self._context + 1][-self._stride :], doc_hash)


def window_batches(options: TextOptions, context: TaskContext) -> Iterator[tuple[int, list[Window], float]]:
    """Yield (draw, windows, time of the start) for the batches of a task; beyond the end of the
    text there are none."""
    cell = context.cell
    assert context.data is not None, "the task prepares data"
    stride = stride_of(options, cell.context)
    data = Windows(context.data.place, context=cell.context, stride=stride, data_seed=cell.data_seed)
    for draw, keys in context.batches():
        if batch := [data[key] for key in keys if key < len(data)]:
            yield draw, batch, time.perf_counter()
