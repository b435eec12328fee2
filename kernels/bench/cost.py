"""Pairs, operations and bytes of a call, counted and not measured."""

from dataclasses import dataclass

import torch

from kernels.bench.problem import Problem
from kernels.methods.plsh import PositionalLSH
from kernels.methods.weights import Weights


@dataclass(frozen=True)
class Cost:
    """`pairs`: visited (query, key) of all heads, each row's own key included. `dense`: the same of
    exact ALiBi. `floor`: the fewest bytes that any way to compute this under these weights
    moves."""

    pairs: int
    dense: int
    floor: int


def cost(problem: Problem, weights: Weights) -> Cost:
    """What a call on `problem` under `weights` costs, from the reach of every row."""
    rows = torch.arange(problem.offset, problem.tokens, device=problem.device)
    pairs = reached = 0
    for head in range(weights.heads):  # one head at a time: S masks in float64 take S times the memory of a row
        first, _ = weights.reach(torch.tensor([head], device=problem.device), rows[None])
        pairs += int((rows - first[0] + 1).sum())
        reached += problem.tokens - int(first[0, 0])
    return Cost(pairs, weights.heads * int((rows + 1).sum()), floor_bytes(problem, reached))


def floor_bytes(problem: Problem, reached: int) -> int:
    """Forward: q, the `reached` keys and values of all heads once, and the output. Backward: q, k,
    v, the output and its gradient, and the gradients of q, k and v."""
    q, size = problem.q.numel(), problem.q.element_size()
    if problem.backward:
        return size * 8 * q
    return size * (2 * q + 2 * reached * problem.heads.dim)


def operations(problem: Problem, pairs: int) -> int:
    """Floating-point operations of the matrix products: two in the forward pass, five in the
    backward pass."""
    return (10 if problem.backward else 4) * problem.heads.dim * pairs


def one_by_one(weights: Weights) -> list[Weights]:
    """Each mask of Positional LSH by itself, without sinks. Raises ValueError for weights without
    masks."""
    masks, kind = weights.mask_set(), weights.kind
    each = [masks.some(slice(s, s + 1)) for s in range(weights.count)]
    return [PositionalLSH(weights.slopes, one, kind.sampler, kind.weights) for one in each]
