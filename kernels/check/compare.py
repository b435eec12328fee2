"""A kernel beside the oracle in float64: the errors of one case of the shared matrix."""

import math
from collections.abc import Iterator, Sequence

import torch

from kernels.attend import attend
from kernels.check.cases import Case
from kernels.impl.accuracy import poisoned, relative, turns

MAX_DECODED_QUERIES = 16  # of a causal call: its gradients would come from kernels that other cases cover


def oracle_per_sequence(
    case: Case, inputs: Sequence[torch.Tensor], grad_out: torch.Tensor, grad_lse: torch.Tensor
) -> Iterator[tuple[int, tuple[slice, slice, slice], list[torch.Tensor] | None]]:
    """Yields, for each sequence, the float64 oracle's result computed without padding.

    Args:
        case: of the call.
        inputs: q, k and v with padding.
        grad_out: gradient of out, (B, H, Tq, D).
        grad_lse: gradient of the log-sum-exp, (B, H, Tq).

    Yields:
        batch index, slots of q, k and v that hold real tokens, and [out, lse, dq, dk, dv] in a
        batch of one; None in place of the list if every query is padding.
    """
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
            grads = [x[i : i + 1, :, rows:].double() for x in (grad_out, grad_lse)]
            yield i, slots, [*(x.detach() for x in true), *torch.autograd.grad(true, (q, k, v), grads)]


def case_errors(case: Case, kernel: str, device: str) -> dict[str, float]:
    """Compares a kernel with the oracle on one case, each sequence without its padding.

    Args:
        case: the call.
        kernel: a name of `kernels.attend`.
        device: of the kernel.

    Returns:
        the largest errors by name: of out, of the log-sum-exp ("lse", absolute) and, unless the
        call is decoding, of the gradients of q, k and v through both; "padding": the largest number
        written to a row of padding.
    """
    weights, queries, generator = case.weights(), case.shape[1], torch.Generator().manual_seed(3)
    (q, k, v), options = case.inputs(device), case.options()
    grad_out = case.tensor(case.heads[0], queries, generator, device)
    grad_lse = torch.randn(grad_out.shape[:3], generator=generator).to(device)
    for _ in range(turns(device)):
        with torch.no_grad(), poisoned():
            out, lse = attend(q, k, v, weights, kernel=kernel, return_lse=True, **options)
    gradients: tuple[torch.Tensor, ...] = ()
    for _ in range(0 if case.causal and queries <= MAX_DECODED_QUERIES else turns(device)):
        leaves = [x.detach().requires_grad_() for x in (q, k, v)]
        with torch.enable_grad(), poisoned():
            results = attend(leaves[0], leaves[1], leaves[2], weights, kernel=kernel, return_lse=True, **options)
            grads = grad_out, grad_lse.to(lse.dtype).masked_fill(lse == -math.inf, 0.0)
            gradients = torch.autograd.grad(results, leaves, grads)
    largest: dict[str, float] = {"padding": 0.0}

    def note(name: str, error: float) -> None:
        largest[name] = max(largest.get(name, 0.0), error)

    for i, slots, true in oracle_per_sequence(case, (q, k, v), grad_out, grad_lse):
        for x, part in zip((out, *gradients), (slots[0], *slots), strict=False):
            written = relative(x[i, :, : part.start], torch.zeros(1, device=device), 1.0) if part.start else 0.0
            note("padding", written)
        rows = slots[0].start
        note("padding", 0.0 if bool((lse[i, :, :rows] == -math.inf).all()) else torch.inf)
        if true is None:
            continue
        note("out", relative(out[i : i + 1, :, rows:], true[0]))
        note("lse", float((lse[i : i + 1, :, rows:].double() - true[1]).abs().max().nan_to_num(torch.inf)))
        for name, got, part, right in zip(("dq", "dk", "dv"), gradients, slots, true[2:], strict=False):
            note(name, relative(got[i : i + 1, :, part], right, 1.0))  # dq is 0 for a row that sees one key
    return largest
