"""Kernel `flex`: torch's FlexAttention on the blocks that the weights reach.

The block mask is built from the first and last column that each block of rows reaches: no n x n
mask is ever made. On the CPU FlexAttention computes the output only, without log-sum-exp and
gradients.
"""

import functools
import math
import os
import shutil

import torch
from torch._dynamo.exc import FailOnRecompileLimitHit
from torch.nn import functional as F
from torch.nn.attention.flex_attention import AuxRequest, BlockMask, flex_attention

from kernels.impl.tables import bias_by_distance, distances_of, law_of, near_of
from kernels.methods.laws import Law
from kernels.methods.weights import Weights

BLOCK = 128  # rows and columns of a block: the default of FlexAttention
MAX_KINDS = 64  # of calls (weights, dtypes, shapes) that one process may compile; torch's default of 8 is too few


def attend_flex(q, k, v, weights: Weights, *, scale: float, causal: bool, offset: int, gap: int, need_lse: bool):
    """Computes attention for sequences of one geometry, without padding of the keys.

    Args:
        q, k, v, weights, scale, causal, offset, gap: as in `kernels.impl.reference.attend_exact`.
        need_lse: whether to compute the log-sum-exp.

    Returns:
        out like q, and the log-sum-exp (B, H, Tq) float32, None unless `need_lse`. Rows before
        token 0 give 0 and -inf.

    Raises:
        ValueError: for a dtype or device that FlexAttention does not support, for a log-sum-exp or
            gradients on the CPU, for weights without a law, and for more than MAX_KINDS kinds of
            calls.
    """
    if reason := unsupported_reason(q.device, q.dtype):
        raise ValueError(reason)
    differentiated = torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v))
    if q.device.type == "cpu" and (need_lse or differentiated):
        raise ValueError(
            "kernel='flex' gives neither a log-sum-exp nor gradients on the CPU, because torch does not: use "
            "kernel='sdpa'."
        )
    out = torch.zeros_like(q, memory_format=torch.contiguous_format)
    lse = torch.full(q.shape[:3], -math.inf, device=q.device) if need_lse else None
    skip = min(max(0, -offset), q.shape[2])  # rows before the first token
    if skip < q.shape[2] and k.shape[2]:
        queries, keys = q.shape[2] - skip, k.shape[2]
        q, k, v = (whole_blocks(x) for x in (q[:, :, skip:], k, v))
        row = offset + skip + torch.arange(q.shape[2], device=q.device)
        score_mod = score_of(weights, row, keys, gap)
        blocks = block_mask(weights, row, keys, causal, gap)
        options = {"score_mod": score_mod, "block_mask": blocks, "scale": scale, "enable_gqa": q.shape[1] != k.shape[1]}
        try:
            # retain_graph runs the backward pass again, and a donated buffer serves one pass only
            with (
                torch._dynamo.config.patch(recompile_limit=MAX_KINDS),
                torch._functorch.config.patch(donated_buffer=False),
            ):
                if lse is not None:
                    whole, extra = compiled()(q, k, v, return_aux=AuxRequest(lse=True), **options)
                    lse[:, :, skip:] = extra.lse[:, :, :queries]
                else:
                    whole = compiled()(q, k, v, **options)
        except FailOnRecompileLimitHit as error:
            raise ValueError(
                f"kernel='flex' has been compiled for {MAX_KINDS} kinds of calls in this process (a kind: weights, "
                f"dtype, {BLOCK} rows and columns more): use kernel='sdpa' or 'triton', or another process."
            ) from error
        out[:, :, skip:] = whole[:, :, :queries]
    return out, lse


def unsupported_reason(device: torch.device, dtype: torch.dtype) -> str | None:
    """Returns why this kernel does not support the device or dtype, in a sentence that says what to
    do; None if it does."""
    if dtype not in (torch.float16, torch.bfloat16, torch.float32):
        return f"kernel='flex' takes float16, bfloat16 and float32, not {dtype}: use kernel='exact'."
    compiler = os.environ.get("CXX", "g++")
    if device.type == "cpu" and shutil.which(next(iter(compiler.split()), "")) is None:
        return f"kernel='flex' is compiled with {compiler} on the CPU, which is not installed: use kernel='sdpa'."
    return None


@functools.cache
def compiled():
    """FlexAttention compiled as one graph: a graph break would make it compute all n x n scores."""
    return torch.compile(flex_attention, fullgraph=True, dynamic=False)


def whole_blocks(x: torch.Tensor) -> torch.Tensor:
    """x (B, H, T, D) padded with zeros to a whole number of blocks. Every shape is compiled by
    itself, because with symbolic shapes torch 2.13 generates C++ that does not compile."""
    return F.pad(x, (0, 0, 0, -x.shape[2] % BLOCK))


