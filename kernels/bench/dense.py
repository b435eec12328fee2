"""Exact ALiBi and windows by other implementations: the speeds to compare with."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.bias import causal_lower_right

from kernels.bench.problem import Problem
from kernels.methods.weights import Window

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask  # its import takes seconds

MAX_BIAS_BYTES = 2 << 30  # of the bias tensor
BLOCK = 128  # the default of FlexAttention


class LeftOut(Exception):
    """The reason why a method is not measured."""


@dataclass
class Prepared:
    """One implementation, ready to run. `call(*inputs)` is the whole call as a model makes it, and
    returns the output, perhaps wider than the head dimension. If the call builds tables, `tables`
    builds them and `kernel(*inputs)` is the call on tables built beforehand. `extra`: bytes moved
    in addition to the inputs and the output."""

    inputs: list[torch.Tensor]
    call: Callable[..., torch.Tensor]
    tables: Callable[[], object] | None = None
    kernel: Callable[..., torch.Tensor] | None = None
    extra: int = 0


def augmented(problem: Problem, backend: str | None = None) -> Prepared:
    """ALiBi encoded in extra head dimensions (FlashBias, arXiv 2505.12044; HyPE, arXiv 2310.19676):
    q gets 1, k gets slope * (j - tokens / 2) / scale, so that q.k includes the bias up to a
    constant of the row. This needs no bias tensor, and torch's causal path skips half of the pairs.
    In low precision the bias takes three dimensions, each the remainder of the one before. They
    come last, so that the products of q and k are summed before the large numbers. Padded to a
    multiple of 8."""
    heads, tokens = problem.heads, problem.tokens
    scale, dtype, device = heads.dim**-0.5, problem.dtype, problem.device
    parts = 1 if dtype in (torch.float32, torch.float64) else 3
    more = parts + -(heads.dim + parts) % 8
    position = torch.arange(tokens, device=device, dtype=torch.float64) - tokens // 2
    rest = heads.slopes.to(device)[:, None] * position / scale
    of_q, of_k, of_v = (x.new_zeros(*x.shape[:3], more) for x in (problem.q, problem.k, problem.v))
    of_q[..., :parts] = 1.0
    for part in range(parts):
        of_k[0, ..., part] = rest.to(dtype)
        rest = rest - of_k[0, ..., part].double()
    whole = ((problem.q, of_q), (problem.k, of_k), (problem.v, of_v))
    inputs = [torch.cat(pair, -1) for pair in whole]
    several = 1 < problem.queries < tokens
    mask = causal_lower_right(problem.queries, tokens) if several else None
    options = {"attn_mask": mask, "is_causal": problem.queries == tokens, "scale": scale}

    def call(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        with nullcontext() if backend is None else sdpa_kernel(getattr(SDPBackend, backend)):
            return F.scaled_dot_product_attention(q, k, v, **options)

    return Prepared(inputs, call)


def with_bias(problem: Problem) -> Prepared:
    """Dense attention with the (heads, queries, tokens) bias built beforehand. Raises LeftOut for a
    bias above MAX_BIAS_BYTES."""
    size = problem.heads.heads * problem.queries * problem.tokens * problem.q.element_size()
    if size > MAX_BIAS_BYTES:
        raise LeftOut(f"its bias of {size / 2**30:.0f} GiB is above the limit of 2")
    rows, columns = (torch.arange(n, problem.tokens, device=problem.device) for n in (problem.offset, 0))
    bias = problem.q.new_empty(1, problem.heads.heads, problem.queries, problem.tokens)
    for at in range(0, problem.queries, 256):  # a few rows at a time: float64 log-weights are larger than the bias
        row = rows[at : at + 256]
        log_w = problem.exact.log_dense(row, columns).masked_fill_(columns > row[:, None], float("-inf"))
        bias[0, :, at : at + 256] = log_w
    return Prepared(
        [problem.q, problem.k, problem.v],
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=bias),
        extra=size,
    )


def flex(problem: Problem, backend: str | None = None) -> Prepared:
    """FlexAttention, compiled, with the bias as its score function. Its block mask lists for each
    row block the blocks before it as whole ones; few rows are compared with all blocks."""
    from torch.nn.attention.flex_attention import BlockMask

    from kernels.impl.flex import compiled  # its import takes seconds

    torch._dynamo.reset()  # or torch would refuse to compile for the ninth shape
    torch._functorch.config.donated_buffer = False  # the gradient is taken again and again from one forward pass
    slope, offset, device = problem.heads.slopes.float().to(problem.device), problem.offset, problem.device
    last = (
        offset + torch.arange(0, problem.queries, BLOCK, device=device)
    ) // BLOCK  # block of a row block's first row
    width = -(-problem.tokens // BLOCK)
    # a few rows at the end may lie in two blocks
    partial = torch.ones_like(last) if problem.queries == problem.tokens else width - last
    index = (last[:, None] + torch.arange(width, device=device)).clamp_max(width - 1)
    blocks = BlockMask.from_kv_blocks(
        partial[None, None].int(),
        index[None, None].int(),
        last[None, None].int(),
        torch.arange(width, device=device).expand(1, 1, len(last), -1).int().contiguous(),
        BLOCK_SIZE=BLOCK,
        mask_mod=lambda b, h, i, j: i + offset >= j,
        seq_lengths=(problem.queries, problem.tokens),
    )

    def score(qk, b, h, i, j):
        return qk + slope[h] * (j - i - offset)

    options = {"score_mod": score, "block_mask": blocks}
    if backend is not None:
        options["kernel_options"] = {"BACKEND": backend}
    return Prepared([problem.q, problem.k, problem.v], lambda q, k, v: compiled()(q, k, v, **options))


def flex_window(problem: Problem, weights: Window) -> Prepared:
    """FlexAttention, compiled, on the blocks that a window reaches, those that it holds whole
    without a mask."""
    from kernels.impl.flex import compiled

    torch._dynamo.reset()
    torch._functorch.config.donated_buffer = False
    slope, offset = problem.heads.slopes.float().to(problem.device), problem.offset

    def score(qk, b, h, i, j):
        return qk + slope[h] * (j - i - offset)

    options = {"score_mod": score, "block_mask": window_blocks(problem, weights)}
    return Prepared([problem.q, problem.k, problem.v], lambda q, k, v: compiled()(q, k, v, **options))


def window_blocks(problem: Problem, weights: Window) -> BlockMask:
    """The blocks of FlexAttention that a window reaches."""
    from torch.nn.attention.flex_attention import BlockMask

    device, offset, tokens = problem.device, problem.offset, problem.tokens
    reach = weights.tokens.to(device).clamp_max(tokens)
    first = offset + torch.arange(0, problem.queries, BLOCK, device=device)  # of each block the first row and the last
    last = (first + BLOCK - 1).clamp_max(tokens - 1)
    low, high = ((first - reach[:, None]).clamp_min(0) // BLOCK, (last // BLOCK).expand(len(reach), -1))
    # a block is held whole if the last row reaches its first key and the first row is not before
    # its last one
    whole = -(-(last - reach[:, None]).clamp_min(0) // BLOCK)
    end = torch.maximum((first + 1) // BLOCK, whole)  # the first block after those
    column = torch.arange(-(-tokens // BLOCK), device=device)
    before, after = whole.minimum(high + 1) - low, (high + 1 - end).clamp_min(0)
    part = torch.where(column < before[..., None], low[..., None] + column, (end - before)[..., None] + column)

    def limited(index: torch.Tensor, largest: int) -> torch.Tensor:
        return index[None].clamp_max(largest).int()

    return BlockMask.from_kv_blocks(
        limited(before + after, len(column)),
        limited(part, len(column) - 1),
        limited(end - whole, len(column)),
        limited(whole[..., None] + column, len(column) - 1),
        BLOCK_SIZE=BLOCK,
        mask_mod=lambda b, h, i, j: (i + offset >= j) & (i + offset - j <= reach[h]),
        seq_lengths=(problem.queries, tokens),
    )


def flash_attn(problem: Problem, weights: Window | None = None) -> Prepared:
    """The package flash-attn, whose kernel takes the slopes. It takes a window as well, but one for
    all heads of a launch, so that heads of different windows are launched apart. Raises LeftOut if
    the package is not installed."""
    try:
        from flash_attn import flash_attn_func
    except ImportError as e:
        raise LeftOut("the package flash-attn is not installed") from e
    slopes = problem.heads.slopes.float().to(problem.device)

    reach = [-1] * len(slopes) if weights is None else weights.tokens.clamp_max(problem.tokens).tolist()
    launches = [(tokens, list(heads)) for tokens, heads in groupby(range(len(slopes)), reach.__getitem__)]

    def call(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        out = torch.empty_like(q)
        for tokens, heads in launches:
            some = slice(heads[0], heads[-1] + 1)
            swapped = (x[:, some].transpose(1, 2) for x in (q, k, v))
            options = {"causal": True, "alibi_slopes": slopes[some], "window_size": (tokens, -1 if tokens < 0 else 0)}
            part = flash_attn_func(*swapped, **options).transpose(1, 2)
            if len(launches) == 1:
                return part
            out[:, some] = part
        return out

    return Prepared([problem.q, problem.k, problem.v], call)
