"""Fidelity: how close the model's output stays to its output under exact ALiBi, on the same text.

Both run in this task, one after the other, on every window.
"""

import functools
import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

import torch

from harness.attentions.registry import EXACT
from harness.cell import Cell
from harness.common import stats
from harness.common.errors import UserError, choose
from harness.models.load import LoadedModel
from harness.results.schema import Number, SampleRow
from harness.tasks.base import TaskContext
from harness.tasks.text import logits, windows
from harness.tasks.text.windows import QUARTERS, TextTask, Window, stride_of, window_batches
from kernels import Weights, attend

ATTRIBUTIONS = ("none", "layers", "heads")
Layers = Sequence[Weights] | None


@dataclass(kw_only=True)
class Options(windows.TextOptions):
    """Options of task=fidelity.

    attribution: "layers" also measures the divergence with one layer approximated at a time and
        all others exact, "heads" with one head of one layer at a time. They take as many forward
        passes as there are layers or heads.
    crossed: whether every window is measured under every draw, which separates the variance of
        draws from that of texts. It takes a forward pass for each draw.
    sink_tokens: number of first tokens of a window whose exact attention is measured in every head;
        0 for none.
    """

    attribution: str = "none"
    crossed: bool = False
    sink_tokens: int = 0


class FidelityRow(SampleRow):
    """One window. Figures are over its scored tokens.

    Attributes:
        score: mean divergence in nats; here lower is better.
        scored_tokens: number of scored tokens.
        quarters: mean divergence of each quarter of the scored tokens, from the first on.
        agreements: number of tokens with the same likeliest prediction.
        logits_change, logits_total: squared norms of the change of the logits and of the exact
            logits, both without their mean over the vocabulary, which no probability depends on.
        layers_change, layers_total: squared norms of the change of every layer's output and of the
            exact output, the last after the final normalisation.
        attribution: mean divergence with one layer (or head) approximated, by "LAYER" or
            "LAYER_HEAD", from 1 on.
        by_draw: mean divergence under each draw, if the draws are crossed with the windows.
        sink_mass: mean exact attention on the first tokens, [layer][head].
    """

    score: Number
    scored_tokens: int
    quarters: list[float]
    agreements: int
    logits_change: float
    logits_total: float
    layers_change: list[float]
    layers_total: list[float]
    attribution: dict[str, float] = {}
    by_draw: list[float] = []
    sink_mass: list[list[float]] = []