def block_mask(weights: Weights, row: torch.Tensor, keys: int, causal: bool, gap: int = 0) -> BlockMask:
    """The blocks of keys that consecutive rows visit: the blocks of the sinks, and one interval for
    each block of rows.

    Args:
        weights: of all heads.
        row: (R,), tokens of the rows, a whole number of blocks; rows after the last key count as
            its row.
        keys: number of slots of keys.
        causal: whether a row sees no key after it.
        gap: number of tokens evicted after the sinks.
    """
    heads, sinks = torch.arange(weights.heads, device=row.device), min(weights.sinks, keys)
    tokens = row.clamp_max(keys + gap - 1)[None].expand(len(heads), -1)
    first, last = (x - gap for x in weights.reach(heads, tokens))  # slots from here on
    last = (tokens - gap if causal else last).clamp(max=keys - 1)
    of_sinks = -(-sinks // BLOCK)
    low, high = first[:, ::BLOCK] // BLOCK, last[:, BLOCK - 1 :: BLOCK] // BLOCK
    before = low.clamp_max(of_sinks)  # blocks of sinks outside the interval
    if not causal:
        high = high.clamp_min(of_sinks - 1)
    columns = torch.arange(-(-keys // BLOCK), device=row.device)
    index = torch.where(columns < before[..., None], columns, (low - before)[..., None] + columns)
    newest = tokens[0] - gap

    def visible(b, h, i, j):
        in_reach = (j >= first[h, i]) & (j <= last[h, i])
        if not sinks:
            return in_reach
        return in_reach | ((j < sinks) & (j <= newest[i])) if causal else in_reach | (j < sinks)

    index = index.clamp_max(len(columns) - 1)
    return BlockMask.from_kv_blocks(
        (before + (high - low + 1).clamp_min(0))[None].int(),
        index[None].int(),
        BLOCK_SIZE=BLOCK,
        mask_mod=visible,
        seq_lengths=(len(row), len(columns) * BLOCK),
    )


def score_of(weights: Weights, row: torch.Tensor, keys: int, gap: int):
    """Returns FlexAttention's score function, which adds the log of a pair's weight to its score.

    Args:
        weights: of all heads.
        row: (R,), tokens of the rows.
        keys: number of slots of keys.
        gap: number of tokens evicted after the sinks.

    Raises:
        ValueError: for weights without a law.
    """
    slope, sinks = weights.slopes.float().to(row.device), weights.sinks
    near = near_of(weights)
    beyond = score_by_law(weights, row, -(-(-(-keys // BLOCK) * BLOCK + gap) // BLOCK) * BLOCK)
    if not sinks and not gap and not near:
        return beyond
    evicted = torch.tensor(gap, device=row.device)  # as a number it would be compiled in

    def with_exact_pairs(score, b, h, i, slot):
        j = torch.where(slot < sinks, slot, slot + evicted)
        distance = (row[i] - j).abs()
        exact = (slot < sinks) | (distance < near) if near else slot < sinks
        return torch.where(exact, score - slope[h] * distance, beyond(score, b, h, i, j))

    return with_exact_pairs


def score_by_law(weights: Weights, row: torch.Tensor, tokens: int):
    """As `score_of`, without sinks and gap.

    Args:
        weights: of all heads.
        row: (R,), tokens of the rows.
        tokens: number of keys, the tokens 0 .. tokens - 1.

    Raises:
        ValueError: for weights without a law.
    """
    law, device = law_of(weights), row.device
    slope = weights.slopes.float().to(device)
    if law is Law.LINEAR:
        return lambda score, b, h, i, j: score - slope[h] * (row[i] - j).abs()
    heads = torch.arange(weights.heads, device=device)
    if not law.per_mask:
        width = distances_of(weights, tokens)
        options = (weights.count, weights.kind.sampler, width, near_of(weights))
        bias = bias_by_distance(weights.slopes.to(device), *options) * math.log(2)
        bias = F.pad(bias, (0, -bias.shape[1] % BLOCK))
        farthest = bias.shape[1] - 1
        return lambda score, b, h, i, j: score + bias[h, (row[i] - j).abs().clamp_max(farthest)]
    # a block is identified by its first token
    column, masks = torch.arange(tokens, device=device), weights.mask_set()
    of_row, of_column = (masks.starts(heads, x[None].expand(len(heads), -1)).int() for x in (row, column))
    mask_weights = masks.log_weight.exp().div(weights.count).float().to(device)

    def counted(score, b, h, i, j):
        def weight(s: int) -> torch.Tensor:
            return torch.where(of_row[h, i, s] == of_column[h, j, s], mask_weights[h, s], 0.0)

        total = weight(0)
        for s in range(1, weights.count):
            total = total + weight(s)
        return score + torch.log(total)

    return counted
