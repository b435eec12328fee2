"""Small random MPT models, stock and with replaced attention."""

from pathlib import Path

import torch
from transformers import MptConfig, MptForCausalLM

from harness.models.mpt import MPT
from harness.models.swap import SwappedAttention


def mpt(*, heads: int = 8, layers: int = 2, vocab_size: int = 97, max_seq_len: int = 256, **attn) -> MptForCausalLM:
    """Random weights of a size that makes attention matter (the default initialisation is nearly uniform)."""
    torch.manual_seed(0)
    config = MptConfig(
        d_model=heads * 16,
        n_heads=heads,
        n_layers=layers,
        vocab_size=vocab_size,
        max_seq_len=max_seq_len,
        initializer_range=0.12,
        attn_config=attn,
        eos_token_id=0,
        pad_token_id=0,
    )
    return MptForCausalLM(config).eval()


def swapped(model: MptForCausalLM, *, kernel: str = "sdpa") -> SwappedAttention:
    architecture = MPT.architecture(model.config.to_dict())
    return SwappedAttention(model, MPT, MPT.slopes(architecture), kernel=kernel)


def save_mpt(folder: Path, **options) -> Path:
    mpt(**options).save_pretrained(folder)
    return folder