class Fidelity(TextTask):
    name = "fidelity"
    options = Options

    def identity(self, options: Options) -> dict:
        asked, later = super().identity(options), ("crossed", "sink_tokens")
        return {name: value for name, value in asked.items() if name not in later or value}  # added to the rest

    def check(self, options: Options, cell: Cell) -> None:
        """Raise UserError for an invalid text, stride, attribution or number of first tokens."""
        if not 0 <= options.sink_tokens <= cell.context:
            raise UserError(
                f"task.fidelity.sink_tokens must be from 0 to context={cell.context}, not {options.sink_tokens}."
            )
        choose("task.fidelity.attribution", options.attribution, ATTRIBUTIONS)
        if options.attribution != "none" and cell.attention.native:
            raise UserError(
                f"task.fidelity.attribution={options.attribution} needs an attention of the harness: "
                f"attn={cell.attention.name} runs the checkpoint's code. Use attribution=none."
            )
        super().check(options, cell)
        if stride_of(options, cell.context) < QUARTERS:
            raise UserError(f"task.fidelity.stride must be at least {QUARTERS}: figures are given by quarter of it.")

    row = staticmethod(FidelityRow.read)

    def run(self, options: Options, context: TaskContext) -> Iterator[list[FidelityRow]]:
        loaded, weights = context.model(), functools.cache(context.cell.weights)
        exact = replace(context.cell, attention=EXACT).weights(0)
        assert exact is not None
        for draw, batch, started in window_batches(options, context):
            crossed = [weights(d) for d in range(context.cell.draws)] if options.crossed else []
            rows = compare_windows(
                loaded,
                batch,
                exact,
                weights(draw),
                options.attribution,
                crossed=crossed,
                sink_tokens=options.sink_tokens,
            )
            seconds = (time.perf_counter() - started) / len(rows)
            yield [row.but(draw=draw, seconds=seconds) for row in rows]

    def metrics(self, options: Options, rows: Sequence[FidelityRow], *, clustered: bool) -> dict[str, stats.Metric]:
        draws = [r.draw for r in rows]

        def nats(values: list[float]) -> stats.Metric:
            return stats.mean(values, draws, clustered=clustered, unit="nats per token", least=0.0)

        def ratio(sums: list[tuple[float, float]], unit: str, figure: Callable[[float], float] = float) -> stats.Metric:
            return stats.ratio(sums, draws, clustered=clustered, unit=unit, figure=figure)

        metrics = {"kl": nats([float(r.score) for r in rows])}
        for q in range(QUARTERS):
            metrics[f"kl_quarter_{q + 1}"] = nats([r.quarters[q] for r in rows])
        agreements = [(float(r.agreements), float(r.scored_tokens)) for r in rows]
        metrics["top_1_agreement"] = ratio(agreements, "fraction of tokens")
        error = "relative error"
        metrics["logits_error"] = ratio([(r.logits_change, r.logits_total) for r in rows], error, math.sqrt)
        for layer in range(len(rows[0].layers_change)):
            changes = [(r.layers_change[layer], r.layers_total[layer]) for r in rows]
            metrics[f"layer_{layer + 1}_error"] = ratio(changes, error, math.sqrt)
        table = [r.by_draw for r in rows]
        if len(rows) > 1 and len(rows[0].by_draw) > 1:
            for name, variance in zip(("texts", "draws", "rest"), stats.variance_parts(table), strict=True):
                sd = math.sqrt(variance)
                metrics[f"kl_sd_{name}"] = stats.Metric(sd, None, None, len(rows), "nats per token")
        masses = [torch.tensor(r.sink_mass, dtype=torch.float64) for r in rows if r.sink_mass]
        if masses:

            def share(values: list[float]) -> stats.Metric:  # of exact attention, whatever the draw
                return stats.mean(values, draws, clustered=False, unit="share of attention", least=0.0)

            metrics["sink_mass"] = share([float(m.mean()) for m in masses])
            for layer, head in itertools.product(*map(range, masses[0].shape)):
                metrics[f"sink_mass_{layer + 1}_{head + 1}"] = share([float(m[layer, head]) for m in masses])
        for part in rows[0].attribution:
            metrics[f"kl_only_{part}"] = nats([r.attribution[part] for r in rows])
        return metrics


@torch.inference_mode()
def compare_windows(
    loaded: LoadedModel,
    batch: Sequence[Window],
    exact: Sequence[Weights],
    weights: Layers,
    attribution: str,
    *,
    crossed: Sequence[Layers] = (),
    sink_tokens: int = 0,
) -> list[FidelityRow]:
    """Return a row for each window.

    Args:
        loaded: the model.
        batch: windows of one size.
        exact: exact ALiBi's weights of every layer.
        weights: those that are compared with them; None for the checkpoint's own attention.
        attribution: as in `Options`.
        crossed: the weights of every draw, if the draws are crossed with the windows.
        sink_tokens: as in `Options`.

    Raises:
        FloatingPointError: if the model's output is not finite.
    """
    stride = batch[0].stride
    ids = torch.stack([w.ids for w in batch])[:, :-1]

    def outputs(used: Layers) -> list[torch.Tensor]:
        with loaded.attention.use(used):
            return [h[:, -stride:] for h in logits.hidden_states(loaded, ids)]

    masses: list[torch.Tensor] = []

    def first_tokens(q, k, v, given: Weights, **options):
        """Attention, and its share on the first tokens: the output for values that are 1 there."""
        indicator = torch.zeros_like(v)
        indicator[:, :, :sink_tokens] = 1
        masses.append(attend(q, k, indicator, given, **options)[:, :, -stride:, 0].double().mean(2))
        return attend(q, k, v, given, **options)

    with ExitStack() as stack:
        if sink_tokens:
            stack.enter_context(loaded.attention.intercept(first_tokens))
        true = outputs(exact)
    changed = outputs(weights)
    by_draw = [outputs(other)[-1] if other is not weights else changed[-1] for other in crossed]
    single: dict[str, torch.Tensor] = {}
    if attribution != "none":
        assert weights is not None
        single = {
            name: _with_one_approximated(loaded, ids, exact, weights, layer, head)[:, -stride:]
            for name, layer, head in _parts(exact, attribution)
        }
    rows = []
    for i, window in enumerate(batch):
        row = _row(loaded, window, [h[i] for h in true], [h[i] for h in changed])
        divergences = {name: _mean_divergence(loaded, true[-1][i], h[i]) for name, h in single.items()}
        extra: dict[str, object] = {"attribution": divergences} if divergences else {}
        if crossed:
            extra["by_draw"] = [_mean_divergence(loaded, true[-1][i], h[i]) for h in by_draw]
        if sink_tokens:
            extra["sink_mass"] = [layer[i].tolist() for layer in masses]
        rows.append(row.but(**extra))
    return rows


