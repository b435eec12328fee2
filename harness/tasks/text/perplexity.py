"""Perplexity: how well the model predicts the tokens of a text in overlapping windows."""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import torch

from harness.common import stats
from harness.models.load import LoadedModel
from harness.results.schema import Number, SampleRow
from harness.tasks.base import TaskContext
from harness.tasks.text import logits, windows
from harness.tasks.text.windows import QUARTERS, TextTask, Window, window_batches

TOP = (1, 10, 100)
UNITS = {f"top_{k}": "fraction of tokens" for k in TOP}
UNITS |= {"reciprocal_rank": "mean over tokens", "entropy": "nats per token"}
CLASSES = ("line_breaks", "first_occurrences", "repeats")


@dataclass(kw_only=True)
class Options(windows.TextOptions):
    """Options of task=perplexity: a text and the scored tokens of a window."""


class PerplexityRow(SampleRow):
    """One window. Sums are over its scored tokens.

    Attributes:
        score: bits per byte; here lower is better. None if the scored tokens end no character.
        nll: sum of negative log-likelihoods in nats.
        scored_tokens, scored_bytes: number of scored tokens, bytes of their text.
        top: by k, the number of tokens among the k likeliest.
        reciprocal_ranks: sum of 1 / rank of the true token.
        entropies: sum of entropies of the predictions in nats.
        quarters: (nats, tokens) of each quarter of the scored tokens, from the first on.
        by_quarter: by figure, its sum over each quarter: "scored_bytes", "top_1", "top_10", "top_100",
            "reciprocal_rank", "entropy".
        classes: (nats, tokens) by class of the true token: line break, first occurrence in the
            window, or repeat. The nats of line breaks include, at all other tokens, those of the
            decision that no line break follows.
    """

    score: Number | None
    nll: Number
    scored_tokens: int
    scored_bytes: int
    top: dict[str, int]
    reciprocal_ranks: float
    entropies: float
    quarters: list[tuple[float, int]]
    by_quarter: dict[str, list[float]] = {}
    classes: dict[str, tuple[float, int]]


class Perplexity(TextTask):
    name = "perplexity"
    options = Options
    row = staticmethod(PerplexityRow.read)

    def run(self, options: Options, context: TaskContext) -> Iterator[list[PerplexityRow]]:
        loaded, weights = context.model(), cache(context.cell.weights)
        line_breaks = line_break_tokens(loaded)
        for draw, batch, started in window_batches(options, context):
            with loaded.attention.use(weights(draw)):
                rows = score_windows(loaded, batch, line_breaks)
            seconds = (time.perf_counter() - started) / len(rows)
            yield [row.but(draw=draw, seconds=seconds) for row in rows]

    def metrics(self, options: Options, rows: Sequence[PerplexityRow], *, clustered: bool) -> dict[str, stats.Metric]:
        draws = [r.draw for r in rows]

        def ratio(
            sums: Sequence[tuple[float, float]], unit: str, figure: Callable[[float], float] = float
        ) -> stats.Metric:
            return stats.ratio(sums, draws, clustered=clustered, unit=unit, figure=figure)

        def per_byte(nats: Iterable[float]) -> stats.Metric:
            sizes = [r.scored_bytes * math.log(2) for r in rows]
            return ratio(list(zip(nats, sizes, strict=True)), "bits per byte")

        def per_token(sums: Iterable[float], unit: str, figure: Callable[[float], float] = float) -> stats.Metric:
            return ratio([(a, r.scored_tokens) for a, r in zip(sums, rows, strict=True)], unit, figure)

        nats = [r.nll for r in rows]
        metrics = {"bits_per_byte": per_byte(nats)}
        for name in CLASSES:  # they add up to bits_per_byte
            metrics[f"bits_per_byte_{name}"] = per_byte(r.classes[name][0] for r in rows)
        metrics["nats_per_token"] = per_token(nats, "nats per token")
        metrics["perplexity"] = per_token(nats, "perplexity", math.exp)
        for k in map(str, TOP):
            metrics[f"top_{k}"] = per_token([r.top[k] for r in rows], UNITS[f"top_{k}"])
        metrics["reciprocal_rank"] = per_token([r.reciprocal_ranks for r in rows], UNITS["reciprocal_rank"])
        metrics["entropy"] = per_token([r.entropies for r in rows], UNITS["entropy"])
        for q in range(QUARTERS):
            quarter = [r.quarters[q] for r in rows]
            if all(tokens for _, tokens in quarter):
                metrics[f"nats_per_token_quarter_{q + 1}"] = ratio(quarter, "nats per token")
                if all(r.by_quarter for r in rows):  # absent in older records
                    metrics |= self._quarter(rows, q, ratio)
        metrics["scored_bytes"] = stats.Metric(
            sum(r.scored_bytes for r in rows), None, None, len(rows), "bytes of text"
        )
        return metrics

    @staticmethod
    def _quarter(rows: Sequence[PerplexityRow], q: int, ratio: Callable[..., stats.Metric]) -> dict[str, stats.Metric]:
        """Return the other metrics of a quarter of the scored tokens, `ratio` as in `metrics`."""
        found = {}
        sizes = [r.by_quarter["scored_bytes"][q] * math.log(2) for r in rows]
        if all(sizes):
            nats = [r.quarters[q][0] for r in rows]
            found["bits_per_byte"] = ratio(list(zip(nats, sizes, strict=True)), "bits per byte")
        for name, unit in UNITS.items():
            found[name] = ratio([(r.by_quarter[name][q], r.quarters[q][1]) for r in rows], unit)
        return {f"{name}_quarter_{q + 1}": metric for name, metric in found.items()}


