"""Requests of an lm-eval task, their rows, and its metrics with intervals of our own."""

import hashlib
import inspect
import math
import unittest.mock
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from harness.common import stats
from harness.common.errors import UserError
from harness.results.schema import SampleRow
from harness.tasks.base import canonical
from harness.tasks.lmeval.catalogue import Leaf
from harness.tasks.lmeval.documents import Request, build_task, task_config

FEWSHOT_SEED = 1234  # lm-eval's own default
UNITS = {
    "bits_per_byte": "bits per byte",
    "byte_perplexity": "perplexity per byte",
    "word_perplexity": "perplexity per word",
    "perplexity": "perplexity",
}
KEPT = 2000  # characters of a prediction or target that a row keeps


def load_task(request: Request, place: Path, max_gen_toks: int | None):
    """lm-eval's task object over the documents in `place`."""
    import datasets

    datasets.disable_caching()  # what a task's own code makes of the documents is made anew
    splits = [p.name for p in place.iterdir() if p.is_dir()]
    config = task_config(request, {})
    kept = {s: datasets.load_from_disk(str(place / s)) for s in splits}
    config["custom_dataset"] = lambda **_: kept
    for split in ("training_split", "validation_split", "fewshot_split"):
        if not config.get("num_fewshot") and config.get(split) not in (None, *splits):
            config[split] = None  # read for few-shot examples only
    if max_gen_toks is not None:
        config["generation_kwargs"] = {**(config.get("generation_kwargs") or {}), "max_gen_toks": max_gen_toks}
    with unittest.mock.patch.object(datasets, "load_dataset", lambda *_, **__: kept):  # what Python classes call
        return build_task(config)


def lengths(task, lm, documents: Iterable[tuple[int, Mapping]]) -> dict[int, int]:
    """Tokens of the longest prompt of each document, by number. None for rolling likelihoods: of
    their windows of `context` tokens nothing is left out."""
    found = {}
    for number, document in documents:
        requests = _requests(task, number, document, lm.framing)
        if requests[0].request_type == "loglikelihood_rolling":
            return {}
        found[number] = max(lm.tokens(r) for r in requests)
    return found


def left_out(task, lm, number: int, document: Mapping) -> SampleRow:
    """The row of a document whose prompt is longer than the context: nothing was asked."""
    made = _requests(task, number, document, lm.framing)
    return SampleRow(
        key=number,
        score=None,
        values={},
        prediction="",
        doc_hash=_doc_hash(document, made),
        tokens_wanted=max(lm.tokens(r) for r in made),
        tokens_seen=0,
        too_long=True,
    )


def rows_of(task, lm, documents: Sequence[tuple[int, Mapping]]) -> list[SampleRow]:
    """Answer documents of one batch and score them by the task's own functions: a row for each."""
    made = [_requests(task, number, document, lm.framing) for number, document in documents]
    flat = [r for requests in made for r in requests]
    repeated = [r for r in flat for _ in range(r.repeats)]
    for kind in dict.fromkeys(r.request_type for r in repeated):
        of_kind = [r for r in repeated if r.request_type == kind]
        for request, answer in zip(of_kind, getattr(lm, kind)(of_kind), strict=True):
            request.resps.append(answer)
    task._instances = flat
    task.apply_filters()
    return [_row(task, lm, number, m, document) for m, (number, document) in zip(made, documents, strict=True)]


def _requests(task, number: int, document: Mapping, framing: Mapping = MappingProxyType({})) -> list:
    """Document `number` as requests to a model. Its few-shot examples depend on nothing but the
    number, so that they are the same in every attention and after a resume. framing: see
    RunnerLM."""
    task.set_fewshot_seed(FEWSHOT_SEED + number)
    shots = task.config.num_fewshot or 0
    if not set(framing) <= set(inspect.signature(task.fewshot_context).parameters):
        raise UserError(
            f"task={task.config.task} makes its prompts by code of its own that takes no chat template and no system "
            "instruction: leave them out."
        )
    context = task.fewshot_context(document, num_fewshot=shots, gen_prefix=task.doc_to_prefix(document), **framing)
    chat = {name: framing[name] for name in ("apply_chat_template", "chat_template") if name in framing}
    about = {"metadata": (task.config.task, number, task.config.repeats), **chat}
    made = task.construct_requests(doc=document, ctx=context, **about)
    return made if isinstance(made, list) else [made]