def _mean_divergence(loaded: LoadedModel, true: torch.Tensor, changed: torch.Tensor) -> float:
    return float(_divergence(loaded, true, changed)[0].mean())


def _parts(exact: Sequence[Weights], attribution: str) -> Iterator[tuple[str, int, int | None]]:
    """Yield (name, layer, head) of everything that is approximated alone; head None for a layer."""
    for layer, weights in enumerate(exact):
        if attribution == "layers":
            yield f"{layer + 1}", layer, None
        else:
            yield from ((f"{layer + 1}_{head + 1}", layer, head) for head in range(weights.heads))


def _with_one_approximated(
    loaded: LoadedModel, ids: torch.Tensor, exact: Sequence[Weights], weights: Sequence[Weights], layer: int,
    head: int | None,
) -> torch.Tensor:  # fmt: skip
    """Return the output of the last layer with one layer or head approximated.

    Args:
        loaded: the model.
        ids: token ids (windows, context).
        exact, weights: as in `compare_windows`.
        layer: the layer.
        head: its head; None for the whole layer.
    """
    mixed = [weights[i] if i == layer else exact[i] for i in range(len(exact))]

    def one_head(q, k, v, given: Weights, **options):
        if given is not weights[layer]:
            return attend(q, k, v, given, **options)
        output = attend(q, k, v, exact[layer], **options)
        output[:, head] = attend(q, k, v, given, **options)[:, head]
        return output

    with ExitStack() as stack:
        stack.enter_context(loaded.attention.use(mixed))
        if head is not None:
            stack.enter_context(loaded.attention.intercept(one_head))
        return logits.last_hidden_state(loaded, ids)


def _row(
    loaded: LoadedModel, window: Window, true: Sequence[torch.Tensor], changed: Sequence[torch.Tensor]
) -> FidelityRow:
    divergence, agrees, change, total = _divergence(loaded, true[-1], changed[-1])
    quarter = torch.arange(window.stride) * QUARTERS // window.stride
    return FidelityRow(
        key=window.key,
        score=float(divergence.mean()),
        doc_hash=window.doc_hash,
        tokens_wanted=len(window.ids) - 1,
        tokens_seen=len(window.ids) - 1,
        scored_tokens=window.stride,
        quarters=[float(divergence[quarter == q].mean()) for q in range(QUARTERS)],
        agreements=int(agrees.sum()),
        logits_change=float(change.sum()),
        logits_total=float(total.sum()),
        layers_change=[_squared(b - a) for a, b in zip(true, changed, strict=True)],
        layers_total=[_squared(a) for a in true],
    )


def _divergence(loaded: LoadedModel, true: torch.Tensor, changed: torch.Tensor) -> list[torch.Tensor]:
    """Compare the predictions from two outputs of the last layer.

    Args:
        loaded: the model.
        true: exact outputs (positions, width).
        changed: approximate outputs of the same shape.

    Returns:
        For each position the divergence KL(exact || approximate) in nats, whether the likeliest
        tokens agree, and the squared norms of the change of the logits and of the exact logits,
        (positions,) float64 on the CPU.
    """
    parts = []
    for _, (a, b) in logits.pieces(loaded, true, changed):
        log_p, log_q = a.log_softmax(-1), b.log_softmax(-1)
        divergence = (log_p.exp() * (log_p - log_q)).sum(1).clamp_min(0)  # rounding may give -1e-8
        a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
        parts.append((divergence, a.argmax(1) == b.argmax(1), (b - a).square().sum(1), a.square().sum(1)))
    return [torch.cat(column).double().cpu() for column in zip(*parts, strict=True)]


def _squared(x: torch.Tensor) -> float:
    return float(x.double().square().sum())


FIDELITY = Fidelity()
