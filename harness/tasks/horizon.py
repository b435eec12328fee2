"""Horizon: how far back a row sees under a model's slopes, measured on drawn masks and predicted.
Nothing is loaded but the model's configuration."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from harness.cell import Cell
from harness.common import stats
from harness.results.schema import Number, SampleRow
from harness.tasks.base import TaskContext
from harness.tasks.model_free import ModelFreeTask
from kernels import PositionalLSH, Weights
from kernels.methods.horizon import blind_distance, half_distance, loss_probability, miss_probability
from kernels.methods.samplers import sampler_of

MEASURED_ROWS = 256  # of the second half of the context, evenly spaced
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


@dataclass
class Options:
    """task=horizon has no options."""


class HorizonRow(SampleRow):
    """One draw.

    Attributes:
        score: median over rows of the distance of the farthest key that some head of some layer
            sees beyond the sinks, at most half the context.
        seen: by distance, the share of rows in which some head of some layer sees a key there.
        seen_by_a_head: by distance, the share of rows, layers and heads that see a key there.
        flattest: the median of the distance of the farthest key that the head of the flattest slope
            sees, over rows and layers, at most half the context.
        predicted, predicted_by_a_head, predicted_horizon, predicted_flattest: of `seen`,
            `seen_by_a_head`, `score` and `flattest` in closed form, for masks that have one.
        blind: by dtype, the distance at which exp(-m d) of the flattest head vanishes in it.
    """

    score: Number
    seen: dict[str, float]
    seen_by_a_head: dict[str, float]
    flattest: float | None = None
    predicted: dict[str, float] = {}
    predicted_by_a_head: dict[str, float] = {}
    predicted_horizon: float | None = None
    predicted_flattest: float | None = None
    blind: dict[str, float] = {}


class Horizon(ModelFreeTask):
    name = "horizon"
    options = Options
    min_context = 2 * MEASURED_ROWS

    def identity(self, options: Options) -> dict:
        return {}

    def amount(self, options: Options, cell: Cell, samples: int, batch: int) -> tuple[int, int]:
        return cell.draws, 1

    row = staticmethod(HorizonRow.read)

    def run(self, options: Options, context: TaskContext) -> Iterator[list[HorizonRow]]:
        cell = context.cell
        for draw, keys in context.batches():
            weights = cell.weights(draw)
            assert weights is not None
            for key in keys:
                yield [measure(weights, cell.context, shared=cell.attention.share != "none").but(key=key, draw=draw)]

    def metrics(self, options: Options, rows: Sequence[HorizonRow], *, clustered: bool) -> dict[str, stats.Metric]:
        draws = [r.draw for r in rows]

        def mean(values: Sequence[float], unit: str) -> stats.Metric:
            return stats.mean(values, draws, clustered=clustered, unit=unit, least=0.0)

        def predicted(value: float, unit: str) -> stats.Metric:
            return stats.Metric(value, None, None, len(rows), unit)

        first, fraction = rows[0], "fraction of rows and heads"
        metrics = {"horizon": mean([float(r.score) for r in rows], "tokens")}
        if first.predicted_horizon is not None:
            metrics["horizon_predicted"] = predicted(first.predicted_horizon, "tokens")
        flattest = [r.flattest for r in rows if r.flattest is not None]  # absent in older records
        if len(flattest) == len(rows):
            metrics["horizon_flattest_head"] = mean(flattest, "tokens")
        if first.predicted_flattest is not None:
            metrics["horizon_flattest_head_predicted"] = predicted(first.predicted_flattest, "tokens")
        for distance in rows[0].seen:
            metrics[f"seen_{distance}"] = mean([r.seen[distance] for r in rows], "fraction of rows")
            if distance in first.predicted:
                metrics[f"seen_{distance}_predicted"] = predicted(first.predicted[distance], "fraction of rows")
            metrics[f"seen_by_a_head_{distance}"] = mean([r.seen_by_a_head[distance] for r in rows], fraction)
            if distance in first.predicted_by_a_head:
                value = first.predicted_by_a_head[distance]
                metrics[f"seen_by_a_head_{distance}_predicted"] = predicted(value, fraction)
        for dtype, tokens in first.blind.items():
            metrics[f"blind_{dtype}"] = predicted(tokens, "tokens")
        return metrics


def measure(layers: Sequence[Weights], context: int, *, shared: bool = False) -> HorizonRow:
    """Return the row of one draw, without its key and draw.

    Args:
        layers: weights of every layer.
        context: tokens.
        shared: whether layers or heads share draws of masks: the prediction takes them as independent.
    """
    rows = torch.linspace(context // 2, context - 1, MEASURED_ROWS).long()
    distances = [1 << k for k in range((context // 2).bit_length())]
    reach = torch.cat([_reach(weights, rows) for weights in layers])  # (layers x heads, rows)
    farthest = reach.amax(0).clamp_max(context // 2)
    flattest = int(layers[0].slopes.argmin())
    of_flattest = reach.unflatten(0, (len(layers), -1))[:, flattest].clamp_max(context // 2)
    row = HorizonRow(
        key=0,
        score=float(farthest.double().median()),
        seen={str(d): float((farthest >= d).double().mean()) for d in distances},
        seen_by_a_head={str(d): float((reach >= d).double().mean()) for d in distances},
        flattest=float(of_flattest.double().median()),
        blind={name: float(blind_distance(layers[0].slopes, dtype).max()) for name, dtype in DTYPES.items()},
    )
    first = layers[0]
    if shared or not isinstance(first, PositionalLSH) or first.masks.grid is not None:
        return row
    if sampler_of(first.sampler).log_coverage is None:
        return row
    options: dict[str, Any] = {"layers": len(layers), "sampler": first.sampler, "near": first.near}
    lost = loss_probability(first.slopes, torch.tensor(distances), first.count, **options)
    of_a_head = {name: value for name, value in options.items() if name != "layers"}
    missed = miss_probability(first.slopes, torch.tensor(distances), first.count, **of_a_head).mean(0)
    predicted, by_a_head = (
        {str(d): 1 - float(p) for d, p in zip(distances, probability, strict=True)} for probability in (lost, missed)
    )
    return row.but(
        predicted=predicted,
        predicted_by_a_head=by_a_head,
        predicted_horizon=half_distance(first.slopes, first.count, **options),
        predicted_flattest=half_distance(first.slopes[[flattest]], first.count, **of_a_head),
    )


def _reach(weights: Weights, rows: torch.Tensor) -> torch.Tensor:
    """Return the distance of each row's first visited column beyond the sinks, (H, rows); -1 where
    a row sees sinks alone."""
    heads = torch.arange(weights.heads)
    rows = rows[None].expand(len(heads), -1)
    return (rows - weights.reach(heads, rows)[0]).clamp_min(-1)


HORIZON = Horizon()
