"""BLOOM (transformers.models.bloom): what the attention swap needs to know of the family."""

import torch

from harness.models.family import Architecture, Family
from harness.models.settings import ANY_VALUE, accept_any, refuse_unknown, rename_settings

# older published configurations use these names for settings of BloomConfig
OLD_NAMES = {"n_embed": "hidden_size", "num_hidden_layers": "n_layer", "num_attention_heads": "n_head"}
SETTINGS = {
    **accept_any("vocab_size", "hidden_size", "n_layer", "n_head", "layer_norm_epsilon"),
    "apply_residual_connection_post_layernorm": ANY_VALUE,
    # settings of training: dropout, fused operations and the order of summation
    **dict.fromkeys(
        ("hidden_dropout", "attention_dropout", "pretraining_tp", "slow_but_exact", "seq_length"), ANY_VALUE
    ),
    **dict.fromkeys(
        ("attention_softmax_in_fp32", "bias_dropout_fusion", "masked_softmax_fusion", "offset_alibi"), ANY_VALUE
    ),
    **accept_any("skip_bias_add", "skip_bias_add_qkv"),
    "position_embedding_type": ("alibi",),
}


def _architecture(raw: dict) -> Architecture:
    raw = _mend(raw)
    refuse_unknown(raw, SETTINGS, kind="BLOOM")
    return Architecture(
        family="bloom",
        layers=raw.get("n_layer", 2),
        heads=raw.get("n_head", 8),
        width=raw.get("hidden_size", 64),
        vocabulary=raw.get("vocab_size", 250880),
    )


def _mend(raw: dict) -> dict:
    return rename_settings(raw, OLD_NAMES)


def _raw(architecture: Architecture) -> dict:
    return {
        "model_type": "bloom",
        "n_layer": architecture.layers,
        "n_head": architecture.heads,
        "hidden_size": architecture.width,
        "vocab_size": architecture.vocabulary,
    }


def _forward(module, attend, hidden_states, residual):
    """In BLOOM the attention module adds the residual, not the block."""
    batch, tokens, _ = hidden_states.shape
    qkv = module.query_key_value(hidden_states).view(batch, tokens, module.num_heads, 3, module.head_dim)
    q, k, v = (x.transpose(1, 2) for x in qkv.unbind(3))
    out, probabilities = attend(q, k, v, scale=module.inv_norm_factor, dropout=module.attention_dropout.p)
    out = module.dense(out.transpose(1, 2).reshape(batch, tokens, -1))
    return residual + torch.nn.functional.dropout(out, module.hidden_dropout, module.training), probabilities


def _is_attention(module: torch.nn.Module) -> bool:
    return type(module).__name__ == "BloomAttention"


BLOOM = Family(
    name="bloom",
    slope_order="press",
    architecture=_architecture,
    mend=_mend,
    raw=_raw,
    is_attention=_is_attention,
    forward=_forward,
    ignored_arguments=("alibi", "use_cache", "output_attentions"),
)
