"""The calls of `python -m kernels.check`, and their errors beside the limits."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch

from kernels import Alibi, PositionalLSH, Weights, Window, alibi_slopes, attend
from kernels.check.cases import EDGES, FACTORS, Case, pairwise
from kernels.check.compare import case_errors
from kernels.common.dtypes import dtype_name
from kernels.impl.accuracy import HEADS, LIMITS, LSE_LIMIT, errors, limit_of

TOKENS = {"cuda": 777, "cpu": 131}
DIMS = (64, 80, 96, 112, 128)  # head dimensions of the matrix; the bench measures the last
MATRIX = "matrix "  # prefix of the names of the matrix's parts
COUNT_32_HEADS = "count gamma S=16, 32 slopes"  # the slopes of MPT-7B
GAP_LENGTH_FACTOR = 16  # calls with a gap have this many times as many keys before the eviction


def all_weights() -> dict[str, Weights]:
    """The weights that the bench measures, some with sinks or a near field: every law, and counts in
    one word and in two."""
    slopes = alibi_slopes(HEADS)
    named = {"alibi": Alibi(slopes), "window": Window(slopes, 5.0), "window, 4 sinks": Window(slopes, 5.0, 4)}
    named["window, near 64"] = Window(slopes, 5.0, 0, 64)
    for kind, sampler, masks, sinks, near in [
        ("rb", "gamma", 16, 0, 0), ("rb", "gamma", 16, 70, 0), ("rb", "gamma", 16, 0, 64), ("count", "gamma", 16, 0, 0),
        ("count", "gamma", 16, 4, 0), ("count", "gamma", 16, 0, 64), ("count", "gamma", 1, 0, 0),
        ("count", "gamma", 64, 0, 0), ("rb", "systematic", 16, 0, 0), ("count", "systematic", 16, 0, 0),
        ("count", "systematic", 16, 4, 64),
    ]:  # fmt: skip
        parts = [f"{kind} {sampler} S={masks}"] + [f"{sinks} sinks"] * (sinks > 0) + [f"near {near}"] * (near > 0)
        named[", ".join(parts)] = PositionalLSH.draw(
            slopes, masks, seed=1, sampler=sampler, weights=kind, sinks=sinks, near=near
        )
    # a draw with visited pairs whose ranks in some mask differ by 32: the highest bitplane of a
    # tile
    named[COUNT_32_HEADS] = PositionalLSH.draw(alibi_slopes(32), 16, seed=9)
    return named


def matrix() -> list[Case]:
    """The shared matrix, with the head dimensions of models and up to 64 masks."""
    edges = [replace(edge, dim=DIMS[i % len(DIMS)]) for i, edge in enumerate(EDGES) if edge.dtype in LIMITS]
    return pairwise(FACTORS | {"masks": [1, 4, 16, 33, 64], "dim": list(DIMS)}) + edges


def parts() -> list[tuple[str, torch.dtype]]:
    """The parts that `check` takes, the slowest first."""
    of_matrix = {(MATRIX + case.rule, case.dtype): None for case in matrix()}
    return [(name, torch.bfloat16) for name in all_weights()] + list(of_matrix)


def calls(tokens: int) -> dict[str, dict]:
    """Shapes of a call by name: `queries` among `tokens` keys, options of `attend`, whether
    `gradients` are compared, and whether keys out of reach are evicted (`gap`)."""
    padding = torch.tensor([0, tokens // 3])
    few = min(16, tokens)
    return {
        "causal": {"queries": tokens, "gradients": True},
        "bidirectional": {"queries": tokens, "causal": False, "gradients": True},
        "padded": {"queries": tokens, "padding": padding, "gradients": True},
        "chunk": {"queries": tokens // 3, "q_offset": tokens // 2, "gradients": True},
        "decoding 1": {"queries": 1},
        "decoding 3, padded": {"queries": 3, "padding": padding},
        f"decoding {few}": {"queries": few},
        "chunk, gap": {"tokens": GAP_LENGTH_FACTOR * tokens, "queries": 3 * few, "gap": True},
        "decoding 3, gap": {"tokens": GAP_LENGTH_FACTOR * tokens, "queries": 3, "gap": True},
    }


def check(name: str, dtype: torch.dtype, *, kernel: str, device: str, tokens: int) -> list[dict]:
    """Checks one of the `parts`: all calls with one kind of weights in one dtype.

    Args:
        name, dtype: of the part.
        kernel: compared with the oracle.
        device: "cuda" or "cpu".
        tokens: keys of a call.

    Returns:
        a row for each call: its `errors`, and `worst`, the largest error over its limit; or the
        `reason` why there are none.
    """
    jobs: list[tuple[str, int, Callable[[], dict[str, float] | None]]]
    if name.startswith(MATRIX):
        some = [case for case in matrix() if (MATRIX + case.rule, case.dtype) == (name, dtype)]
        jobs = [(case.id, case.dim, partial(case_errors, case, kernel, device)) for case in some]
    else:
        fixed = (all_weights()[name], kernel, device, tokens, DIMS[-1], dtype)
        jobs = [(shape, DIMS[-1], partial(errors, attend, *fixed, options)) for shape, options in calls(tokens).items()]
    rows: list[dict] = []
    for call, dim, measure in jobs:
        row = blank(name, call, dtype, dim)
        try:
            measured_errors = measure()
            if measured_errors is None:
                continue
            row["errors"] = {name: float(f"{value:.3g}") for name, value in measured_errors.items()}
            worst = max(value / limit_of(name, row["limit"]) for name, value in measured_errors.items())
            row["worst"] = float(f"{worst:.3g}")
        except Exception as e:  # the others are checked all the same
            first = next(iter(str(e).splitlines()), "")
            row["reason"] = f"{type(e).__name__}: {first}"
        rows.append(row)
    return rows


def blank(name: str, call: str, dtype: torch.dtype, dim: int) -> dict:
    """Returns a row without errors.

    Args:
        name: of the weights.
        call: name of the call.
        dtype: of the inputs.
        dim: head dimension.
    """
    about = {"weights": name, "call": call, "dtype": dtype_name(dtype), "dim": dim}
    return about | {"limit": LIMITS[dtype], "lse_limit": LSE_LIMIT, "errors": {}, "worst": None}


def failure(row: dict) -> str | None:
    """The errors above their limits in a row, or the reason why it has none, in words; None if the
    row passed."""
    where = f"{row['weights']}, {row['call']}, head dimension {row['dim']}, {row['dtype']}"
    if "reason" in row:
        return f"{where}: {row['reason']}"
    # in a file an error that is not finite is null
    row_errors = {k: torch.inf if v is None else v for k, v in row["errors"].items()}
    limits = {k: limit_of(k, row["limit"]) for k in row_errors}
    excess = ", ".join(f"{k} {v:.1e} > {limits[k]:.0e}" for k, v in row_errors.items() if not v <= limits[k])
    return f"{where}: {excess}" if excess else None
