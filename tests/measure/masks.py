"""How many of the paper's masks the better masks are worth on Gaussian input.

    python -m tests.measure.masks          # a minute; writes docs/results/masks_gaussian.json

Queries, keys and values are independent standard normal numbers, values thus without a common mean,
on which every approximation errs most. A head with the same slope is one more independent draw. The
error is that of the output relative to exact ALiBi, root mean square over all rows beyond 6 sigma,
heads and seeds. S masks of a kind are worth ``S (e / e')^2`` of the paper's, where e is the error of
S masks of the paper's and e' theirs: the error of independent masks falls as 1/sqrt(S).
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from harness.common import environment, stats
from harness.common.files import write_atomic
from harness.common.paths import ROOT
from harness.common.table import Table
from kernels import Alibi, PositionalLSH, Weights, Window, attend, equal_cost_cutoff, expected_pairs

FILE = ROOT / "docs" / "results" / "masks_gaussian.json"
SIGMAS, MASKS = (16, 64), (16, 64)
SEEDS = range(100, 108)
TOKENS, HEADS, DIM = 1024, 8, 64
# sampler and weights; the paper's first
KINDS = (("gamma", "count"), ("gamma", "rb"), ("gamma", "exact"), ("systematic", "count"), ("systematic", "rb"))
WINDOW = ("window", "exact")


def measure(
    sigma: int, masks: int, seeds: Sequence[int] = SEEDS, kinds: Sequence[tuple[str, str]] = (*KINDS, WINDOW)
) -> list[dict[str, Any]]:
    """Return a row for each method.

    Args:
        sigma: 1/slope of all heads in tokens.
        masks: S.
        seeds: of the masks, and of queries, keys and values.
        kinds: sampler and weights of the methods, the paper's first.
    """
    slopes = torch.full((HEADS,), 1 / sigma, dtype=torch.float64)
    window = Window(slopes, equal_cost_cutoff(slopes, masks, TOKENS))
    beyond, total = slice(6 * sigma, None), 0.0
    changes: list[list[float]] = [[] for _ in kinds]
    reach = [0.0] * len(kinds)
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        inputs = torch.randn(3, 1, HEADS, TOKENS, DIM, generator=generator).unbind(0)
        exact = attend(*inputs, Alibi(slopes), kernel="sdpa")[:, :, beyond].double()
        total += float(exact.square().sum())
        for i, (sampler, kind) in enumerate(kinds):
            drawn: Weights = window
            if (sampler, kind) != WINDOW:
                drawn = PositionalLSH.draw(slopes, masks, seed=seed, sampler=sampler, weights=kind)
            out = attend(*inputs, drawn, kernel="sdpa")[:, :, beyond].double()
            changes[i].append(float((out - exact).square().sum()))
            reach[i] += _reach(drawn) / len(seeds)
    rows = []
    for (sampler, kind), change, mean_reach in zip(kinds, changes, reach, strict=True):
        pairs = expected_pairs(slopes, masks, TOKENS, sampler="gamma" if (sampler, kind) == WINDOW else sampler)
        sums = list(zip(changes[0], change, strict=True))
        worth = stats.ratio(sums, list(seeds), clustered=False, unit="masks", figure=lambda ratio: ratio * masks)
        rows.append(
            {
                **{"sigma": sigma, "masks": masks, "sampler": sampler, "weights": kind},
                "error": (sum(change) / total) ** 0.5,
                "worth": worth.as_dict(),
                "reach_in_sigma": mean_reach / sigma,
                "pairs_per_row": pairs / HEADS / TOKENS,
            }
        )
    return rows


def record() -> dict:
    """Return the content of FILE."""
    rows = [row for sigma in SIGMAS for masks in MASKS for row in measure(sigma, masks)]
    setup = {"tokens": TOKENS, "heads": HEADS, "head_dim": DIM, "seeds": list(SEEDS)}
    found = environment.describe(torch.device("cpu"))
    return {"setup": setup, "rows": rows, "environment": {n: found[n] for n in ("commit", "dirty", "device")}}


def _reach(weights: Weights) -> float:
    """Mean distance from the last quarter of the rows to their first visited key."""
    rows = torch.arange(TOKENS * 3 // 4, TOKENS).expand(weights.heads, -1)
    return float((rows - weights.reach(torch.arange(weights.heads), rows)[0]).double().mean())


def markdown(figures: dict) -> str:
    """Return the table of FILE."""
    lines = []
    for row in figures["rows"]:
        kind = row["sampler"], row["weights"]
        name = "slope window, pairs of gamma" if kind == WINDOW else " ".join(kind)
        low, high = row["worth"]["low"], row["worth"]["high"]
        worth = f"{row['worth']['value']:.0f}" + (f" [{low:.0f}, {high:.0f}]" if kind != KINDS[0] else "")
        numbers = [f"{row['error']:.3f}", worth, f"{row['reach_in_sigma']:.2f}", f"{row['pairs_per_row']:.1f}"]
        lines.append([name, f"{row['sigma']}", f"{row['masks']}", *numbers])
    setup = figures["setup"]
    title = f"Gaussian input, {setup['tokens']} tokens, {len(setup['seeds'])} seeds of {setup['heads']} heads"
    columns = ["masks", "sigma", "S", "relative error", "worth masks of the paper's", "reach, sigmas", "pairs per row"]
    return Table(title, columns, lines, []).markdown().rstrip()


def main(arguments: list[str] | None = None) -> int:
    """Return 0."""
    parser = argparse.ArgumentParser(prog="python -m tests.measure.masks", description=__doc__.split("\n\n")[0])
    parser.add_argument("--json", type=Path, default=FILE, metavar="FILE", help="the file to write")
    write_atomic(parser.parse_args(arguments).json, record())
    return 0


if __name__ == "__main__":
    sys.exit(main())
