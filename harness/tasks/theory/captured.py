"""The error of attention on the queries, keys and values of a model on a text, the other half of the
paper's section 5.2: a row for each window of the text, with figures of every layer and head."""

import functools
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from harness.attentions.registry import EXACT
from harness.cell import Cell
from harness.common import stats
from harness.common.errors import UserError
from harness.models.capture import capture
from harness.results.schema import Number, SampleRow
from harness.tasks.base import Prepared, TaskContext
from harness.tasks.model_free import refuse_unknown_weights
from harness.tasks.text.windows import TextOptions, TextTask, window_batches
from harness.tasks.theory.options import Options
from harness.tasks.theory.spectral import log_weights
from kernels import PositionalLSH, Weights
from kernels.methods.horizon import miss_probability
from kernels.methods.samplers import sampler_of

ROWS = 512  # rows of attention at a time
FAR = (1, 2, 4, 8)  # distances in units of 1/slope
ADVANTAGES = (0.5, 1, 2)  # score advantages in units of slope x distance

Figures = dict[str, float]


class CapturedRow(SampleRow):
    """One window under one draw.

    Attributes:
        score: mean over layers and heads of `output_error`; here lower is better.
        heads: figures by name, [layer][head]; see `head_figures`.
    """

    score: Number
    heads: dict[str, list[list[float]]]


class CapturedTheory(TextTask):
    """task=theory with a text."""

    name = "theory"
    runs_weights = False

    def identity(self, options: Options) -> dict:
        return {"causal": options.causal, **super().identity(TextOptions(text=options.text))}

    def identity_on(self, options: Options, cell: Cell) -> dict:
        return super().identity_on(_windows(options, cell), cell)

    def check(self, options: Options, cell: Cell) -> None:
        """Raise UserError for an invalid text, options of Gaussian input, or an attention without
        weights of its own."""
        refuse_unknown_weights(self.name, cell.attention)
        if not options.causal:
            raise UserError("task.theory.text goes with causal=true: the models read from left to right.")
        if options.score_ranges:
            raise UserError("task.theory.score_ranges is for Gaussian input: leave out task.theory.text.")
        super().check(_windows(options, cell), cell)

    def prepare(self, options: Options, cell: Cell, samples: int, folder: Path) -> Prepared:
        return super().prepare(_windows(options, cell), cell, samples, folder)

    row = staticmethod(CapturedRow.read)

    def run(self, options: Options, context: TaskContext) -> Iterator[list[CapturedRow]]:
        loaded, cell = context.model(), context.cell
        exact = replace(cell, attention=EXACT).weights(0)
        weights = functools.lru_cache(maxsize=1)(cell.weights)  # many masks of many heads take gigabytes
        assert exact is not None
        for draw, batch, started in window_batches(_windows(options, cell), context):
            approximate = weights(draw)
            assert approximate is not None
            layers: list[list[list[Figures]]] = []  # by layer, head and window

            def visit(layer, q, k, v, scale, layers=layers, approximate=approximate):
                layers.append(layer_figures(exact[layer], approximate[layer], q, k, v, scale))

            capture(loaded, torch.stack([w.ids[:-1] for w in batch]), visit)
            seconds = (time.perf_counter() - started) / len(batch)
            rows = []
            for i, window in enumerate(batch):
                heads = {name: [[head[i][name] for head in layer] for layer in layers] for name in layers[0][0][i]}
                errors = [x for layer in heads["output_error"] for x in layer]
                score = math.fsum(errors) / len(errors)
                about: dict[str, Any] = {"doc_hash": window.doc_hash, "draw": draw, "seconds": seconds}
                rows.append(CapturedRow(key=window.key, score=score, heads=heads, **about))
            yield rows

    def metrics(self, options: Options, rows: Sequence[CapturedRow], *, clustered: bool) -> dict[str, stats.Metric]:
        draws = [r.draw for r in rows]

        def mean(figure: Callable[[CapturedRow], float], unit: str, least: float = 0.0) -> stats.Metric:
            return stats.mean([figure(r) for r in rows], draws, clustered=clustered, unit=unit, least=least)

        metrics = {}
        for name in rows[0].heads:
            unit, least = _unit(name)
            metrics[name] = mean(functools.partial(_over_heads, name), unit, least)
        for layer, heads in enumerate(rows[0].heads["output_error"]):
            for head in range(len(heads)):
                for name in ("output_error", "mass_missed_predicted"):
                    if name in rows[0].heads:
                        figure = functools.partial(_of_head, name, layer, head)
                        metrics[f"{name}_head_{layer + 1}_{head + 1}"] = mean(figure, _unit(name)[0])
        return metrics