def line_break_tokens(loaded: LoadedModel) -> torch.Tensor:
    """Return for each token whether its text holds a line break, (vocabulary,) bool."""
    count = loaded.model.config.vocab_size
    known = min(count, len(loaded.tokenizer))
    texts = loaded.tokenizer.batch_decode([[token] for token in range(known)])
    return torch.tensor(["\n" in text for text in texts] + [False] * (count - known))


@torch.inference_mode()
def score_windows(loaded: LoadedModel, batch: Sequence[Window], line_breaks: torch.Tensor) -> list[PerplexityRow]:
    """Return a row for each window, computed under the model's present attention.

    Args:
        loaded: the model.
        batch: windows of one size.
        line_breaks: as `line_break_tokens` returns it.

    Raises:
        FloatingPointError: if the model's output is not finite.
    """
    predicted = predict(loaded, torch.stack([w.ids for w in batch]), batch[0].stride, line_breaks)
    return [_row(window, predictions) for window, predictions in zip(batch, predicted, strict=True)]


@dataclass(frozen=True)
class Predictions:
    """Predictions of the scored tokens of a window, each (stride,), float64 on the CPU.

    Attributes:
        nats: negative log-probability of the true token.
        decision_nats: negative log-probability that the token has a line break or has none,
            whichever is true.
        rank: 1 + the number of tokens that are more likely.
        entropy: of the prediction in nats.
        is_break: whether the true token has a line break.
        is_first: whether it is the first of its id in the window.
    """

    nats: torch.Tensor
    decision_nats: torch.Tensor
    rank: torch.Tensor
    entropy: torch.Tensor
    is_break: torch.Tensor
    is_first: torch.Tensor


@torch.inference_mode()
def predict(loaded: LoadedModel, ids: torch.Tensor, stride: int, line_breaks: torch.Tensor) -> list[Predictions]:
    """Return the predictions of the last tokens of each window, under the model's present attention.

    Args:
        loaded: the model.
        ids: token ids (windows, context + 1).
        stride: number of scored tokens.
        line_breaks: as `line_break_tokens` returns it.

    Raises:
        FloatingPointError: if the model's output is not finite.
    """
    hidden = logits.last_hidden_state(loaded, ids[:, :-1])[:, -stride:]
    return [_predict(loaded, window, h, line_breaks) for window, h in zip(ids, hidden, strict=True)]


def _predict(loaded: LoadedModel, ids: torch.Tensor, hidden: torch.Tensor, line_breaks: torch.Tensor) -> Predictions:
    """Return the predictions of a window from the output of the last layer at the scored positions,
    (stride, width)."""
    targets = ids[-len(hidden) :]
    is_break = line_breaks[targets]
    parts: list[tuple[torch.Tensor, ...]] = []
    for part, (scores,) in logits.pieces(loaded, hidden):
        true, breaks = targets[part].to(scores.device)[:, None], line_breaks.to(scores.device)
        log_p = scores.log_softmax(-1)
        some, none = log_p[:, breaks].logsumexp(1), log_p[:, ~breaks].logsumexp(1)
        decision = torch.where(breaks[true[:, 0]], some, none)
        rank = (scores > scores.gather(1, true)).sum(1) + 1
        parts.append((-log_p.gather(1, true)[:, 0], -decision, rank, -(log_p.exp() * log_p).sum(1)))
    nats, decision_nats, rank, entropy = (torch.cat(column).double().cpu() for column in zip(*parts, strict=True))
    return Predictions(nats, decision_nats, rank, entropy, is_break, first_occurrences(ids, len(hidden)))


def _row(window: Window, predicted: Predictions) -> PerplexityRow:
    nats, rank, is_break = predicted.nats, predicted.rank, predicted.is_break
    tokens, size = window.stride, int(window.sizes.sum())
    quarter = torch.arange(tokens) * QUARTERS // tokens
    choice_nats = nats - predicted.decision_nats  # of the token, given whether it has a line break
    first, repeat = predicted.is_first & ~is_break, ~predicted.is_first & ~is_break
    figures = {f"top_{k}": (rank <= k).double() for k in TOP}
    figures |= {"reciprocal_rank": 1 / rank, "entropy": predicted.entropy, "scored_bytes": window.sizes.double()}
    by_quarter = {
        name: [float(values[quarter == q].sum()) for q in range(QUARTERS)] for name, values in figures.items()
    }
    break_nats = predicted.decision_nats.sum() + choice_nats[is_break].sum()
    return PerplexityRow(
        key=window.key,
        score=float(nats.sum()) / math.log(2) / size if size else None,
        nll=float(nats.sum()),
        doc_hash=window.doc_hash,
        tokens_wanted=len(window.ids) - 1,
        tokens_seen=len(window.ids) - 1,
        scored_tokens=tokens,
        scored_bytes=size,
        top={str(k): int((rank <= k).sum()) for k in TOP},
        reciprocal_ranks=float((1 / rank).sum()),
        entropies=float(predicted.entropy.sum()),
        quarters=[(float(nats[quarter == q].sum()), int((quarter == q).sum())) for q in range(QUARTERS)],
        by_quarter=by_quarter,
        classes={
            "line_breaks": (float(break_nats), int(is_break.sum())),
            "first_occurrences": (float(choice_nats[first].sum()), int(first.sum())),
            "repeats": (float(choice_nats[repeat].sum()), int(repeat.sum())),
        },
    )


def first_occurrences(ids: torch.Tensor, stride: int) -> torch.Tensor:
    """Return which of the last `stride` tokens are the first of their id in the window, (stride,)
    bool."""
    tokens = ids.tolist()
    first_at = {token: position for position, token in reversed(list(enumerate(tokens)))}
    return torch.tensor([first_at[tokens[p]] == p for p in range(len(tokens) - stride, len(tokens))])


PERPLEXITY = Perplexity()
