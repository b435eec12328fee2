"""Small random models of every family, stock and with replaced attention."""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import BloomConfig, BloomForCausalLM, FalconConfig, FalconForCausalLM, MptConfig, MptForCausalLM
from transformers import PreTrainedModel as Model

from harness.models.families import FAMILIES
from harness.models.swap import SwappedAttention

SCALE = {"initializer_range": 0.12}  # makes attention matter; transformers' own initialisation is nearly uniform
TOKENS = {"eos_token_id": 0, "pad_token_id": 0}


def mpt(*, heads: int = 8, layers: int = 2, vocab_size: int = 97, max_seq_len: int = 256, **attn) -> MptForCausalLM:
    torch.manual_seed(0)
    sizes = {"d_model": heads * 16, "n_heads": heads, "n_layers": layers, "vocab_size": vocab_size}
    return MptForCausalLM(MptConfig(**sizes, **SCALE, **TOKENS, max_seq_len=max_seq_len, attn_config=attn)).eval()


def bloom(*, heads: int = 8, layers: int = 2, vocab_size: int = 97, **options) -> BloomForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": heads * 16, "n_head": heads, "n_layer": layers, "vocab_size": vocab_size}
    return BloomForCausalLM(BloomConfig(**sizes, **SCALE, **TOKENS, **options)).eval()


def falcon(*, heads: int = 8, layers: int = 2, vocab_size: int = 97, eager: bool = False, **options):
    """As Falcon-RW is, unless options say otherwise."""
    torch.manual_seed(0)
    sizes = {"hidden_size": heads * 16, "num_attention_heads": heads, "num_hidden_layers": layers}
    options = {"alibi": True, "bias": True, "multi_query": False, "parallel_attn": False} | options
    config = FalconConfig(**sizes, **SCALE, **TOKENS, vocab_size=vocab_size, **options)
    config._attn_implementation = "eager" if eager else "sdpa"
    return FalconForCausalLM(config).eval()


BUILD = {"mpt": mpt, "bloom": bloom, "falcon": falcon}
# what stock computes to float32 accuracy: Falcon's bfloat16 bias is exact for powers of two and up
# to 256 tokens
CASES = [
    ("mpt", {"heads": 8}),
    ("mpt", {"heads": 12, "clip_qkv": 0.8}),
    ("mpt", {"heads": 6, "softmax_scale": 0.2}),
    ("bloom", {"heads": 8}),
    ("bloom", {"heads": 12, "apply_residual_connection_post_layernorm": True}),
    ("falcon", {"heads": 8}),
    ("falcon", {"heads": 8, "multi_query": True, "parallel_attn": True}),
    ("falcon", {"heads": 8, "new_decoder_architecture": True, "parallel_attn": True, "num_kv_heads": 2}),
]


def swapped(model: Model, *, kernel: str = "sdpa", slope_factor: float = 1.0) -> SwappedAttention:
    family = FAMILIES[model.config.model_type]
    slopes = family.slopes(family.architecture(model.config.to_dict()))
    return SwappedAttention(model, family, slopes * slope_factor, kernel=kernel)


def save(folder: Path, family: str = "mpt", **options) -> Path:
    BUILD[family](**options).save_pretrained(folder)
    return folder


def lose_a_weight(folder: Path) -> None:
    """Of a checkpoint: seen when it is loaded, and not before."""
    weights = load_file(folder / "model.safetensors")
    del weights["transformer.norm_f.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
