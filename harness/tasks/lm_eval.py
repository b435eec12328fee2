"""lm-eval's tasks as tasks of the runner: RULER by `task=ruler`, any of its tasks by `task=lm_eval`."""

import functools
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from harness import stats
from harness.cell import Cell
from harness.errors import UserError
from harness.lmeval import catalogue
from harness.models.load import load_tokenizer
from harness.tasks.base import PlannedTask, Prepared, TaskContext


@dataclass
class LeafOptions:
    """max_gen_toks: tokens generated at most, instead of the task's own number. num_fewshot: examples before each
    question, instead of the task's own number. metadata: what the task's data is made from (lm-eval's --metadata)."""

    max_gen_toks: int | None = None
    num_fewshot: int | None = None
    metadata: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class LmEvalTask:
    """One leaf of lm-eval's catalogue."""

    leaf: catalogue.Leaf
    generates: int
    rows_are: str = "samples"
    needs_model: bool = True
    needs_trained_weights: bool = True

    @property
    def name(self) -> str:
        return self.leaf.name

    @property
    def natural_text(self) -> bool:
        return not self.leaf.synthetic

    def identity(self, options: LeafOptions) -> dict:
        return {**self.leaf.identity, **vars(options)}

    def check(self, options: LeafOptions, cell: Cell) -> None:
        if self.leaf.ruler and "max_seq_lengths" in options.metadata:
            raise UserError(
                f"task={self.name} has the length that context says: leave max_seq_lengths out of metadata."
            )
        if self._samples_its_answers:
            raise UserError(f"task={self.name} is not supported: it samples its answers, which no resumed run repeats.")

    def amount(self, options: LeafOptions, cell: Cell, samples: int, batch: int) -> tuple[int, int]:
        return samples, batch

    @functools.cached_property
    def _samples_its_answers(self) -> bool:
        return bool((self.leaf.config(functions=False).get("generation_kwargs") or {}).get("do_sample"))

    def prepare(self, options: LeafOptions, cell: Cell, samples: int, folder: Path) -> Prepared:
        from harness.lmeval.documents import documents

        return documents(self._request(options, cell, samples), folder, load_tokenizer(cell.model))

    def run(self, options: LeafOptions, context: TaskContext) -> Iterator[list[dict]]:
        from harness.lmeval import scoring
        from harness.lmeval.model import RunnerLM

        cell = context.cell
        place = context.data.place
        task = scoring.load_task(self._request(options, cell, context.samples), place, options.max_gen_toks)
        documents = task.eval_docs
        within = replace(context, samples=min(context.samples, len(documents)))
        batches = list(within.batches())
        loaded = context.model()
        sizes = {"context": cell.context, "generates": self.generates, "batch": context.batch}
        lm = RunnerLM(loaded, **sizes, evict=cell.attention.evict)
        scoring.refuse_long(task, lm, [(k, documents[k]) for _, keys in batches for k in keys])
        weights = functools.cache(cell.weights)
        for draw, keys in batches:
            started = time.perf_counter()
            with loaded.attention.use(weights(draw)):
                rows = scoring.rows_of(task, lm, [(k, documents[k]) for k in keys])
            seconds = (time.perf_counter() - started) / len(rows)
            yield [{**row, "draw": draw, "seconds": seconds} for row in rows]

    def metrics(self, options: LeafOptions, rows: Sequence[Mapping], *, clustered: bool) -> dict[str, stats.Metric]:
        from harness.lmeval import scoring

        return scoring.metrics(self.leaf, rows, clustered=clustered)

    def _request(self, options: LeafOptions, cell: Cell, samples: int):
        from harness.lmeval.documents import Request

        return Request(
            leaf=self.leaf,
            context=cell.context,
            data_seed=cell.data_seed,
            tokenizer=cell.model.tokenizer,
            samples=samples,
            metadata=options.metadata,
            num_fewshot=options.num_fewshot,
        )


@dataclass
class RulerOptions:
    """names: which of RULER's 13 tasks; by default those that need no data from a network."""

    names: list[str] = field(default_factory=lambda: list(catalogue.SYNTHETIC))
    max_gen_toks: int | None = None


class Ruler:
    name = "ruler"
    options = RulerOptions

    def tasks(self, options: RulerOptions) -> list[PlannedTask]:
        return _planned(catalogue.ruler_leaves(options.names), LeafOptions(options.max_gen_toks), "task.ruler")


@dataclass
class LmEvalOptions(LeafOptions):
    """names: tasks, groups or tags. include_path: a folder of YAML definitions of your own."""

    names: list[str] = field(default_factory=list)
    include_path: str | None = None


class LmEval:
    name = "lm_eval"
    options = LmEvalOptions

    def tasks(self, options: LmEvalOptions) -> list[PlannedTask]:
        if not options.names:
            raise UserError("task=lm_eval needs names: set task.lm_eval.names=[longbench_narrativeqa,wikitext].")
        leaves = catalogue.leaves(options.names, options.include_path)
        own = LeafOptions(options.max_gen_toks, options.num_fewshot, options.metadata)
        return _planned(leaves, own, "task.lm_eval")


def _planned(leaves: list[catalogue.Leaf], options: LeafOptions, prefix: str) -> list[PlannedTask]:
    if not leaves:
        raise UserError(f"{prefix}.names is empty: name at least one task.")
    for name, least in (("max_gen_toks", 1), ("num_fewshot", 0)):
        value = getattr(options, name)
        if value is not None and value < least:
            raise UserError(f"{prefix}.{name} must be at least {least}, not {value}.")
    return [PlannedTask(LmEvalTask(leaf, options.max_gen_toks or leaf.generates), options) for leaf in leaves]


RULER = Ruler()
LM_EVAL = LmEval()
