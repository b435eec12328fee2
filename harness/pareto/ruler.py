"""RULER's summary of its tasks: the average, and the effective length.

C.-P. Hsieh et al. (2024), RULER: What's the real context size of your long-context language models?
(arXiv 2404.06654, and the table of github.com/NVIDIA/RULER). A model handles a length if its average
over the 13 tasks exceeds 85.6 %, that of Llama2-7B (chat) at 4K. The weighted averages over lengths
have weights that increase or decrease linearly with the length's place.
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness.analysis.reader import Comparison, Record
from harness.common.files import short_hash
from harness.tasks.lmeval.catalogue import RULER

THRESHOLD = 0.856


@dataclass(frozen=True)
class Average:
    """The summary of one attention.

    Attributes:
        model, label: of the attention.
        tasks: the tasks that are there at every length.
        by_length: mean accuracy of these tasks by context.
    """

    model: str
    label: str
    tasks: list[str]
    by_length: dict[int, float]

    @classmethod
    def read(cls, value: dict[str, Any]) -> "Average":
        """Return the summary of a record, whose keys are texts."""
        return cls(**{**value, "by_length": {int(k): v for k, v in value["by_length"].items()}})

    @property
    def effective_length(self) -> int | None:
        """The largest length whose average exceeds the threshold; None without one."""
        return effective_length(self.by_length)


def averages(compared: Sequence[Comparison]) -> list[Average]:
    """Return the summaries of a store's RULER tasks, by model and attention."""
    found: dict[tuple, dict[str, dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
    for q in compared:
        if q.task in RULER:
            for r in q.records:
                if r.score:
                    found[q.model, r.cell.label, _setting(r)][q.task][q.context] = float(r.score.value)
    return [_average(model, label, by_task) for (model, label, _), by_task in found.items()]


def _setting(record: Record) -> str:
    """What the cells of one average share besides their label: all but the context."""
    cell = {**record.identity.as_json(), "context": None, "attn": None}
    return short_hash({"cell": cell, "examples": record.options.get("num_fewshot")})


def _average(model: str, label: str, by_task: Mapping[str, Mapping[int, float]]) -> Average:
    lengths = sorted({n for scores in by_task.values() for n in scores})
    tasks = [task for task in RULER if task in by_task and all(n in by_task[task] for n in lengths)]
    means = {n: math.fsum(by_task[t][n] for t in tasks) / len(tasks) for n in lengths} if tasks else {}
    return Average(model, label, tasks, means)


def effective_length(by_length: Mapping[int, float]) -> int | None:
    """Return the largest length whose average exceeds THRESHOLD; None without one."""
    return max((length for length, average in by_length.items() if average > THRESHOLD), default=None)


def weighted_average(by_length: Mapping[int, float], *, increasing: bool) -> float:
    """Return the mean over lengths with weights 1 to k, for the longest k (increasing) or 1."""
    ordered = [by_length[length] for length in sorted(by_length, reverse=not increasing)]
    return math.fsum(w * a for w, a in enumerate(ordered, 1)) / (len(ordered) * (len(ordered) + 1) / 2)
