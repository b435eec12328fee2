"""Theory: errors of the weight matrices of a model's slopes, and of attention on Gaussian input, in
the units of the paper's section 5.2. Nothing is loaded but the model's configuration. With a text
`harness.tasks.theory.captured` takes its place."""

import functools
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import fields, replace

import numpy as np
import torch
from torch import Tensor

from harness.attentions.registry import EXACT
from harness.cell import Cell
from harness.common import stats
from harness.common.errors import UserError
from harness.results.schema import Number, SampleRow
from harness.tasks.base import PlannedTask, TaskContext
from harness.tasks.model_free import ModelFreeTask
from harness.tasks.theory import worst
from harness.tasks.theory.captured import CapturedTheory
from harness.tasks.theory.options import Options
from harness.tasks.theory.spectral import Head, log_weights
from kernels import PositionalLSH, Weights
from kernels.methods.bounds import spectral_expectation_bound, spectral_tail_bound
from kernels.methods.masks import Masks

LAYER = 0  # whose masks are measured: those of other layers are further draws
BLOCKS, BLOCK_ROWS = 8, 32  # blocks of rows, evenly spaced, on which the output error is measured
HEAD_DIM = 64  # of the Gaussian queries, keys and values
MAX_EDGES = 1 << 22  # edges of blocks at a time, rows x masks
LARGEST_RANGE = 50  # of scores: beyond, the smallest of exp(-2 r) vanish


class TheoryRow(SampleRow):
    """One head under one draw. There is no `doc_hash`: rows of two cells are not paired, because an
    attention without chance has one row for each head, and the error of exact ALiBi is 0.

    Attributes:
        score: ||L' - L||_2 / ||L||_2; here lower is better.
        head: from 0 on.
        sigma: 1/slope in tokens.
        spectral_error, spectral_exact: ||L' - L||_2, ||L||_2.
        largest_error: max |L' - L|.
        expectation_bound: the paper's bound of E ||L' - L||_2; None for other weights than "count"
            of independent masks without sinks, near field and grid.
        tail_bound: its bound of the probability of this error or a larger one; may exceed 1.
        largest_block: tokens of the largest block of a mask; None without masks.
        mean_reach: mean distance of a row's first visited column beyond the sinks.
        output_error: relative Frobenius norm of the change of attention's output, for q, k and v of
            independent standard normal numbers.
        output_error_common_mean: the same with v shifted by a common vector of standard normal
            numbers, which every attention reproduces.
        row_errors: median, 90 % and 99 % quantile of the rows' relative errors, for zero-mean v.
        variation: mean total variation of the Gaussian attention of rows, see `worst_cases`.
        worst, worst_found: by score range, the largest total variation over all scores in the range,
            and that of queries and keys found by gradient.
        cosine: mean over rows of the cosine between both outputs, for zero-mean v.
    """

    score: Number
    head: int
    sigma: float
    spectral_error: float
    spectral_exact: float
    largest_error: float
    expectation_bound: float | None = None
    tail_bound: float | None = None
    largest_block: float | None = None
    mean_reach: float
    output_error: float
    output_error_common_mean: float
    row_errors: list[float]
    cosine: float
    variation: float | None = None
    worst: dict[str, float] = {}
    worst_found: dict[str, float] = {}


