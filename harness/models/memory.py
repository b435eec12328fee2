"""How much memory a run will need, estimated from the architecture alone and checked before
anything is loaded."""

from dataclasses import dataclass

import psutil
import torch

from harness.common.errors import UserError
from harness.models.family import Architecture
from kernels.impl.reference import bytes_needed

GIB = 2**30
CHUNK = 512  # tokens of a forward where keys are evicted
# what holds n x n matrices, and what to use where they do not fit
DENSE = {
    "exact": "kernel=sdpa, which holds no n x n matrix,",
    "stock": "attn=alibi, which holds no n x n matrix,",
}


@dataclass(frozen=True)
class MemoryNeed:
    """Bytes by part; an upper estimate for one batch at the full context."""

    weights: int
    cache: int
    activations: int

    @property
    def total(self) -> int:
        return self.weights + self.cache + self.activations

    def sentence(self, available: int) -> str:
        return (
            f"Memory: about {self.total / GIB:.2f} GiB (weights {self.weights / GIB:.2f}, "
            f"KV cache {self.cache / GIB:.2f}, activations {self.activations / GIB:.2f}) of "
            f"{available / GIB:.1f} GiB available."
        )


def estimate(
    arch: Architecture,
    *,
    itemsize: int,
    batch: int,
    tokens: int,
    masks: int,
    draws: int,
    kernel: str,
    reach: int | None = None,
) -> MemoryNeed:
    """Estimate for prefilling `tokens` of `batch` sequences with a KV cache, logits of the last
    tokens only. reach: how many tokens a cache that evicts holds beside a chunk; None if it holds
    all."""
    fed = tokens if reach is None else min(tokens, CHUNK)
    held = tokens if reach is None else min(tokens, reach + CHUNK)
    layer = (2 + 2 * arch.expansion) * arch.width**2 + 2 * arch.width * arch.kv_width
    weights = (arch.layers * layer + arch.vocabulary * arch.width) * itemsize
    cache = 2 * arch.layers * arch.kv_width * held * batch * itemsize
    # the widest moment of a layer: hidden state and residual, with q, k, v and output or the
    # feed-forward's two halves; the attention kernel works in pieces of its own, counted as 0.25
    # GiB
    activations = (2 + max(6, 2 * arch.expansion)) * arch.width * fed * batch * itemsize + GIB // 4
    # three float64 per mask of every draw, and a chunk of 64 rows with a few int64 per mask
    activations += masks * 8 * (3 * draws * arch.layers * arch.heads + 6 * 64)
    if kernel in DENSE:
        activations += bytes_needed(batch, arch.heads, fed, held)
    return MemoryNeed(weights, cache, activations)


def available_bytes(device: torch.device, *, spread: bool = False) -> int:
    """Free memory of the device, or of all CUDA devices together if the model is to be spread over
    them."""
    if spread:
        return sum(torch.cuda.mem_get_info(i)[0] for i in range(torch.cuda.device_count()))
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available


def check(need: MemoryNeed, device: torch.device, *, kernel: str, spread: bool = False) -> str:
    """The sentence to print; UserError if the run cannot fit."""
    available = available_bytes(device, spread=spread)
    sentence = need.sentence(available)
    if need.total > available:
        way = DENSE.get(kernel, "a smaller context, batch or number of masks, or dtype=bfloat16,")
        raise UserError(f"{sentence} That does not fit on {device}: use {way} or a larger device.")
    return sentence
