"""MPT (transformers.models.mpt): the facts of one family that the attention swap needs."""

import torch

from harness.errors import UserError
from harness.models.family import Architecture, Family


def _architecture(raw: dict) -> Architecture:
    attn = raw.get("attn_config") or {}
    unsupported = {"qk_ln": False, "prefix_lm": False, "alibi": True, "attn_type": "multihead_attention"}
    for key, wanted in unsupported.items():
        if attn.get(key, wanted) != wanted:
            raise UserError(f"This MPT checkpoint has attn_config.{key}={attn[key]!r}; only {wanted!r} is supported.")
    return Architecture(
        family="mpt",
        layers=raw.get("n_layers", 24),
        heads=raw.get("n_heads", 16),
        width=raw.get("d_model", 2048),
        vocabulary=raw.get("vocab_size", 50368),
        bias_max=attn.get("alibi_bias_max", 8),
        expansion=raw.get("expansion_ratio", 4),
        positions=raw.get("max_seq_len", 2048),
    )


def _mend(raw: dict) -> dict:
    """Published configurations hold whole numbers where MptConfig insists on floats (clip_qkv: 6), and the reverse."""
    attn = dict(raw.get("attn_config") or {})
    for key, kind in (("clip_qkv", float), ("softmax_scale", float), ("attn_pdrop", int)):
        if attn.get(key) is not None:
            attn[key] = kind(attn[key])
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


def _forward(module, attend, hidden_states, position_bias=None, past_key_values=None, attention_mask=None, **_):
    batch, tokens, _ = hidden_states.shape
    qkv = module.Wqkv(hidden_states)
    if module.clip_qkv:
        qkv = qkv.clamp(min=-module.clip_qkv, max=module.clip_qkv)
    q, k, v = (x.view(batch, tokens, module.n_heads, -1).transpose(1, 2) for x in qkv.chunk(3, dim=2))
    options = {"layer": module.layer_idx, "mask": attention_mask, "cache": past_key_values}
    out = attend(q, k, v, scale=module.softmax_scale, **options)
    return module.out_proj(out.transpose(1, 2).reshape(batch, tokens, -1)), None


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
)
