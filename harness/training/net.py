"""The network for training: MPT's parameters, with a forward limited to the needs of the loss.

The last block computes only the requested positions. Attention goes by blocks of queries, to skip
most future keys. There is no cache, dropout or padding. `export` writes the stock form.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import MptConfig, MptForCausalLM

from harness.training import attention
from kernels.methods.slopes import alibi_slopes

ALIBI_BIAS_MAX = 8
QUERY_BLOCK = 128


def config(vocab_size: int, d_model: int = 128, layers: int = 2, heads: int = 8) -> MptConfig:
    """Return the stock configuration; its `max_seq_len` limits stock code.

    Args:
        vocab_size: tokens of the vocabulary.
        d_model: width.
        layers: number of layers.
        heads: number of heads.
    """
    return MptConfig(
        d_model=d_model,
        n_heads=heads,
        n_layers=layers,
        expansion_ratio=4,
        max_seq_len=8192,
        vocab_size=vocab_size,
        no_bias=True,
        attn_config={
            "alibi": True,
            "alibi_bias_max": ALIBI_BIAS_MAX,  # stock code knows no other
            "attn_type": "multihead_attention",
        },
        architectures=["MptForCausalLM"],
        tie_word_embeddings=True,
        use_cache=True,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )


def slopes(heads: int) -> Tensor:
    """Return MPT's slopes (heads,), in float32."""
    return alibi_slopes(heads, bias_max=ALIBI_BIAS_MAX, order="mpt").float()


def alibi_bias(heads: int, length: int, cutoff: float | None = None) -> Tensor:
    """Return the causal ALiBi bias (heads, length, length).

    It is `-m (i - j)`, and -inf for future keys and below `-cutoff`.

    Args:
        heads: number of heads.
        length: number of tokens.
        cutoff: limit of `m (i - j)`, or None.
    """
    slope = slopes(heads)
    position = torch.arange(length)
    distance = position[:, None] - position[None, :]
    bias = (-slope[:, None, None] * distance).masked_fill(distance < 0, float("-inf"))
    return bias if cutoff is None else cut(bias, cutoff)


