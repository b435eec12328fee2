"""Bits per byte of a text, by a model in overlapping windows and by standard compressors.

Unlike perplexities per token, bits per byte do not depend on the tokenizer.
"""

import bz2
import gzip
import lzma
import math
from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from harness.models.load import LoadedModel
from harness.tasks.text import perplexity
from kernels import Weights

XZ_PRESET = 9 | lzma.PRESET_EXTREME
TOKENS_AT_ONCE = 4096


def byte_counts(tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """Return the bytes of text of each token (vocabulary,) of a byte-level tokenizer.

    Special tokens have 0 bytes.
    """
    tokens = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    special = set(tokenizer.all_special_tokens)
    return torch.tensor([0 if token in special else len(token) for token in tokens])


def nats(loaded: LoadedModel, windows: Tensor, weights: Sequence[Weights], *, last: int) -> Tensor:
    """Return the negative log-probabilities (windows, last) of the last tokens of each window, by the
    scoring of task=perplexity.

    Args:
        loaded: the model.
        windows: token ids (windows, context + 1).
        weights: weights of each layer.
        last: number of scored tokens.
    """
    breaks = perplexity.line_break_tokens(loaded)
    parts = windows.split(max(1, TOKENS_AT_ONCE // windows.shape[1]))
    with loaded.attention.use(weights):
        return torch.stack([p.nats for part in parts for p in perplexity.predict(loaded, part, last, breaks)])


def sliding_nats(loaded: LoadedModel, ids: Tensor, weights: Sequence[Weights], *, context: int) -> Tensor:
    """Return the nats (N - 1,) of all tokens but the first, each predicted once.

    Windows of `context` tokens advance by half a window, and the second half of each is scored. A
    token thus sees context / 2 to context tokens, fewer only at the start of the text. The last
    window ends with the text.

    Args:
        loaded: the model.
        ids: token ids (N,).
        weights: weights of each layer.
        context: tokens of a window.
    """
    context = min(context, len(ids) - 1)
    half = max(1, context // 2)
    first = nats(loaded, ids[None, : context + 1], weights, last=context)[0]
    remaining = len(ids) - 1 - context
    if not remaining:
        return first
    ends = [*range(context + half, len(ids) - 1, half), len(ids) - 1]
    rows = nats(loaded, torch.stack([ids[end - context : end + 1] for end in ends]), weights, last=half)
    return torch.cat([first, rows[:-1].flatten(), rows[-1, -(remaining - half * (len(ends) - 1)) :]])


def compression_bits(text: bytes, before: bytes) -> dict[str, float]:
    """Return bits per byte of a text by the entropy of its bytes and by compressors.

    before: texts that xz has read; its figure is the growth of their compressed size.
    """
    counts = Counter(text).values()
    entropy = -sum(n / len(text) * math.log2(n / len(text)) for n in counts)
    joint_size, before_size = (len(lzma.compress(part, preset=XZ_PRESET)) for part in (before + text, before))
    sizes = {
        "gzip -9": len(gzip.compress(text, 9)),
        "xz -9e": len(lzma.compress(text, preset=XZ_PRESET)),
        "bzip2 -9": len(bz2.compress(text, 9)),
        "xz -9e after the training texts": joint_size - before_size,
    }
    return {"entropy of single bytes": entropy} | {name: 8 * size / len(text) for name, size in sizes.items()}


def unigram_bits(ids: Tensor, trained: Tensor, sizes: Tensor) -> float:
    """Return the bits per byte of tokens under their frequencies in training, plus one each.

    Args:
        ids: token ids of the text.
        trained: token ids of the training texts.
        sizes: bytes of each token, see `byte_counts`.
    """
    counts = torch.bincount(trained, minlength=len(sizes)).double() + 1
    bits = -(counts / counts.sum()).log2()
    return float(bits[ids].sum() / sizes[ids].sum())
