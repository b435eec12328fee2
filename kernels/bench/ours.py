"""This project's kernels as a model calls them, and on tables built beforehand, so that their time
is taken apart."""

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
    """All of `weights` in one pass, by `attend`: what lives with the weights is there after the
    first call, and kernel `triton` builds its tables at each that is more than decoding."""
    inputs = [problem.q, problem.k, problem.v]

    def call(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return attend(q, k, v, weights, kernel=kernel)

    if kernel != "triton" or decodes(problem):
        return Prepared(inputs, call)
    build, on_tables = fused(problem, weights)
    tables = build()
    return Prepared(inputs, call, build, lambda q, k, v: on_tables(tables, q, k, v)[0], size_of([tables]))


def size_of(some: list) -> int:
    """Bytes of all tables."""
    return sum(x.numel() * x.element_size() for one in some for x in vars(one).values() if isinstance(x, torch.Tensor))


def decodes(problem: Problem) -> bool:
    """Whether kernel `triton` takes the call as decoding, without tables."""
    from kernels.impl.triton.decode import ROWS  # triton exists on Linux only

    return problem.queries <= ROWS


def fused(problem: Problem, weights: Weights):
    """(build, call): tables for these rows, and kernel `triton` on them: call(tables, q, k, v) ->
    out, lse."""
    from kernels.impl.triton.launch import capability, tile_of  # triton exists on Linux only
    from kernels.impl.triton.ops import fused as attend_fused
    from kernels.impl.triton.ops import tables_on_device

    q, scale = problem.q, problem.heads.dim**-0.5
    # on the device no call looks at them; backward passes do, and would wait for it
    where = "cpu" if problem.backward else problem.device
    places = torch.tensor([[0], [problem.offset]], dtype=torch.int32, device=where)
    tile = tile_of(q.dtype, capability(q))
    return (
        lambda: tables_on_device(weights, problem.tokens, tile=tile, causal=True, device=problem.device),
        lambda tables, q, k, v: attend_fused(q, k, v, tables, places, scale),
    )


def passes(problem: Problem, weights: PositionalLSH, kernel: str) -> Prepared:
    """Positional LSH as stated: every mask as attention of its own over the slices of its blocks,
    merged by log-sum-exp in float32. `triton`: the gradients too are the sum of S passes, each from
    the merged output and log-sum-exp."""
    each, inputs = one_by_one(weights), [problem.q, problem.k, problem.v]
    merge = torch.compile(merged) if problem.device.type == "cuda" else merged

    def whole(part, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """part(s, q, k, v): out and log-sum-exp under mask s."""
        out, total = part(0, q, k, v)
        out = out.float()
        for s in range(1, weights.count):
            out, total = merge(out, total, *part(s, q, k, v))
        return out.to(q.dtype), total

    if kernel != "triton" or decodes(problem):

        def part(s: int, q, k, v) -> tuple[torch.Tensor, torch.Tensor]:
            return attend(q, k, v, each[s], kernel=kernel, return_lse=True)

        return Prepared(inputs, lambda q, k, v: whole(part, q, k, v)[0])
    both = [fused(problem, one) for one in each]

    def tables() -> list[Tables]:
        return [build() for build, _ in both]

    def on_tables(held: list, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        call = partial(whole, lambda s, *some: both[s][1](held[s], *some))
        return Passes.apply(call, partial(summed_gradients, held, problem.heads.dim**-0.5), q, k, v)[0]

    held = tables()
    return Prepared(inputs, lambda *some: on_tables(tables(), *some), tables, partial(on_tables, held), size_of(held))


class Passes(torch.autograd.Function):
    """call(q, k, v) -> out, log-sum-exp, whose gradients are gradients(q, k, v, out, log-sum-exp,
    of out)."""

    @staticmethod
    def forward(ctx, call, gradients, q, k, v):
        out, total = call(q, k, v)
        ctx.save_for_backward(q, k, v, out, total)
        ctx.mark_non_differentiable(total)
        ctx.gradients = gradients
        return out, total

    @staticmethod
    def backward(ctx, toward, _):
        return None, None, *ctx.gradients(*ctx.saved_tensors, toward)


def summed_gradients(
    tables: list[Tables], scale: float, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, out: torch.Tensor,
    total: torch.Tensor, toward: torch.Tensor,
) -> list[torch.Tensor]:  # fmt: skip
    """Gradients of q, k and v, a pass for each of the masks' `tables`: a pair's attention under a
    mask is its share of the merged log-sum-exp, so that the passes' gradients add up."""
    from kernels.impl.triton.backward import backward  # triton exists on Linux only

    still = torch.zeros_like(total)
    sums = [torch.zeros_like(x, dtype=torch.float32) for x in (q, k, v)]
    for own in tables:
        for whole, one in zip(sums, backward(q, k, v, out, total, toward, still, own, [0], [0], scale), strict=True):
            whole += one
    return [whole.to(q.dtype) for whole in sums]


def merged(
    out: torch.Tensor, total: torch.Tensor, part: torch.Tensor, lse: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Two attentions over different keys as one: out (B, H, T, D) float32 of log-sum-exp total (B,
    H, T), and part."""
    longer = torch.logaddexp(total, lse)
    return out * torch.exp(total - longer)[..., None] + part * torch.exp(lse - longer)[..., None], longer