def plain_bias(shape: MptConfig, length: int) -> Tensor:
    """Return what `Net` takes for plain ALiBi.

    Args:
        shape: the configuration.
        length: number of tokens.

    Returns:
        The slopes (heads,) where `harness.training.attention` can be used, else `alibi_bias`.
    """
    if attention.available(shape.d_model // shape.n_heads):
        return slopes(shape.n_heads)
    return alibi_bias(shape.n_heads, length)


def cut(bias: Tensor, cutoff: float) -> Tensor:
    """Hide pairs with a bias below `-cutoff`: a window of `cutoff / m` tokens for each head."""
    return bias.masked_fill(bias < -cutoff, float("-inf"))


class Attention(nn.Module):
    """Multi-head attention with a bias."""

    def __init__(self, d_model: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.Wqkv = nn.Linear(d_model, 3 * d_model, bias=False)
        self.out_proj = nn.Linear(d_model, d_model, bias=False)

    def split(self, x: Tensor) -> Tensor:
        """Return (batch, heads, T, head_dim) of (batch, T, d_model)."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def forward(self, x: Tensor, bias: Tensor, rows: Tensor | None) -> Tensor:
        """Return the output (batch, T or R, d_model).

        Args:
            x: inputs (batch, T, d_model).
            bias: bias (heads, T, T), or slopes (heads,) for plain ALiBi by the code for short heads.
            rows: positions of queries (batch, R), or None for all.
        """
        width = x.shape[-1]
        if bias.dim() == 1:
            assert rows is None, "the code for short heads computes all positions"
            qkv = self.Wqkv(x).unflatten(-1, (3, self.heads, -1))
            return self.out_proj(attention.attend(qkv, bias).flatten(2))
        if rows is None:
            q, k, v = (self.split(part) for part in self.Wqkv(x).chunk(3, dim=-1))
            # With a mask of four dimensions torch uses its fused kernel, twice as fast here.
            mask = bias.to(q.dtype).expand(len(x), -1, -1, -1)
            blocks = [
                F.scaled_dot_product_attention(
                    q[:, :, first : first + QUERY_BLOCK],
                    k[:, :, : first + QUERY_BLOCK],
                    v[:, :, : first + QUERY_BLOCK],
                    attn_mask=mask[:, :, first : first + QUERY_BLOCK, : first + QUERY_BLOCK],
                )
                for first in range(0, x.shape[1], QUERY_BLOCK)
            ]
            output = torch.cat(blocks, dim=2)
        else:
            q = self.split(F.linear(take(x, rows), self.Wqkv.weight[:width]))
            k, v = (self.split(part) for part in F.linear(x, self.Wqkv.weight[width:]).chunk(2, dim=-1))
            output = F.scaled_dot_product_attention(q, k, v, attn_mask=bias[:, rows].transpose(0, 1).to(q.dtype))
        return self.out_proj(output.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """The feed-forward layer."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.up_proj = nn.Linear(d_model, 4 * d_model, bias=False)
        self.down_proj = nn.Linear(4 * d_model, d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the output, of the shape of x."""
        return self.down_proj(F.gelu(self.up_proj(x)))


class Block(nn.Module):
    """A decoder block."""

    def __init__(self, d_model: int, heads: int) -> None:
        super().__init__()
        self.norm_1 = nn.LayerNorm(d_model, bias=False)
        self.attn = Attention(d_model, heads)
        self.norm_2 = nn.LayerNorm(d_model, bias=False)
        self.ffn = FeedForward(d_model)

    def forward(self, x: Tensor, bias: Tensor, rows: Tensor | None) -> Tensor:
        """Return the output (batch, T or R, d_model).

        Args: see `Attention.forward`.
        """
        attended = self.attn(self.norm_1(x), bias, rows)
        x = (x if rows is None else take(x, rows)) + attended
        return x + self.ffn(self.norm_2(x))


class Body(nn.Module):
    """Embedding, blocks and last norm, named as in stock code."""

    def __init__(self, shape: MptConfig) -> None:
        super().__init__()
        self.wte = nn.Embedding(shape.vocab_size, shape.d_model)
        self.blocks = nn.ModuleList(Block(shape.d_model, shape.n_heads) for _ in range(shape.n_layers))
        self.norm_f = nn.LayerNorm(shape.d_model, bias=False)


class Net(nn.Module):
    """An MPT decoder with tied embeddings, initialised from torch's global generator."""

    def __init__(self, shape: MptConfig) -> None:
        super().__init__()
        self.shape = shape
        self.transformer = Body(shape)
        for parameter in self.parameters():
            if parameter.dim() == 2:
                nn.init.normal_(parameter, std=0.05)

    def forward(self, ids: Tensor, bias: Tensor, rows: Tensor | None = None) -> Tensor:
        """Return hidden states after the last norm, (batch, T or R, d_model).

        Args:
            ids: token ids (batch, T).
            bias: the result of `alibi_bias` (heads, T, T), or of `plain_bias`.
            rows: positions (batch, R), or None for all.
        """
        body = self.transformer
        x = body.wte(ids)
        for block in body.blocks[:-1]:
            x = block(x, bias, None)
        return body.norm_f(body.blocks[-1](x, bias, rows))

    def logits(self, hidden: Tensor, tokens: Tensor | None = None) -> Tensor:
        """Return the logits of `tokens` (ids, default all) from hidden states."""
        table = self.transformer.wte.weight
        return hidden @ (table if tokens is None else table[tokens]).T


def take(x: Tensor, rows: Tensor) -> Tensor:
    """Return positions `rows` (batch, R) of x (batch, T, width), as (batch, R, width)."""
    return x.gather(1, rows[..., None].expand(-1, -1, x.shape[-1]))


def to_stock(net: Net) -> MptForCausalLM:
    """Return the model as a stock `MptForCausalLM`, in the network's dtype."""
    model = MptForCausalLM(net.shape)
    missing, unexpected = model.load_state_dict(net.state_dict(), strict=False)
    assert missing == ["lm_head.weight"] and not unexpected
    model.tie_weights()
    return model.eval()


def export(net: Net, folder: Path) -> None:
    """Write config.json and model.safetensors (float16) to `folder`, which is created if needed."""
    folder.mkdir(parents=True, exist_ok=True)
    to_stock(net).half().save_pretrained(folder)
