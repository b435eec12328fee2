"""Mistral (transformers.models.mistral), a family without ALiBi: its queries, keys and values can be
measured under slopes of one's own, as in section 5.2 of arXiv 2605.09472."""

import torch

from harness.common.errors import UserError
from harness.models.family import Architecture, Family


def _architecture(raw: dict) -> Architecture:
    width, heads = raw.get("hidden_size", 4096), raw.get("num_attention_heads", 32)
    if (head_dim := raw.get("head_dim")) is not None and head_dim * heads != width:
        raise UserError(f"This Mistral checkpoint has head_dim={head_dim}: only hidden_size / heads is supported.")
    # the feed-forward network has three matrices where other families have two
    expansion = -(-3 * raw.get("intermediate_size", 14336) // (2 * width))
    return Architecture(
        family="mistral",
        layers=raw.get("num_hidden_layers", 32),
        heads=heads,
        width=width,
        vocabulary=raw.get("vocab_size", 32000),
        expansion=expansion,
        kv_heads=raw.get("num_key_value_heads", 8),
        positions=raw.get("max_position_embeddings", 4096 * 32),
    )


def _raw(architecture: Architecture) -> dict:
    return {
        "model_type": "mistral",
        "num_hidden_layers": architecture.layers,
        "num_attention_heads": architecture.heads,
        "num_key_value_heads": architecture.kv_heads or architecture.heads,
        "hidden_size": architecture.width,
        "intermediate_size": 2 * architecture.expansion * architecture.width // 3,
        "vocab_size": architecture.vocabulary,
    }


def _projections(module, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, float]:
    shape = (*hidden_states.shape[:-1], -1, module.head_dim)
    projections = (module.q_proj, module.k_proj, module.v_proj)
    q, k, v = (project(hidden_states).view(shape).transpose(1, 2) for project in projections)
    return q, k, v, module.scaling


def _own_attention(module, attend, *arguments):
    raise AssertionError("the attention of a family without ALiBi is never replaced")


def _is_attention(module: torch.nn.Module) -> bool:
    return type(module).__name__ == "MistralAttention"


MISTRAL = Family(
    name="mistral",
    slope_order="none",
    architecture=_architecture,
    mend=dict,
    raw=_raw,
    is_attention=_is_attention,
    forward=_own_attention,
    ignored_arguments=(),
    projections=_projections,
)
