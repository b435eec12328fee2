"""A kernel beside the oracle in float64: the errors of one case of the shared matrix."""

import math
from collections.abc import Iterator, Sequence

import torch

from kernels.attend import attend
from kernels.check.cases import Case
from kernels.impl.accuracy import poisoned, relative, turns

FEW = 16  # causal rows that are decoded: their gradients come from other kernels, which other cases reach


def alone(
    case: Case, inputs: Sequence[torch.Tensor], toward: torch.Tensor, slant: torch.Tensor
) -> Iterator[tuple[int, tuple[slice, slice, slice], list[torch.Tensor] | None]]:
    """Each sequence by the oracle in float64, without its padding: its place in the batch, the
    slots of q, k and v that are no padding, and, in a batch of one, out, the log-sum-exp, and the
    gradients of q, k and v where those of the first two are `toward` (B, H, Tq, D) and `slant` (B,
    H, Tq); None if all its queries are padding."""
    weights, queries = case.weights(), case.shape[1]
    for i, slots in enumerate(case.real()):
        rows, keys = slots[0].start, slots[1].start
        if rows == queries:
            yield i, slots, None
            continue
        q, k, v = (
            x[i : i + 1, :, part].detach().double().requires_grad_() for x, part in zip(inputs, slots, strict=True)
        )
        place = {"causal": case.causal, "q_offset": case.begin + rows - keys}
        with torch.enable_grad():
            true = attend(q, k, v, weights, kernel="exact", return_lse=True, **place)
            given = [x[i : i + 1, :, rows:].double() for x in (toward, slant)]
            yield i, slots, [*(x.detach() for x in true), *torch.autograd.grad(true, (q, k, v), given)]


def case_errors(case: Case, kernel: str, device: str) -> dict[str, float]:
    """Errors of out, of the log-sum-exp (absolute) and, unless its rows are decoded, of the
    gradients of q, k and v through both; `padding`: the largest number that was written where there
    is no token. Each sequence is held to the oracle without its padding."""
    weights, queries, generator = case.weights(), case.shape[1], torch.Generator().manual_seed(3)
    (q, k, v), options = case.inputs(device), case.options()
    toward = case.tensor(case.heads[0], queries, generator, device)
    slant = torch.randn(toward.shape[:3], generator=generator).to(device)
    for _ in range(turns(device)):
        with torch.no_grad(), poisoned():
            out, lse = attend(q, k, v, weights, kernel=kernel, return_lse=True, **options)
    gradients: tuple[torch.Tensor, ...] = ()
    for _ in range(0 if case.causal and queries <= FEW else turns(device)):
        leaves = [x.detach().requires_grad_() for x in (q, k, v)]
        with torch.enable_grad(), poisoned():
            results = attend(leaves[0], leaves[1], leaves[2], weights, kernel=kernel, return_lse=True, **options)
            given = toward, slant.to(lse.dtype).masked_fill(lse == -math.inf, 0.0)
            gradients = torch.autograd.grad(results, leaves, given)
    found: dict[str, float] = {"padding": 0.0}

    def note(name: str, error: float) -> None:
        found[name] = max(found.get(name, 0.0), error)

    for i, slots, true in alone(case, (q, k, v), toward, slant):
        for x, part in zip((out, *gradients), (slots[0], *slots), strict=False):
            wrong = relative(x[i, :, : part.start], torch.zeros(1, device=device), 1.0) if part.start else 0.0
            note("padding", wrong)
        rows = slots[0].start
        note("padding", 0.0 if bool((lse[i, :, :rows] == -math.inf).all()) else torch.inf)
        if true is None:
            continue
        note("out", relative(out[i : i + 1, :, rows:], true[0]))
        note("lse", float((lse[i : i + 1, :, rows:].double() - true[1]).abs().max().nan_to_num(torch.inf)))
        for name, got, part, right in zip(("dq", "dk", "dv"), gradients, slots, true[2:], strict=False):
            note(name, relative(got[i : i + 1, :, part], right, 1.0))  # of a row that sees one key dq is 0
    return found
