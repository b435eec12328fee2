"""Bits per byte of a text: by a model in windows that overlap, and by compressors of the standard
library.

Bits per byte do not depend on the tokenizer, perplexities per token do.
"""

import bz2
import gzip
import lzma
import math
from collections import Counter
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from harness.models.load import LoadedModel
from kernels import Weights

XZ = 9 | lzma.PRESET_EXTREME
TOKENS_AT_ONCE = 4096


def byte_counts(tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """(vocabulary,): how many bytes of text each token of a byte-level tokenizer stands for, 0 for
    special ones."""
    tokens = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    special = set(tokenizer.all_special_tokens)
    return torch.tensor([0 if token in special else len(token) for token in tokens])


@torch.inference_mode()
def nats(loaded: LoadedModel, windows: Tensor, weights: Sequence[Weights], *, last: int) -> Tensor:
    """(windows, last): minus the log-probability of the last tokens of every window (n, context +
    1)."""
    size = max(1, TOKENS_AT_ONCE // windows.shape[1])
    found = []
    with loaded.attention.use(weights):
        for rows in windows.split(size):
            logits = loaded.model(rows[:, :-1], use_cache=False).logits[:, -last:].float()
            found.append(F.cross_entropy(logits.flatten(0, 1), rows[:, -last:].flatten(), reduction="none"))
    return torch.cat(found).unflatten(0, (-1, last))


def sliding(loaded: LoadedModel, ids: Tensor, weights: Sequence[Weights], *, context: int) -> Tensor:
    """(N - 1,): nats of every token of `ids` (N,) but the first, each predicted once.

    Windows of `context` tokens are moved by half of that, and the second half of each is counted: a
    token sees from context / 2 to context tokens before it, fewer only at the start of the text.
    The last window ends with the text.
    """
    context = min(context, len(ids) - 1)
    half = max(1, context // 2)
    first = nats(loaded, ids[None, : context + 1], weights, last=context)[0]
    left = len(ids) - 1 - context
    if not left:
        return first
    ends = [*range(context + half, len(ids) - 1, half), len(ids) - 1]
    rows = nats(loaded, torch.stack([ids[end - context : end + 1] for end in ends]), weights, last=half)
    return torch.cat([first, rows[:-1].flatten(), rows[-1, -(left - half * (len(ends) - 1)) :]])


def compressed(text: bytes, before: bytes) -> dict[str, float]:
    """Bits per byte of a text by plain means: the entropy of its own bytes, compressors, and xz
    that has read the texts `before` (what the text adds to their size)."""
    counts = Counter(text).values()
    entropy = -sum(n / len(text) * math.log2(n / len(text)) for n in counts)
    both, alone = (len(lzma.compress(part, preset=XZ)) for part in (before + text, before))
    sizes = {
        "gzip -9": len(gzip.compress(text, 9)),
        "xz -9e": len(lzma.compress(text, preset=XZ)),
        "bzip2 -9": len(bz2.compress(text, 9)),
        "xz -9e after the training texts": both - alone,
    }
    return {"entropy of single bytes": entropy} | {name: 8 * size / len(text) for name, size in sizes.items()}


def unigram(ids: Tensor, trained: Tensor, sizes: Tensor) -> float:
    """Bits per byte of tokens by their share in the training stream, one added to every count."""
    counts = torch.bincount(trained, minlength=len(sizes)).double() + 1
    bits = -(counts / counts.sum()).log2()
    return float(bits[ids].sum() / sizes[ids].sum())
