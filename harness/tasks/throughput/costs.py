"""Counted costs of a step: operations and bytes, from shapes and from the visited pairs."""

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from harness.models.family import Architecture
from kernels import Weights


def visited_pairs(weights: Sequence[Weights], tokens: int) -> int:
    """Return the pairs of all layers and heads in a causal sequence, with the diagonal."""
    by_id: dict[int, int] = {}  # layers often share their weights
    for layer in weights:
        if id(layer) not in by_id:
            by_id[id(layer)] = int(layer.pairs(tokens).sum()) + layer.heads * tokens
    return sum(by_id[id(layer)] for layer in weights)


def prefill_flops(arch: Architecture, pairs: int, tokens: int, batch: int) -> int:
    """Return the operations of a forward with logits of the last token only.

    A multiply-add counts as two operations. Attention counts 4 * head_dim for each visited pair, no
    matter how many a kernel computes. Norms, softmax and activations are not counted.

    Args:
        arch: sizes of the model.
        pairs: visited pairs of all layers and heads.
        tokens: tokens of a sequence.
        batch: sequences.
    """
    layer = (2 + 2 * arch.expansion) * arch.width**2 + 2 * arch.width * arch.kv_width
    linear = 2 * (arch.layers * layer * tokens + arch.width * arch.vocabulary)
    return batch * (linear + 4 * arch.head_dim * pairs)


def decode_bytes(
    model: PreTrainedModel, arch: Architecture, weights: Sequence[Weights], context: int, batch: int
) -> int:
    """Return the bytes that must be read to decode one token.

    These are the model's weights, once, and the keys and values in reach of any query head of each
    key head.

    Args:
        model: the model.
        arch: its sizes.
        weights: weights of each layer.
        context: tokens before the decoded token.
        batch: sequences.
    """
    embedding, head = (m.weight for m in (model.get_input_embeddings(), model.get_output_embeddings()))
    assert isinstance(embedding, torch.Tensor)
    parameters = sum(p.numel() * p.element_size() for p in model.parameters())
    if embedding is not head:
        parameters -= embedding.numel() * embedding.element_size()
    slots = 0
    for layer in weights:
        row = torch.full((layer.heads, 1), context)
        first, _ = layer.reach(torch.arange(layer.heads), row)
        keys = (context - first[:, 0]).clamp_min(0) + min(layer.sinks, context) + 1
        slots += int(keys.view(arch.kv_heads or arch.heads, -1).amax(1).sum())
    return parameters + batch * 2 * slots * arch.head_dim * embedding.element_size()
