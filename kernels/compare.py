"""A kernel beside the oracle in float64: the errors of one case of the shared matrix."""

import contextlib
import math
import warnings
from collections.abc import Iterator

import torch

from kernels.attend import attend
from kernels.cases import Case

FEW = 16  # causal rows that are decoded: their gradients come from other kernels, which other cases reach


@contextlib.contextmanager
def poisoned() -> Iterator[None]:
    """Memory that is asked for but not written holds NaN, or the largest number of its type, on every device."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of operators that are not deterministic, which is not asked for here
        torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def relative(got: torch.Tensor, true: torch.Tensor, least: float = 0.0) -> float:
    """Largest absolute error over the largest absolute value, or over `least` if that is larger; NaN counts as
    infinite."""
    off = (got.double() - true).abs().max() / true.abs().max().clamp_min(least)
    return float(off.nan_to_num(torch.inf))


def case_errors(case: Case, kernel: str, device: str) -> dict[str, float]:
    """Errors of out, of the log-sum-exp (absolute) and, unless its rows are decoded, of the gradients of q, k and v
    through both; `padding`: the largest number that was written where there is no token. Each sequence is held to the
    oracle without its padding, which has no gradient there."""
    weights, queries, generator = case.weights(), case.shape[1], torch.Generator().manual_seed(3)
    inputs, options = case.inputs(device), case.options()
    toward = case.tensor(case.heads[0], queries, generator, device)
    slant = torch.randn(toward.shape[:3], generator=generator).to(device)
    with torch.no_grad(), poisoned():
        out, lse = attend(*inputs, weights, kernel=kernel, return_lse=True, **options)
    gradients = ()
    if not (case.causal and queries <= FEW):
        some = [x.detach().requires_grad_() for x in inputs]
        with torch.enable_grad(), poisoned():
            results = attend(*some, weights, kernel=kernel, return_lse=True, **options)
            given = toward, slant.to(lse.dtype).masked_fill(lse == -math.inf, 0.0)
            gradients = torch.autograd.grad(results, some, given)
    found: dict[str, float] = {"padding": 0.0}

    def note(name: str, error: float) -> None:
        found[name] = max(found.get(name, 0.0), error)

    for i, pad in enumerate([0] if case.pads() is None else case.pads().tolist()):
        skip = min(max(0, pad - case.begin), queries)
        real = [slice(skip, None), slice(pad, None), slice(pad, None)]
        for x, tokens in zip((out, *gradients), (real[0], *real), strict=False):
            note(
                "padding", relative(x[i, :, : tokens.start], torch.zeros(1, device=device), 1.0) if tokens.start else 0
            )
        note("padding", 0.0 if bool((lse[i, :, :skip] == -math.inf).all()) else torch.inf)
        if skip == queries:
            continue
        own = [x[i : i + 1, :, part].double().requires_grad_() for x, part in zip(inputs, real, strict=True)]
        with torch.enable_grad():
            place = {"causal": case.causal, "q_offset": case.begin + skip - pad}
            true = attend(*own, weights, kernel="exact", return_lse=True, **place)
            expected = torch.autograd.grad(true, own, [x[i : i + 1, :, skip:].double() for x in (toward, slant)])
        note("out", relative(out[i : i + 1, :, skip:], true[0].detach()))
        note("lse", float((lse[i, :, skip:].double() - true[1][0].detach()).abs().max().nan_to_num(torch.inf)))
        for name, got, part, right in zip(("dq", "dk", "dv"), gradients, real, expected, strict=False):
            note(name, relative(got[i : i + 1, :, part], right, 1.0))  # of a row that sees one key dq is 0
    return found
