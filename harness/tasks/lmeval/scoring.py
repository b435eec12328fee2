"""Requests of an lm-eval task, their rows, and its metrics with the runner's intervals."""

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

FEWSHOT_SEED = 1234  # lm-eval's default
UNITS = {
    "bits_per_byte": "bits per byte",
    "byte_perplexity": "perplexity per byte",
    "word_perplexity": "perplexity per word",
    "perplexity": "perplexity",
}
MAX_TEXT = 2000  # characters of a stored prediction or target


def load_task(request: Request, place: Path, max_gen_toks: int | None):
    """Return lm-eval's task object over prepared documents.

    Args:
        request: the values that the documents depend on.
        place: folder of the documents.
        max_gen_toks: maximum number of generated tokens, or None for the task's number.
    """
    import datasets

    datasets.disable_caching()  # cached results of the task's code may be outdated
    splits = [p.name for p in place.iterdir() if p.is_dir()]
    config = task_config(request, {})
    data = {s: datasets.load_from_disk(str(place / s)) for s in splits}
    config["custom_dataset"] = lambda **_: data
    for split in ("training_split", "validation_split", "fewshot_split"):
        if not config.get("num_fewshot") and config.get(split) not in (None, *splits):
            config[split] = None  # needed for few-shot examples only
    if max_gen_toks is not None:
        config["generation_kwargs"] = {**(config.get("generation_kwargs") or {}), "max_gen_toks": max_gen_toks}
    with unittest.mock.patch.object(datasets, "load_dataset", lambda *_, **__: data):  # called by Python classes
        return build_task(config)


def prompt_lengths(task, lm, documents: Iterable[tuple[int, Mapping]]) -> dict[int, int]:
    """Return the tokens of each document's longest prompt, by number.

    Args:
        task: lm-eval's task.
        lm: the `RunnerLM`.
        documents: (number, document).

    Returns:
        an empty dict for rolling likelihoods, whose windows of `context` tokens cover any text.
    """
    lengths = {}
    for number, document in documents:
        requests = _requests(task, number, document, lm.framing)
        if requests[0].request_type == "loglikelihood_rolling":
            return {}
        lengths[number] = max(lm.tokens(r) for r in requests)
    return lengths


def too_long_row(task, lm, number: int, document: Mapping) -> SampleRow:
    """Return the row of a document that is skipped because its prompt exceeds the context.

    Args:
        task: lm-eval's task.
        lm: the `RunnerLM`.
        number: number of the document.
        document: the document.
    """
    requests = _requests(task, number, document, lm.framing)
    return SampleRow(
        key=number,
        score=None,
        values={},
        prediction="",
        doc_hash=_doc_hash(document, requests),
        tokens_wanted=max(lm.tokens(r) for r in requests),
        tokens_seen=0,
        too_long=True,
    )


def score_documents(task, lm, documents: Sequence[tuple[int, Mapping]]) -> list[SampleRow]:
    """Return a row for each document of a batch, scored by the task's functions.

    Args:
        task: lm-eval's task.
        lm: the `RunnerLM`.
        documents: (number, document).
    """
    by_document = [_requests(task, number, document, lm.framing) for number, document in documents]
    flat = [r for group in by_document for r in group]
    repeated = [r for r in flat for _ in range(r.repeats)]
    for kind in dict.fromkeys(r.request_type for r in repeated):
        batch = [r for r in repeated if r.request_type == kind]
        for request, answer in zip(batch, getattr(lm, kind)(batch), strict=True):
            request.resps.append(answer)
    task._instances = flat
    task.apply_filters()
    pairs = zip(by_document, documents, strict=True)
    return [_row(task, lm, number, requests, document) for requests, (number, document) in pairs]


def _requests(task, number: int, document: Mapping, framing: Mapping = MappingProxyType({})) -> list:
    """Return the requests of a document.

    Its few-shot examples depend only on its number, and so are equal for all attentions and after a
    resume. framing: see RunnerLM.
    """
    task.set_fewshot_seed(FEWSHOT_SEED + number)
    shots = task.config.num_fewshot or 0
    if not set(framing) <= set(inspect.signature(task.fewshot_context).parameters):
        raise UserError(
            f"task={task.config.task} makes its prompts by code of its own that takes no chat template and no system "
            "instruction: leave them out."
        )
    context = task.fewshot_context(document, num_fewshot=shots, gen_prefix=task.doc_to_prefix(document), **framing)
    chat = {name: framing[name] for name in ("apply_chat_template", "chat_template") if name in framing}
    options = {"metadata": (task.config.task, number, task.config.repeats), **chat}
    requests = task.construct_requests(doc=document, ctx=context, **options)
    return requests if isinstance(requests, list) else [requests]