class Theory(ModelFreeTask):
    name = "theory"
    options = Options
    min_context = BLOCKS * BLOCK_ROWS

    def tasks(self, options: Options) -> list[PlannedTask]:
        if options.text is not None:
            return [PlannedTask(CAPTURED, options)]
        return super().tasks(options)

    def identity(self, options: Options) -> dict:
        ranges = {"score_ranges": list(options.score_ranges)} if options.score_ranges else {}
        return {"causal": options.causal, **ranges}

    def check(self, options: Options, cell: Cell) -> None:
        """Raise UserError for score ranges that are not positive, and as the other tasks without a
        model do."""
        if any(not 0 < r <= LARGEST_RANGE for r in options.score_ranges):
            raise UserError(
                f"task.theory.score_ranges must be numbers above 0 and at most {LARGEST_RANGE}, not "
                f"{list(options.score_ranges)}."
            )
        super().check(options, cell)
        if not cell.attention.random:  # masks are drawn in `run`
            _layer(cell, 0)

    def amount(self, options: Options, cell: Cell, samples: int, batch: int) -> tuple[int, int]:
        heads = cell.model.architecture.heads
        return cell.draws * heads, heads

    row = staticmethod(TheoryRow.read)

    def run(self, options: Options, context: TaskContext) -> Iterator[list[TheoryRow]]:
        cell = context.cell
        exact = _layer(replace(cell, attention=EXACT), 0)
        weights = functools.cache(functools.partial(_layer, cell))
        for draw, keys in context.batches():
            for key in keys:
                started = time.perf_counter()
                row = measure_head(cell, weights(draw), exact, key // cell.draws, options)
                yield [row.but(key=key, draw=draw, seconds=time.perf_counter() - started)]

    def metrics(self, options: Options, rows: Sequence[TheoryRow], *, clustered: bool) -> dict[str, stats.Metric]:
        draws = [r.draw for r in rows]

        def mean(values: Sequence[float | None], unit: str) -> stats.Metric:
            numbers = [v for v in values if v is not None]
            if not clustered:  # heads are no sample, so that there is no interval
                return stats.Metric(math.fsum(numbers) / len(numbers), None, None, len(numbers), unit)
            of_draws = [d for v, d in zip(values, draws, strict=True) if v is not None]
            return stats.mean(numbers, of_draws, clustered=True, unit=unit, least=0.0)

        error, ratio = "relative error", "ratio"
        metrics = {"spectral_error": mean([r.score for r in rows], error)}
        metrics["output_error"] = mean([r.output_error for r in rows], error)
        metrics["output_error_common_mean"] = mean([r.output_error_common_mean for r in rows], error)
        for place, name in enumerate(("median", "p90", "p99")):
            metrics[f"row_error_{name}"] = mean([r.row_errors[place] for r in rows], error)
        metrics["cosine"] = mean([r.cosine for r in rows], "cosine")
        metrics["largest_error"] = mean([r.largest_error for r in rows], "weight")
        metrics["mean_reach_sigma"] = mean([r.mean_reach / r.sigma for r in rows], "sigma")
        if any(r.largest_block is not None for r in rows):
            metrics["largest_block_sigma"] = mean(
                [r.largest_block and r.largest_block / r.sigma for r in rows], "sigma"
            )
        if any(r.expectation_bound for r in rows):
            shares = [r.expectation_bound and r.spectral_error / r.expectation_bound for r in rows]
            metrics["share_of_expectation_bound"] = mean(shares, ratio)
        if all(r.variation is not None for r in rows):
            metrics["variation_gaussian"] = mean([r.variation for r in rows], "probability")
            for r in rows[0].worst:
                metrics[f"variation_worst_{r}"] = mean([row.worst[r] for row in rows], "probability")
                metrics[f"variation_found_{r}"] = mean([row.worst_found[r] for row in rows], "probability")
        for head in sorted({r.head for r in rows}):
            of_head = [r.score if r.head == head else None for r in rows]
            metrics[f"spectral_error_head_{head + 1}"] = mean(of_head, error)
        return metrics


def _layer(cell: Cell, draw: int) -> Weights:
    """The weights of one layer; UserError if those of another layer differ by more than chance."""
    weights = cell.weights(draw)
    assert weights is not None
    if len({_without_chance(layer) for layer in weights}) > 1:
        raise UserError(
            f"task=theory measures one layer, and the layers of {cell.attention.label} differ: give a text, "
            "task.theory.text=novel, on which it measures every layer, or use task=fidelity."
        )
    return weights[LAYER]


def _without_chance(weights: Weights) -> str:
    """A text of all fields, with the number of the masks for their places."""
    values = {f.name: getattr(weights, f.name) for f in fields(weights) if f.compare}  # type: ignore[arg-type]
    plain = {
        name: value.tolist() if isinstance(value, Tensor) else value.width.shape if isinstance(value, Masks) else value
        for name, value in values.items()
    }
    return f"{type(weights).__name__} {plain}"


def measure_head(cell: Cell, weights: Weights, exact: Weights, head: int, options: Options) -> TheoryRow:
    """Return the row of one head, without its key and draw.

    Args:
        cell: the cell; its context is n, its data_seed the seed of q, k and v.
        weights: of one layer, in one draw.
        exact: exact ALiBi's of the same slopes.
        head: the head.
        options: the task's options.
    """
    tokens, sigma, causal = cell.context, 1 / float(weights.slopes[head]), options.causal
    norms = Head(weights, head, tokens, causal=causal).norms()
    rows = torch.arange(tokens)
    pieces = rows.split(max(1, MAX_EDGES // max(1, weights.count)))
    first = torch.cat([weights.reach(torch.tensor([head]), piece[None])[0][0] for piece in pieces])
    row = TheoryRow(
        key=0,
        score=norms.error / norms.exact,
        head=head,
        sigma=sigma,
        spectral_error=norms.error,
        spectral_exact=norms.exact,
        largest_error=norms.largest,
        mean_reach=float((rows - first).clamp_min(0).double().mean()),
        **output_errors(weights, exact, head, tokens, cell.data_seed, causal),
    )
    if options.score_ranges:
        row = row.but(**worst_cases(weights, exact, head, tokens, cell.data_seed, options))
    if isinstance(weights, PositionalLSH):
        row = row.but(largest_block=float(weights.masks.width[head].max()))
        if is_of_the_paper(weights):
            shape = (sigma, tokens, weights.count)
            tail = spectral_tail_bound(*shape, norms.error)
            row = row.but(expectation_bound=spectral_expectation_bound(*shape), tail_bound=tail)
    return row


def is_of_the_paper(weights: PositionalLSH) -> bool:
    """Return whether the paper's bounds hold for these weights."""
    plain = weights.masks.grid is None and not weights.sinks and not weights.near
    return plain and weights.weights == "count" and weights.sampler == "gamma"


def output_errors(weights: Weights, exact: Weights, head: int, tokens: int, seed: int, causal: bool) -> dict:
    """Return the errors of attention's output, as in `TheoryRow`, on evenly spaced blocks of rows.

    Args:
        weights, exact: of one layer.
        head: the head.
        tokens: n.
        seed: of q, k and v.
        causal: whether a row sees earlier columns only.
    """
    q, k, v, common = _gaussian(head, tokens, seed)
    both = torch.stack([v, v + common])  # zero-mean, common mean
    at = [end - BLOCK_ROWS for end in _block_ends(tokens)]
    outputs = [
        torch.cat([_attend_rows(one, head, q[a : a + BLOCK_ROWS], k, both, a, causal) for a in at], 1)
        for one in (exact, weights)
    ]
    true, changed = (x.double() for x in outputs)
    norms = (changed - true).norm(dim=2) / true.norm(dim=2)
    frobenius = [float((b - a).norm() / a.norm()) for a, b in zip(true, changed, strict=True)]
    quantiles = torch.quantile(norms[0], torch.tensor([0.5, 0.9, 0.99], dtype=torch.float64)).tolist()
    cosine = torch.nn.functional.cosine_similarity(true[0], changed[0], dim=1)
    return {
        "output_error": frobenius[0],
        "output_error_common_mean": frobenius[1],
        "row_errors": quantiles,
        "cosine": float(cosine.mean()),
    }


def _gaussian(head: int, tokens: int, seed: int) -> list[torch.Tensor]:
    """Return q, k, v (tokens, HEAD_DIM) and a vector (HEAD_DIM,) of standard normal numbers."""
    generator = torch.Generator().manual_seed(1000 * seed + head)
    shapes = [(tokens, HEAD_DIM)] * 3 + [(HEAD_DIM,)]
    return [torch.randn(shape, generator=generator) for shape in shapes]


def _attend_rows(
    weights: Weights, head: int, q: torch.Tensor, k: torch.Tensor, values: torch.Tensor, begin: int, causal: bool
) -> torch.Tensor:
    """Return the output of consecutive rows of one head, (values, rows, dim).

    Args:
        weights: of a layer.
        head: the head.
        q: (rows, dim).
        k: (n, dim).
        values: (values, n, dim).
        begin: token of the first row.
        causal: whether a row sees earlier columns only.
    """
    log_w = log_weights(weights, head, torch.arange(begin, begin + len(q)), len(k), causal=causal)
    scores = q @ k.T / math.sqrt(HEAD_DIM) + log_w
    return scores.softmax(-1) @ values


def _block_ends(tokens: int) -> list[int]:
    """Return the tokens after BLOCKS blocks of rows, evenly spaced."""
    return [round(tokens * (b + 1) / BLOCKS) for b in range(BLOCKS)]


def worst_cases(weights: Weights, exact: Weights, head: int, tokens: int, seed: int, options: Options) -> dict:
    """Return the total variation of attention as in `TheoryRow`, a mean over the last row of each of
    BLOCKS blocks.

    Args:
        weights, exact: of one layer.
        head: the head.
        tokens: n.
        seed: of queries and keys.
        options: the task's options.
    """
    rows = torch.tensor(_block_ends(tokens)) - 1
    log_exact, log_changed = (
        torch.cat([log_weights(w, head, rows[i : i + 1], tokens, causal=options.causal) for i in range(BLOCKS)])
        for w in (exact, weights)
    )
    q, k = _gaussian(head, tokens, seed)[:2]
    gaussian = worst.variation(log_exact, log_changed, q[rows] @ k.T / math.sqrt(HEAD_DIM))
    figures: dict = {"variation": float(gaussian.mean()), "worst": {}, "worst_found": {}}
    for r in options.score_ranges:
        largest = []
        for one, other in zip(log_exact.double().numpy(), log_changed.double().numpy(), strict=True):
            visible = np.isfinite(one)
            largest.append(worst.largest_variation(one[visible], other[visible], r))
        figures["worst"][f"{r:g}"] = math.fsum(largest) / BLOCKS
        found = worst.adversary(log_exact, log_changed, r, dim=HEAD_DIM, seed=seed)
        figures["worst_found"][f"{r:g}"] = float(found.mean())
    return figures


CAPTURED = CapturedTheory()
THEORY = Theory()