def _windows(options: Options, cell: Cell) -> TextOptions:
    """Windows that do not overlap: whole contexts are measured."""
    return TextOptions(text=options.text, stride=cell.context)


def _over_heads(name: str, row: CapturedRow) -> float:
    values = [x for layer in row.heads[name] for x in layer]
    return math.fsum(values) / len(values)


def _of_head(name: str, layer: int, head: int, row: CapturedRow) -> float:
    return row.heads[name][layer][head]


def _unit(name: str) -> tuple[str, float]:
    """Return the unit of a figure and its smallest possible value."""
    if name == "cosine":
        return "cosine", -1.0
    if name.startswith(("mass", "advantage", "tv")):
        return "probability", 0.0
    if name == "score_range":
        return "score", 0.0
    return ("value" if name == "output_frobenius" else "relative error"), 0.0


def layer_figures(
    exact: Weights, weights: Weights, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float
) -> list[list[Figures]]:
    """Return `head_figures` of every head of a layer.

    Args:
        exact: exact ALiBi's weights.
        weights: those that are compared with them.
        q, k, v: (windows, heads, tokens, head_dim).
        scale: of the scores.

    Raises:
        FloatingPointError: if the tensors are not finite.
    """
    q, k, v = (x.float() for x in (q, k, v))
    if not all(bool(torch.isfinite(x).all()) for x in (q, k, v)):
        raise FloatingPointError("The model's queries, keys or values are not finite (NaN or infinite).")
    return [head_figures(exact, weights, h, q[:, h], k[:, h], v[:, h], scale) for h in range(exact.heads)]


def head_figures(
    exact: Weights, weights: Weights, head: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float
) -> list[Figures]:
    """Return, for each window, how far attention under `weights` is from exact ALiBi in one head, and
    why.

    With p and p' the exact and the approximate attention, s the scores, m the slope and D the
    distance of a key:

    * output_error, output_error_centred: relative Frobenius norm of the change of the output, for v
      as it is and without its mean over the tokens. output_frobenius: the norm itself.
    * row_error_median, _p90, _p99, cosine: of the rows' relative errors, and of their outputs, for v
      as it is.
    * tv, tv_p99: total variation between p and p', the mean and 99 % quantile over rows.
    * score_range: mean over rows of half the distance between the largest and the smallest score.
    * mass_missed: mean exact attention on keys that the weights do not visit, and
      mass_missed_predicted: its expectation over the masks, where it has a closed form.
    * mass_beyond_X: mean exact attention on keys with m D > X.
    * advantage_over_X: share of the attention at m D > 1 on keys whose advantage A exceeds X m D. A
      is the log of p over the attention that equal scores would give: a key with A > m D outweighs
      its bias.

    Args:
        exact, weights, scale: as in `layer_figures`.
        head: the head.
        q, k, v: (windows, tokens, head_dim) float32.
    """
    tokens, slope = k.shape[1], float(exact.slopes[head])
    predict = _miss_law(weights, head, tokens, k.device)
    keys = torch.arange(tokens, device=k.device)
    windows = [_Window(*one, scale) for one in zip(q, k, v, strict=True)]
    for begin in range(0, tokens, ROWS):
        rows = torch.arange(begin, min(begin + ROWS, tokens), device=k.device)
        seen = int(rows[-1]) + 1  # keys that some row of the piece sees
        distance = rows[:, None] - keys[:seen]
        missed = None
        if predict is not None:
            missed = predict[distance.clamp_min(0)]
            missed[:, : weights.sinks] = 0
        logs = (log_weights(w, head, rows, seen) for w in (exact, weights))  # costly: once for all windows
        piece = _Piece(rows, distance < 0, distance * slope, missed, *logs)
        for window in windows:
            window.add(piece)
    return [window.figures() for window in windows]


