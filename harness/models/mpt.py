"""MPT (transformers.models.mpt): what the attention swap needs to know of the family."""

import torch

from harness.models.family import Architecture, Family
from harness.models.settings import ANY_VALUE, accept_any, refuse_unknown

# llm-foundry has more settings than transformers implements; its rotary ones have no effect while
# rope is off
ATTENTION = {
    **accept_any("alibi_bias_max", "attn_impl", "attn_pdrop", "clip_qkv", "softmax_scale"),
    **accept_any("rope_theta", "rope_impl", "rope_dail_config", "rope_hf_config"),
    "alibi": (True,),
    "attn_type": ("multihead_attention",),
    "fused_qkv": (True,),
    "sliding_window_size": (-1,),
}
SETTINGS = {
    **accept_any("d_model", "n_heads", "n_layers", "vocab_size", "max_seq_len", "layer_norm_epsilon"),
    **dict.fromkeys(
        ("resid_pdrop", "emb_pdrop", "embedding_fraction", "learned_pos_emb", "use_pad_tok_in_ffn"), ANY_VALUE
    ),
    "attn_config": ATTENTION,
    "expansion_ratio": (4,),  # the only value that transformers builds
    "fc_type": ("torch", "te"),
    "ffn_config": {"ffn_type": ("mptmlp",), "fc_type": ("torch", "te")},
    "no_bias": (True,),
    "norm_eps": (1e-5,),
    "norm_type": ("low_precision_layernorm", "layernorm"),
}


def _architecture(raw: dict) -> Architecture:
    heads = raw.get("n_heads", 16)
    # as many key heads as query heads means no grouped-query attention
    refuse_unknown(raw, {**SETTINGS, "attn_config": {**ATTENTION, "kv_n_heads": (heads,)}}, kind="MPT")
    attn = raw.get("attn_config") or {}
    return Architecture(
        family="mpt",
        layers=raw.get("n_layers", 24),
        heads=heads,
        width=raw.get("d_model", 2048),
        vocabulary=raw.get("vocab_size", 50368),
        bias_max=attn.get("alibi_bias_max", 8),
        expansion=raw.get("expansion_ratio", 4),
        positions=raw.get("max_seq_len", 2048),
    )


def _mend(raw: dict) -> dict:
    """Drop attention dropout, which MptConfig requires to be an integer and only training uses."""
    attn = {key: value for key, value in (raw.get("attn_config") or {}).items() if key != "attn_pdrop"}
    return {**raw, "attn_config": attn}


def _raw(architecture: Architecture) -> dict:
    return {
        "model_type": "mpt",
        "n_layers": architecture.layers,
        "n_heads": architecture.heads,
        "d_model": architecture.width,
        "vocab_size": architecture.vocabulary,
        "expansion_ratio": architecture.expansion,
        "max_seq_len": architecture.positions or 2048,
        "attn_config": {"alibi_bias_max": int(architecture.bias_max)},
    }


def _forward(module, attend, hidden_states):
    batch, tokens, _ = hidden_states.shape
    qkv = module.Wqkv(hidden_states)
    if module.clip_qkv:
        qkv = qkv.clamp(min=-module.clip_qkv, max=module.clip_qkv)
    q, k, v = (x.view(batch, tokens, module.n_heads, -1).transpose(1, 2) for x in qkv.chunk(3, dim=2))
    out, probabilities = attend(q, k, v, scale=module.softmax_scale, dropout=module.attn_dropout_p)
    return module.out_proj(out.transpose(1, 2).reshape(batch, tokens, -1)), probabilities


def _is_attention(module: torch.nn.Module) -> bool:
    return type(module).__name__ == "MptAttention"


MPT = Family(
    name="mpt",
    slope_order="mpt",
    architecture=_architecture,
    mend=_mend,
    raw=_raw,
    is_attention=_is_attention,
    forward=_forward,
    ignored_arguments=("position_bias",),
)
