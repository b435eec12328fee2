"""Falcon with ALiBi (transformers.models.falcon; Falcon-RW): facts for the attention swap."""

import torch

from harness.common.errors import UserError
from harness.models.family import Architecture, Family
from harness.models.settings import ANY_VALUE, accept_any, refuse_unknown, rename_settings

OLD_NAMES = {"n_embed": "hidden_size", "n_layer": "num_hidden_layers", "n_head": "num_attention_heads"}
SETTINGS = {
    **dict.fromkeys(
        ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_kv_heads"), ANY_VALUE
    ),
    **dict.fromkeys(
        ("layer_norm_epsilon", "bias", "multi_query", "parallel_attn", "new_decoder_architecture"), ANY_VALUE
    ),
    **accept_any("num_ln_in_parallel_attn", "ffn_hidden_size", "activation", "max_position_embeddings"),
    # without effect under ALiBi or outside training
    **dict.fromkeys(
        ("rope_theta", "rope_scaling", "rope_parameters", "hidden_dropout", "attention_dropout"), ANY_VALUE
    ),
    "alibi": ANY_VALUE,  # checked by _architecture
}


def _architecture(raw: dict) -> Architecture:
    raw = _mend(raw)
    if not raw.get("alibi", False):
        raise UserError(
            "This Falcon checkpoint has alibi=False (rotary positions); only ALiBi models are supported, such as "
            "falcon-rw-1b and falcon-rw-7b."
        )
    refuse_unknown(raw, SETTINGS, kind="Falcon")
    heads, width = raw.get("num_attention_heads", 71), raw.get("hidden_size", 4544)
    if raw.get("new_decoder_architecture", False):
        kv_heads = raw.get("num_kv_heads") or heads
    else:
        kv_heads = 1 if raw.get("multi_query", True) else heads
    return Architecture(
        family="falcon",
        layers=raw.get("num_hidden_layers", 32),
        heads=heads,
        width=width,
        vocabulary=raw.get("vocab_size", 65024),
        expansion=-(-(raw.get("ffn_hidden_size") or 4 * width) // width),
        kv_heads=None if kv_heads == heads else kv_heads,
    )


def _mend(raw: dict) -> dict:
    return rename_settings(raw, OLD_NAMES)


def _raw(architecture: Architecture) -> dict:
    """Like Falcon-RW, or like later Falcons if there are fewer key heads than query heads.

    Falcon-RW has biases and runs attention before the feed-forward.
    """
    kv_heads = architecture.kv_heads
    return {
        "model_type": "falcon",
        "alibi": True,
        "num_hidden_layers": architecture.layers,
        "num_attention_heads": architecture.heads,
        "hidden_size": architecture.width,
        "vocab_size": architecture.vocabulary,
        "ffn_hidden_size": architecture.expansion * architecture.width,
        "bias": kv_heads is None,
        "parallel_attn": kv_heads is not None,
        "multi_query": kv_heads == 1,
        "new_decoder_architecture": kv_heads is not None and kv_heads > 1,
        "num_kv_heads": kv_heads,
    }


def _forward(module, attend, hidden_states):
    batch, tokens, _ = hidden_states.shape
    qkv = module.query_key_value(hidden_states)
    # each group holds its query heads, its key and its value: a single group if all heads share
    # the key, one group per head if none do
    groups = (qkv.shape[2] // module.head_dim - module.num_heads) // 2
    qkv = qkv.view(batch, tokens, groups, -1, module.head_dim)
    q = qkv[:, :, :, :-2].flatten(2, 3).transpose(1, 2)
    k, v = qkv[:, :, :, -2].transpose(1, 2), qkv[:, :, :, -1].transpose(1, 2)
    out, probabilities = attend(q, k, v, scale=module.inv_norm_factor, dropout=module.attention_dropout.p)
    return module.dense(out.transpose(1, 2).reshape(batch, tokens, -1)), probabilities


def _is_attention(module: torch.nn.Module) -> bool:
    return type(module).__name__ == "FalconAttention"


def _slope_factor(architecture: Architecture) -> float:
    """Falcon scales scores and bias together: (q.k + bias) / sqrt(head_dim)."""
    return architecture.head_dim**-0.5


FALCON = Family(
    name="falcon",
    slope_order="press",
    architecture=_architecture,
    mend=_mend,
    raw=_raw,
    is_attention=_is_attention,
    forward=_forward,
    ignored_arguments=("alibi", "position_ids", "position_embeddings", "use_cache", "output_attentions"),
    slope_factor=_slope_factor,
)