@dataclass(frozen=True)
class _Piece:
    """Consecutive rows of a head against the keys that they see, each but `rows` (rows, keys).

    steps: m D. missed: probability that the masks miss a key. log_l, log_w: exact and approximate
    log-weights.
    """

    rows: torch.Tensor
    future: torch.Tensor
    steps: torch.Tensor
    missed: torch.Tensor | None
    log_l: torch.Tensor
    log_w: torch.Tensor


class _Window:
    """Sums over the rows of one window, from q, k, v (tokens, head_dim) of one head."""

    def __init__(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> None:
        self.q, self.k, self.v, self.scale = q, k, v, scale
        self.centre = v.mean(0)
        self.sums: dict[str, list[torch.Tensor]] = defaultdict(list)
        self.rows: dict[str, list[torch.Tensor]] = defaultdict(list)

    def _add(self, name: str, values: torch.Tensor) -> None:
        self.sums[name].append(values.double().sum())

    def add(self, piece: _Piece) -> None:
        """Add a piece's rows."""
        seen = piece.log_l.shape[1]
        scores = self.q[piece.rows] @ self.k[:seen].T * self.scale
        p, changed = ((scores + log).softmax(-1) for log in (piece.log_l, piece.log_w))
        output, other = ((x @ self.v[:seen]).double() for x in (p, changed))
        difference = other - output
        self._add("change", difference.square())
        self._add("total", output.square())
        self._add("total_centred", (output - self.centre).square())
        self.rows["error"].append(difference.norm(dim=1) / output.norm(dim=1))
        self.rows["cosine"].append(torch.nn.functional.cosine_similarity(output, other, dim=1))
        self.rows["tv"].append((changed - p).abs().double().sum(1) / 2)
        most, least = (scores.masked_fill(piece.future, sign * math.inf) for sign in (-1, 1))
        self.rows["range"].append((most.amax(1) - least.amin(1)).double() / 2)
        self._add("missed", p[piece.log_w.isneginf()])
        if piece.missed is not None:
            self._add("predicted", p * piece.missed)
        advantage = p.log() - piece.log_l.log_softmax(-1)
        for far in FAR:
            self._add(f"beyond_{far:g}", p[piece.steps > far])
        for times in ADVANTAGES:
            self._add(f"over_{times:g}", p[(piece.steps > 1) & (advantage > times * piece.steps)])

    def figures(self) -> Figures:
        """Return the figures of `head_figures`."""
        tokens = len(self.q)
        whole = {name: math.fsum(map(float, parts)) for name, parts in self.sums.items()}
        row = {name: torch.cat(parts) for name, parts in self.rows.items()}
        median, p90, p99 = _quantiles(row["error"], (0.5, 0.9, 0.99))
        figures = {
            "output_error": math.sqrt(whole["change"] / whole["total"]),
            "output_error_centred": math.sqrt(whole["change"] / whole["total_centred"]),
            "output_frobenius": math.sqrt(whole["change"]),
            "row_error_median": median,
            "row_error_p90": p90,
            "row_error_p99": p99,
            "cosine": float(row["cosine"].mean()),
            "tv": float(row["tv"].mean()),
            "tv_p99": _quantiles(row["tv"], (0.99,))[0],
            "score_range": float(row["range"].mean()),
            "mass_missed": whole["missed"] / tokens,
        }
        if "predicted" in whole:
            figures["mass_missed_predicted"] = whole["predicted"] / tokens
        beyond = whole["beyond_1"]
        return {
            **figures,
            **{f"mass_beyond_{x:g}": whole[f"beyond_{x:g}"] / tokens for x in FAR},
            **{f"advantage_over_{x:g}": whole[f"over_{x:g}"] / beyond if beyond else 0.0 for x in ADVANTAGES},
        }


def _miss_law(weights: Weights, head: int, tokens: int, device: Any) -> torch.Tensor | None:
    """Return the probability (tokens,) that a head misses a key by its distance; None where it has
    no closed form."""
    if not isinstance(weights, PositionalLSH) or weights.masks.grid is not None:
        return None
    if sampler_of(weights.sampler).log_coverage is None:
        return None
    options: dict[str, Any] = {"sampler": weights.sampler, "near": weights.near}
    return miss_probability(weights.slopes[[head]], torch.arange(tokens), weights.count, **options)[0].to(device)


def _quantiles(values: torch.Tensor, at: Sequence[float]) -> list[float]:
    return torch.quantile(values, torch.tensor(at, dtype=values.dtype, device=values.device)).tolist()
