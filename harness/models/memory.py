"""Estimate the memory of a run from the architecture, and check it before anything is loaded."""

from dataclasses import dataclass

import psutil
import torch

from harness.common.errors import UserError
from harness.models.family import Architecture
from kernels.impl.reference import bytes_needed

GIB = 2**30
CHUNK_TOKENS = 512  # tokens of a forward with a cache that evicts
# kernels that allocate n x n matrices -> advice for when these do not fit
DENSE_ADVICE = {
    "exact": "kernel=sdpa, which holds no n x n matrix,",
    "stock": "attn=alibi, which holds no n x n matrix,",
}


@dataclass(frozen=True)
class MemoryNeed:
    """Upper estimate of the bytes that one batch at the full context needs, by part."""

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
    """Estimate a prefill with a KV cache and the logits of the last tokens only.

    Args:
        arch: the model's sizes.
        itemsize: bytes of a number.
        batch: sequences at a time.
        tokens: tokens of each sequence.
        masks: masks of each layer and head.
        draws: draws of the masks.
        kernel: the kernel, or "stock".
        reach: tokens that a cache that evicts holds beside a chunk; None for a cache of all tokens.
    """
    step_tokens = tokens if reach is None else min(tokens, CHUNK_TOKENS)
    cached_tokens = tokens if reach is None else min(tokens, reach + CHUNK_TOKENS)
    layer = (2 + 2 * arch.expansion) * arch.width**2 + 2 * arch.width * arch.kv_width
    weights = (arch.layers * layer + arch.vocabulary * arch.width) * itemsize
    cache = 2 * arch.layers * arch.kv_width * cached_tokens * batch * itemsize
    # the peak of a layer: hidden state and residual, with q, k, v and output or the two halves of
    # the feed-forward; 0.25 GiB for the blocks of the attention kernel
    activations = (2 + max(6, 2 * arch.expansion)) * arch.width * step_tokens * batch * itemsize + GIB // 4
    # three float64 per mask of every draw, and a chunk of 64 rows with a few int64 per mask
    activations += masks * 8 * (3 * draws * arch.layers * arch.heads + 6 * 64)
    if kernel in DENSE_ADVICE:
        activations += bytes_needed(batch, arch.heads, step_tokens, cached_tokens)
    return MemoryNeed(weights, cache, activations)


def available_bytes(device: torch.device, *, spread: bool = False) -> int:
    """Return the free memory of the device, or with `spread` of all CUDA devices together."""
    if spread:
        return sum(torch.cuda.mem_get_info(i)[0] for i in range(torch.cuda.device_count()))
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available


def check_memory(need: MemoryNeed, device: torch.device, *, kernel: str, spread: bool = False) -> str:
    """Return the sentence about the memory that a run needs.

    Args:
        need: the estimate.
        device: where the run takes place.
        kernel: the kernel, for the advice.
        spread: whether the model is spread over all CUDA devices.

    Raises:
        UserError: if less memory is free.
    """
    available = available_bytes(device, spread=spread)
    sentence = need.sentence(available)
    if need.total > available:
        advice = DENSE_ADVICE.get(kernel, "a smaller context, batch or number of masks, or dtype=bfloat16,")
        raise UserError(f"{sentence} That does not fit on {device}: use {advice} or a larger device.")
    return sentence
