"""The kernels of this project as a model calls them, and on tables built beforehand, to time the
two apart."""

from functools import partial

import torch

from kernels.attend import attend
from kernels.bench.cost import one_by_one
from kernels.bench.dense import Prepared
from kernels.bench.problem import Problem
from kernels.impl.tables import Tables
from kernels.methods.plsh import PositionalLSH
from kernels.methods.weights import Weights


def one_pass(problem: Problem, weights: Weights, kernel: str) -> Prepared:
    """All of `weights` in one pass, by `attend`. Values that live with the weights exist after the
    first call; kernel `triton` builds its tables at every call except decoding.

    Args:
        problem: the inputs.
        weights: of all heads.
        kernel: a name of `kernels.attend`.
    """
    inputs = [problem.q, problem.k, problem.v]

    def call(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return attend(q, k, v, weights, kernel=kernel)

    if kernel != "triton" or decodes(problem):
        return Prepared(inputs, call)
    build, on_tables = on_prepared_tables(problem, weights)
    tables = build()
    return Prepared(inputs, call, build, lambda q, k, v: on_tables(tables, q, k, v)[0], size_of([tables]))


def size_of(some: list) -> int:
    """Bytes of all tables."""
    return sum(x.numel() * x.element_size() for one in some for x in vars(one).values() if isinstance(x, torch.Tensor))


def decodes(problem: Problem) -> bool:
    """Whether kernel `triton` computes the call by its decoding kernel, without tables."""
    from kernels.impl.triton.decode import MAX_QUERIES  # triton exists on Linux only

    return problem.queries <= MAX_QUERIES


def on_prepared_tables(problem: Problem, weights: Weights):
    """Returns two functions: one builds the tables, the other runs kernel `triton` on them,
    (tables, q, k, v) -> (out, lse)."""
    from kernels.impl.triton.launch import capability, tile_of  # triton exists on Linux only
    from kernels.impl.triton.ops import attend_on_tables, tables_on_device

    q, scale = problem.q, problem.heads.dim**-0.5
    # forward calls do not read it on the host; backward passes do, and would wait for the device
    place = "cpu" if problem.backward else problem.device
    geometry = torch.tensor([[0], [problem.offset]], dtype=torch.int32, device=place)
    tile = tile_of(q.dtype, capability(q))
    return (
        lambda: tables_on_device(weights, problem.tokens, tile=tile, causal=True, device=problem.device),
        lambda tables, q, k, v: attend_on_tables(q, k, v, tables, geometry, scale),
    )


def passes(problem: Problem, weights: PositionalLSH, kernel: str) -> Prepared:
    """Positional LSH by its definition: one attention per mask over its blocks, merged by
    log-sum-exp in float32.

    Args:
        problem: the inputs.
        weights: their masks are computed one after the other, without sinks and near field.
        kernel: a name of `kernels.attend`. With "triton", the gradients are also the sum of S
            passes, each from the merged output and log-sum-exp.
    """
    each, inputs = one_by_one(weights), [problem.q, problem.k, problem.v]
    merge = torch.compile(merged) if problem.device.type == "cuda" else merged

    def whole(part, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Merges part(s, q, k, v), out and log-sum-exp under mask s, over all masks."""
        out, total = part(0, q, k, v)
        out = out.float()
        for s in range(1, weights.count):
            out, total = merge(out, total, *part(s, q, k, v))
        return out.to(q.dtype), total

    if kernel != "triton" or decodes(problem):

        def part(s: int, q, k, v) -> tuple[torch.Tensor, torch.Tensor]:
            return attend(q, k, v, each[s], kernel=kernel, return_lse=True)

        return Prepared(inputs, lambda q, k, v: whole(part, q, k, v)[0])
    both = [on_prepared_tables(problem, one) for one in each]

    def tables() -> list[Tables]:
        return [build() for build, _ in both]

    def on_tables(all_tables: list, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        call = partial(whole, lambda s, *qkv: both[s][1](all_tables[s], *qkv))
        return Passes.apply(call, partial(summed_gradients, all_tables, problem.heads.dim**-0.5), q, k, v)[0]

    built = tables()
    return Prepared(inputs, lambda *qkv: on_tables(tables(), *qkv), tables, partial(on_tables, built), size_of(built))


class Passes(torch.autograd.Function):
    """Differentiates call(q, k, v) -> (out, log-sum-exp) by gradients(q, k, v, out, log-sum-exp,
    grad_out)."""

    @staticmethod
    def forward(ctx, call, gradients, q, k, v):
        out, total = call(q, k, v)
        ctx.save_for_backward(q, k, v, out, total)
        ctx.mark_non_differentiable(total)
        ctx.gradients = gradients
        return out, total

    @staticmethod
    def backward(ctx, grad_out, _):
        return None, None, *ctx.gradients(*ctx.saved_tensors, grad_out)


def summed_gradients(
    tables: list[Tables], scale: float, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, out: torch.Tensor,
    total: torch.Tensor, grad_out: torch.Tensor,
) -> list[torch.Tensor]:  # fmt: skip
    """Gradients of q, k and v, summed over one pass for the tables of each mask: with the merged
    log-sum-exp, the attention of a pair under one mask is its part of the whole, so that the
    gradients add up.

    Args:
        tables: of each mask by itself, for all tokens.
        scale: factor of the scores.
        q, k, v: (1, H, T, D), one sequence without padding.
        out: like q, merged over the masks.
        total: (1, H, T) float32, the merged log-sum-exp.
        grad_out: gradient of out.
    """
    from kernels.impl.triton.backward import backward  # triton exists on Linux only

    grad_lse = torch.zeros_like(total)
    sums = [torch.zeros_like(x, dtype=torch.float32) for x in (q, k, v)]
    for of_mask in tables:
        parts = backward(q, k, v, out, total, grad_out, grad_lse, of_mask, [0], [0], scale)
        for whole, part in zip(sums, parts, strict=True):
            whole += part
    return [whole.to(q.dtype) for whole in sums]


def merged(
    out: torch.Tensor, total: torch.Tensor, part: torch.Tensor, lse: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Merges the attentions over two sets of keys.

    Args:
        out: (B, H, T, D) float32, over the one set.
        total: (B, H, T), the log-sum-exp of `out`.
        part: like out, in any dtype, over the other set.
        lse: (B, H, T), the log-sum-exp of `part`.

    Returns:
        out and log-sum-exp over both sets, in float32.
    """
    merged_lse = torch.logaddexp(total, lse)
    return out * torch.exp(total - merged_lse)[..., None] + part * torch.exp(lse - merged_lse)[..., None], merged_lse
