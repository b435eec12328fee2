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
from pathlib import Path
from typing import Any

import torch

from harness.analysis.table import interval
from harness.common import environment, stats
from harness.common.files import write_atomic
from harness.common.paths import ROOT
from harness.common.stats import Metric
from harness.common.table import Table
from kernels import Alibi, PositionalLSH, Weights, Window, attend, equal_cost_cutoff, expected_pairs

FILE = ROOT / "docs" / "results" / "masks_gaussian.json"
SIGMAS, MASKS = (16, 64), (16, 64)
SEEDS = range(100, 108)
TOKENS, HEADS, DIM = 1024, 8, 64
# sampler and weights; the paper's first
KINDS = (("gamma", "count"), ("gamma", "rb"), ("gamma", "exact"), ("systematic", "count"), ("systematic", "rb"))
NAMES = {"window": "slope window of the pairs of gamma"}


def squared_error(weights: Weights, sigma: int, seed: int) -> tuple[float, float]:
    """Return the squared norms of the change of the output and of the exact output.

    Args:
        weights: of heads with the slope 1/sigma.
        sigma: in tokens.
        seed: of queries, keys and values.
    """
    generator = torch.Generator().manual_seed(seed)
    q, k, v = torch.randn(3, 1, weights.heads, TOKENS, DIM, generator=generator).unbind(0)
    beyond = slice(6 * sigma, None)
    exact = attend(q, k, v, Alibi(weights.slopes), kernel="sdpa")[:, :, beyond].double()
    change = attend(q, k, v, weights, kernel="sdpa")[:, :, beyond].double() - exact
    return float(change.square().sum()), float(exact.square().sum())


def measure() -> dict:
    """Return the record: a row for each sigma, number of masks and method."""
    rows: list[dict[str, Any]] = []
    for sigma in SIGMAS:
        slopes = torch.full((HEADS,), 1 / sigma, dtype=torch.float64)
        for masks in MASKS:
            cutoff = equal_cost_cutoff(slopes, masks, TOKENS)
            paper: list[float] = []
            for sampler, kind in (*KINDS, ("window", "exact")):
                errors, total, reach = [], 0.0, 0.0
                for seed in SEEDS:
                    drawn: Weights = Window(slopes, cutoff)
                    if sampler != "window":
                        drawn = PositionalLSH.draw(slopes, masks, seed=seed, sampler=sampler, weights=kind)
                    change, exact = squared_error(drawn, sigma, seed)
                    errors.append(change)
                    total += exact
                    reach += _reach(drawn) / len(SEEDS)
                paper = paper or errors
                pairs = expected_pairs(slopes, masks, TOKENS, sampler="gamma" if sampler == "window" else sampler)
                sums = list(zip(paper, errors, strict=True))
                worth = stats.ratio(
                    sums, list(SEEDS), clustered=False, unit="masks", figure=lambda r, masks=masks: r * masks
                )
                rows.append(
                    {
                        **{"sigma": sigma, "masks": masks, "sampler": sampler, "weights": kind},
                        "error": (sum(errors) / total) ** 0.5,
                        "worth": worth.as_dict(),
                        "reach_in_sigma": reach / sigma,
                        "pairs_per_row": pairs / HEADS / TOKENS,
                    }
                )
                print(rows[-1], flush=True)
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
        name = NAMES.get(row["sampler"], f"{row['sampler']} {row['weights']}")
        worth = interval(Metric(**row["worth"])) if (row["sampler"], row["weights"]) != KINDS[0] else f"{row['masks']}"
        numbers = [f"{row['error']:.3f}", worth, f"{row['reach_in_sigma']:.2f}", f"{row['pairs_per_row']:.1f}"]
        lines.append([f"{row['sigma']}", f"{row['masks']}", name, *numbers])
    setup = figures["setup"]
    title = f"Gaussian input, {setup['tokens']} tokens, {len(setup['seeds'])} seeds of {setup['heads']} heads"
    columns = ["sigma", "S", "masks", "relative error", "worth masks of the paper's", "reach, sigmas", "pairs per row"]
    return Table(title, columns, lines, []).markdown().rstrip()


def main(arguments: list[str] | None = None) -> int:
    """Return 0."""
    parser = argparse.ArgumentParser(prog="python -m tests.measure.masks", description=__doc__.split("\n\n")[0])
    parser.add_argument("--json", type=Path, default=FILE, metavar="FILE", help="the file to write")
    write_atomic(parser.parse_args(arguments).json, measure())
    return 0


if __name__ == "__main__":
    sys.exit(main())
