"""Exact ALiBi by other means than this project's kernels: what a speed must be compared to."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.bias import causal_lower_right

from kernels.bench.problem import Problem

BIAS_BYTES = 2 << 30  # the largest bias tensor that is built
BLOCK = 128  # FlexAttention's own


class LeftOut(Exception):
    """Why a method is not measured."""


@dataclass
class Prepared:
    """A way to compute the attention. `call(*inputs)` gives the output, perhaps wider than the head dimension;
    `tables` builds again what was prepared for the weights, to be timed apart; `extra` counts bytes that are moved
    beside the inputs and the output."""

    inputs: list[torch.Tensor]
    call: Callable[..., torch.Tensor]
    tables: Callable[[], object] | None = None
    extra: int = 0


def augmented(problem: Problem, backend: str | None = None) -> Prepared:
    """ALiBi as further head dimensions (FlashBias, arXiv 2505.12044; HyPE, arXiv 2310.19676): 1 in q and the bias
    slope * (j - tokens / 2) / scale in k add it up to a constant of the row, without a bias tensor, and torch's causal
    path skips half of the pairs. In a low precision the bias takes three dimensions, each the rest of the one before.
    They come last, so that the products of q and k are summed before the large numbers. Padded to a multiple of 8."""
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
    """Dense attention with the (heads, queries, tokens) bias built beforehand."""
    size = problem.heads.heads * problem.queries * problem.tokens * problem.q.element_size()
    if size > BIAS_BYTES:
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
    """FlexAttention, compiled, with the bias as its score function. Its block mask lists for each row block the blocks
    before it as whole ones; few rows are compared with all blocks."""
    from torch.nn.attention.flex_attention import BlockMask

    from kernels.flex import compiled  # its import takes seconds

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

    def score(found, b, h, i, j):
        return found + slope[h] * (j - i - offset)

    options = {"score_mod": score, "block_mask": blocks}
    if backend is not None:
        options["kernel_options"] = {"BACKEND": backend}
    return Prepared([problem.q, problem.k, problem.v], lambda q, k, v: compiled()(q, k, v, **options))


def flash_attn(problem: Problem) -> Prepared:
    """The package flash-attn, whose kernel takes the slopes."""
    try:
        from flash_attn import flash_attn_func
    except ImportError as e:
        raise LeftOut("the package flash-attn is not installed") from e
    slopes = problem.heads.slopes.float().to(problem.device)

    def call(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        swapped = (x.transpose(1, 2) for x in (q, k, v))
        return flash_attn_func(*swapped, causal=True, alibi_slopes=slopes).transpose(1, 2)

    return Prepared([problem.q, problem.k, problem.v], call)
