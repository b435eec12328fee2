"""What a step costs by count: floating-point operations and bytes, from the shapes and from the
pairs that this draw of the masks visits."""

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from harness.models.family import Architecture
from kernels import Weights


def visited_pairs(weights: Sequence[Weights], tokens: int) -> int:
    """Pairs that all layers and heads visit in a causal sequence, each token with itself
    included."""
    known: dict[int, int] = {}  # layers often share their weights
    for layer in weights:
        if id(layer) not in known:
            known[id(layer)] = int(layer.pairs(tokens).sum()) + layer.heads * tokens
    return sum(known[id(layer)] for layer in weights)


def prefill_flops(arch: Architecture, pairs: int, tokens: int, batch: int) -> int:
    """Operations of one forward over `batch` sequences, logits of the last token alone; a
    multiplication with its addition counts two. Attention is 4 * head_dim for every pair that is
    visited, whatever a kernel computes beside them; norms, softmax and activations are not
    counted."""
    layer = (2 + 2 * arch.expansion) * arch.width**2 + 2 * arch.width * arch.kv_width
    linear = 2 * (arch.layers * layer * tokens + arch.width * arch.vocabulary)
    return batch * (linear + 4 * arch.head_dim * pairs)


def decode_bytes(
    model: PreTrainedModel, arch: Architecture, weights: Sequence[Weights], context: int, batch: int
) -> int:
    """Bytes that the token after `context` of `batch` sequences must read: the model's weights
    once, and of each sequence the keys and values that some query head of each key head reaches."""
    embedding, head = (m.weight for m in (model.get_input_embeddings(), model.get_output_embeddings()))
    assert isinstance(embedding, torch.Tensor)
    parameters = sum(p.numel() * p.element_size() for p in model.parameters())
    if embedding is not head:
        parameters -= embedding.numel() * embedding.element_size()
    slots = 0
    for layer in weights:
        row = torch.full((layer.heads, 1), context)
        first, _ = layer.reach(torch.arange(layer.heads), row)
        held = (context - first[:, 0]).clamp_min(0) + min(layer.sinks, context) + 1
        slots += int(held.view(arch.kv_heads or arch.heads, -1).amax(1).sum())
    return parameters + batch * 2 * slots * arch.head_dim * embedding.element_size()