def _doc_hash(document: Mapping, made: Sequence) -> str:
    return hashlib.sha256(canonical([document, [r.args for r in made]]).encode()).hexdigest()[:16]


def _row(task, lm, number: int, made: list, document: Mapping) -> SampleRow:
    values: dict[str, Any] = {}
    for name in made[0].filtered_resps:
        found = task.process_results(document, [r.filtered_resps[name] for r in made])
        suffix = "" if len(made[0].filtered_resps) == 1 else f"_{name}"
        values |= {metric + suffix: _plain(value) for metric, value in found.items()}
    tokens = max(lm.tokens(r) for r in made)
    first = next(iter(made[0].filtered_resps.values()))
    values = _without_placeholders(values, lm.context)
    return SampleRow(
        key=number,
        score=_score(values),
        values=values,
        prediction=str(first)[:KEPT],
        target=str(task.doc_to_target(document))[:KEPT],
        doc_hash=_doc_hash(document, made),
        tokens_wanted=tokens,
        tokens_seen=tokens,
    )


def _without_placeholders(values: dict, context: int) -> dict:
    """RULER names its score by the length and fills in -1 for others: the one that was measured is
    the accuracy."""
    lengths = [name for name in values if name.isdigit()]
    if not lengths:
        return values
    return {"accuracy": values[str(context)]} | {k: v for k, v in values.items() if k not in lengths}


def _score(values: Mapping[str, Any]) -> float | None:
    """The figure by which samples are compared in pairs: the first metric, or a text's own bits per
    byte."""
    if isinstance(values.get("bits_per_byte"), list):
        likelihood, size = values["bits_per_byte"]
        return -likelihood / size / math.log(2)
    first = next(iter(values.values()))
    return float(first) if isinstance(first, (int, float)) else None


def _plain(value: Any) -> Any:
    """A metric's value as JSON has it."""
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return float(value) if isinstance(value, bool) else value


def metrics(leaf: Leaf, rows: Sequence[SampleRow], *, clustered: bool) -> dict[str, stats.Metric]:
    """The task's metrics by its own aggregation, each with an interval computed here (lm-eval's
    bootstrap knows nothing of mask draws). Means of scores from 0 to 1: as for retrieval.
    Everything else: the jackknife. Of a text's perplexities bits per byte comes first: it is what
    tables show. Documents that were left out are counted, last."""
    left_out = sum(r.too_long for r in rows)
    rows = [r for r in rows if not r.too_long]
    draws = [r.draw for r in rows]
    functions = _aggregations(leaf)
    found: dict[str, stats.Metric] = {}
    for name in sorted(rows[0].values, key=lambda name: name != "bits_per_byte"):
        values = [r.values[name] for r in rows]
        # a metric under one of several filters has the filter's name behind its own
        own = [m for m in functions if name == m or name.startswith(f"{m}_")]
        function = functions[max(own, key=len)] if own else _mean
        unit = UNITS.get(name, "score")
        if function is _mean and unit == "score" and all(isinstance(v, (int, float)) and 0 <= v <= 1 for v in values):
            unit = "fraction" if all(v in (0, 1) for v in values) else unit
            found[name] = stats.proportion(values, draws, clustered=clustered, unit=unit)
        else:
            found[name] = stats.jackknife(values, draws, function, clustered=clustered, unit=unit)
    if left_out:
        found["too_long"] = stats.Metric(left_out, None, None, left_out + len(rows), "documents")
    return found


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _aggregations(leaf: Leaf) -> dict[str, Callable]:
    """Metric name -> the function over samples that lm-eval reports."""
    if leaf.ruler:
        return {}  # the mean over those of this length, and others are not in the rows
    from lm_eval.api import metrics as _  # noqa: F401  (registers them)
    from lm_eval.api.registry import DEFAULT_METRIC_REGISTRY, get_aggregation, get_metric_aggregation

    config = leaf.config(functions=True)
    if kind := config.get("class"):
        return kind.aggregation(kind.__new__(kind))  # constant in every class; an object would want the data
    listed = config.get("metric_list") or [{"metric": m} for m in DEFAULT_METRIC_REGISTRY[config["output_type"]]]
    found = {}
    for entry in listed:
        name = entry["metric"] if isinstance(entry["metric"], str) else entry["metric"].__name__
        given = entry.get("aggregation") or get_metric_aggregation(name)
        function = get_aggregation(given) if isinstance(given, str) else given
        found[name] = _mean if function is get_aggregation("mean") else function
    return found