def _doc_hash(document: Mapping, requests: Sequence) -> str:
    return hashlib.sha256(canonical([document, [r.args for r in requests]]).encode()).hexdigest()[:16]


def _row(task, lm, number: int, requests: list, document: Mapping) -> SampleRow:
    values: dict[str, Any] = {}
    for name in requests[0].filtered_resps:
        scores = task.process_results(document, [r.filtered_resps[name] for r in requests])
        suffix = "" if len(requests[0].filtered_resps) == 1 else f"_{name}"
        values |= {metric + suffix: _to_json(value) for metric, value in scores.items()}
    tokens = max(lm.tokens(r) for r in requests)
    first = next(iter(requests[0].filtered_resps.values()))
    values = _without_placeholders(values, lm.context)
    return SampleRow(
        key=number,
        score=_score(values),
        values=values,
        prediction=str(first)[:MAX_TEXT],
        target=str(task.doc_to_target(document))[:MAX_TEXT],
        doc_hash=_doc_hash(document, requests),
        tokens_wanted=tokens,
        tokens_seen=tokens,
    )


def _without_placeholders(values: dict, context: int) -> dict:
    """Rename RULER's score to "accuracy": RULER names it by length, with -1 for other lengths."""
    lengths = [name for name in values if name.isdigit()]
    if not lengths:
        return values
    return {"accuracy": values[str(context)]} | {k: v for k, v in values.items() if k not in lengths}


def _score(values: Mapping[str, Any]) -> float | None:
    """Return the score for paired comparisons: the first metric, or the bits per byte of a text."""
    if isinstance(values.get("bits_per_byte"), list):
        likelihood, size = values["bits_per_byte"]
        return -likelihood / size / math.log(2)
    first = next(iter(values.values()))
    return float(first) if isinstance(first, (int, float)) else None


def _to_json(value: Any) -> Any:
    """Return a metric's value as plain JSON."""
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    if isinstance(value, (list, tuple)):
        return [_to_json(v) for v in value]
    return float(value) if isinstance(value, bool) else value


def metrics(leaf: Leaf, rows: Sequence[SampleRow], *, clustered: bool) -> dict[str, stats.Metric]:
    """Return the task's metrics, aggregated as lm-eval does, with the runner's intervals.

    lm-eval's bootstrap ignores mask draws. Means of scores from 0 to 1 get the interval of a
    proportion, as for retrieval, and all other metrics a jackknife. bits_per_byte comes first, for
    tables; the number of skipped documents comes last.

    Args:
        leaf: the task.
        rows: all rows.
        clustered: whether rows are clustered by draw.
    """
    skipped = sum(r.too_long for r in rows)
    rows = [r for r in rows if not r.too_long]
    draws = [r.draw for r in rows]
    functions = _aggregations(leaf)
    results: dict[str, stats.Metric] = {}
    for name in sorted(rows[0].values, key=lambda name: name != "bits_per_byte"):
        values = [r.values[name] for r in rows]
        # with several filters, a metric's name ends with the filter's name
        candidates = [m for m in functions if name == m or name.startswith(f"{m}_")]
        function = functions[max(candidates, key=len)] if candidates else _mean
        unit = UNITS.get(name, "score")
        if function is _mean and unit == "score" and all(isinstance(v, (int, float)) and 0 <= v <= 1 for v in values):
            unit = "fraction" if all(v in (0, 1) for v in values) else unit
            results[name] = stats.proportion(values, draws, clustered=clustered, unit=unit)
        else:
            results[name] = stats.jackknife(values, draws, function, clustered=clustered, unit=unit)
    if skipped:
        results["too_long"] = stats.Metric(skipped, None, None, skipped + len(rows), "documents")
    return results


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _aggregations(leaf: Leaf) -> dict[str, Callable]:
    """Return lm-eval's aggregation functions by metric."""
    if leaf.ruler:
        return {}  # means: rows hold only scores of this length
    from lm_eval.api import metrics as _  # noqa: F401  (registers them)
    from lm_eval.api.registry import DEFAULT_METRIC_REGISTRY, get_aggregation, get_metric_aggregation

    config = leaf.config(functions=True)
    if kind := config.get("class"):
        return kind.aggregation(kind.__new__(kind))  # constant in every class; a complete object needs the data
    entries = config.get("metric_list") or [{"metric": m} for m in DEFAULT_METRIC_REGISTRY[config["output_type"]]]
    aggregations = {}
    for entry in entries:
        name = entry["metric"] if isinstance(entry["metric"], str) else entry["metric"].__name__
        aggregation = entry.get("aggregation") or get_metric_aggregation(name)
        function = get_aggregation(aggregation) if isinstance(aggregation, str) else aggregation
        aggregations[name] = _mean if function is get_aggregation("mean") else function
    return aggregations
