"""lm-eval's tasks as tasks of the runner: `task=ruler` for RULER, `task=lm_eval` for any task."""

import functools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from harness.cell import Cell
from harness.common import stats
from harness.common.errors import UserError, choose
from harness.models.load import load_tokenizer
from harness.results.schema import SampleRow
from harness.tasks.base import PlannedTask, Prepared, TaskContext
from harness.tasks.lmeval import catalogue, chat

TOO_LONG_POLICIES = ("refuse", "skip")
FRAMING = ("chat_template", "system_instruction", "fewshot_as_multiturn")


@dataclass
class LeafOptions:
    """Options of a leaf.

    max_gen_toks: maximum number of generated tokens; None for the task's number.
    num_fewshot: examples before each question; None for the task's number.
    metadata: parameters of the task's data (lm-eval's --metadata).
    too_long: whether prompts longer than the context refuse the task ("refuse") or are skipped
        ("skip").
    chat_template, system_instruction, fewshot_as_multiturn: as lm-eval's --apply_chat_template,
        --system_instruction and --fewshot_as_multiturn.
    """

    max_gen_toks: int | None = None
    num_fewshot: int | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    too_long: str = "refuse"
    chat_template: bool = False
    system_instruction: str | None = None
    fewshot_as_multiturn: bool = True

    @property
    def identity(self) -> dict:
        """The options for the task's id; fields added later only when set, to keep existing ids."""
        identity = {name: getattr(self, name) for name in ("max_gen_toks", "num_fewshot", "metadata")}
        if self.too_long != "refuse":
            identity["too_long"] = self.too_long
        if self.chat_template:
            identity["fewshot_as_multiturn"] = self.fewshot_as_multiturn
        if self.system_instruction:
            identity["system_instruction"] = chat.text_hash(self.system_instruction)
        return identity


@dataclass(frozen=True, eq=False)
class LmEvalTask:
    """One leaf of lm-eval's catalogue."""

    leaf: catalogue.Leaf
    generates: int
    rows_are: str = "samples"
    needs_model: bool = True
    runs_weights: bool = True
    needs_trained_weights: bool = True

    @property
    def name(self) -> str:
        return self.leaf.name

    @property
    def natural_text(self) -> bool:
        return not self.leaf.synthetic

    def identity(self, options: LeafOptions) -> dict:
        return {**self.leaf.identity, **options.identity}

    def identity_on(self, options: LeafOptions, cell: Cell) -> dict:
        identity = {}
        if options.chat_template:
            identity["chat_template"] = chat.text_hash(chat.template_of(load_tokenizer(cell.model), cell.model.source))
        if content := self._content(options, cell):
            identity["documents"] = content
        return identity

    def _content(self, options: LeafOptions, cell: Cell) -> str | None:
        """Return the fingerprint of documents that may be edited locally; computed once."""
        if not self.leaf.reads_locally:
            return None
        from harness.tasks.lmeval.documents import fingerprint

        request = self._request(options, cell, None)
        key = str(request.recipe)
        if key not in self._fingerprints:
            self._fingerprints[key] = fingerprint(request, load_tokenizer(cell.model))
        return self._fingerprints[key]

    @functools.cached_property
    def _fingerprints(self) -> dict[str, str]:
        return {}

    def check(self, options: LeafOptions, cell: Cell) -> None:
        if self.leaf.ruler and "max_seq_lengths" in options.metadata:
            raise UserError(
                f"task={self.name} has the length that context says: leave max_seq_lengths out of metadata."
            )
        if self._decodes_randomly:
            raise UserError(f"task={self.name} is not supported: it samples its answers, which no resumed run repeats.")
        self.identity_on(options, cell)  # raises for missing data before a model is loaded
        scores_whole_texts = self.leaf.config(functions=False).get("output_type") == "loglikelihood_rolling"
        if scores_whole_texts and (options.chat_template or options.system_instruction):
            raise UserError(
                f"task={self.name} scores whole texts, and asks nothing: leave task.lm_eval.chat_template and "
                "task.lm_eval.system_instruction out."
            )

    def amount(self, options: LeafOptions, cell: Cell, samples: int, batch: int) -> tuple[int, int]:
        return samples, batch

    @functools.cached_property
    def _decodes_randomly(self) -> bool:
        return bool((self.leaf.config(functions=False).get("generation_kwargs") or {}).get("do_sample"))

    def prepare(self, options: LeafOptions, cell: Cell, samples: int, folder: Path) -> Prepared:
        from harness.tasks.lmeval.documents import prepare_documents

        request = replace(self._request(options, cell, samples), content=self._content(options, cell))
        return prepare_documents(request, folder, load_tokenizer(cell.model))

    row = staticmethod(SampleRow.read)

    def run(self, options: LeafOptions, context: TaskContext) -> Iterator[list[SampleRow]]:
        """Yield rows in batches (`Task.run`).

        Raises:
            UserError: for prompts longer than the context, unless `too_long` is "skip" and others
                fit.
        """
        from harness.tasks.lmeval import scoring
        from harness.tasks.lmeval.model import RunnerLM

        cell = context.cell
        assert context.data is not None, "the task prepares data"
        place = context.data.place
        request = self._request(options, cell, context.samples)
        task = scoring.load_task(request, place, options.max_gen_toks)
        documents = task.eval_docs
        bounded = replace(context, samples=min(context.samples, len(documents)))
        batches = list(bounded.batches())
        loaded = context.model()
        sizes: dict[str, Any] = {"context": cell.context, "generates": self.generates, "batch": context.batch}
        framing: dict[str, Any] = {name: getattr(options, name) for name in FRAMING}
        lm = RunnerLM(loaded, **sizes, **framing, evict=cell.attention.evict)
        lengths = scoring.prompt_lengths(task, lm, [(k, documents[k]) for _, keys in batches for k in keys])
        too_long = {key: n for key, n in lengths.items() if n > cell.context}
        if too_long and (options.too_long == "refuse" or len(too_long) == len(lengths)):
            raise UserError(
                f"{len(too_long)} of {len(lengths)} prompts of task={self.name} are longer than context={cell.context} "
                f"(the longest has {max(too_long.values())} tokens): choose context={max(too_long.values())} or more"
                + (", or task.lm_eval.too_long=skip to leave them out" if len(too_long) < len(lengths) else "")
                + ". No prompt is ever cut."
            )
        weights = functools.cache(cell.weights)
        for draw, keys in batches:
            started = time.perf_counter()
            fitting = [(k, documents[k]) for k in keys if k not in too_long]
            rows = [scoring.too_long_row(task, lm, k, documents[k]) for k in keys if k in too_long]
            if fitting:
                with loaded.attention.use(weights(draw)):
                    rows += scoring.score_documents(task, lm, fitting)
            seconds = (time.perf_counter() - started) / len(rows)
            yield [row.but(draw=draw, seconds=seconds) for row in rows]

    def metrics(self, options: LeafOptions, rows: Sequence[SampleRow], *, clustered: bool) -> dict[str, stats.Metric]:
        from harness.tasks.lmeval import scoring

        return scoring.metrics(self.leaf, rows, clustered=clustered)

    def _request(self, options: LeafOptions, cell: Cell, samples: int | None):
        from harness.tasks.lmeval.documents import Request

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
    """names: some of RULER's 13 tasks; by default those without data sets."""

    names: list[str] = field(default_factory=lambda: list(catalogue.SYNTHETIC))
    max_gen_toks: int | None = None


class Ruler:
    name = "ruler"
    options = RulerOptions

    def tasks(self, options: RulerOptions) -> list[PlannedTask]:
        return _plan(catalogue.ruler_leaves(options.names), LeafOptions(options.max_gen_toks), "task.ruler")


@dataclass
class LmEvalOptions(LeafOptions):
    """names: tasks, groups or tags. include_path: a folder of the user's YAML definitions."""

    names: list[str] = field(default_factory=list)
    include_path: str | None = None


class LmEval:
    name = "lm_eval"
    options = LmEvalOptions

    def tasks(self, options: LmEvalOptions) -> list[PlannedTask]:
        if not options.names:
            raise UserError("task=lm_eval needs names: set task.lm_eval.names=[longbench_narrativeqa,wikitext].")
        leaves = catalogue.leaves(options.names, options.include_path)
        leaf_options = LeafOptions(**{f.name: getattr(options, f.name) for f in fields(LeafOptions)})
        return _plan(leaves, leaf_options, "task.lm_eval")


def _plan(leaves: list[catalogue.Leaf], options: LeafOptions, prefix: str) -> list[PlannedTask]:
    if not leaves:
        raise UserError(f"{prefix}.names is empty: name at least one task.")
    for name, minimum in (("max_gen_toks", 1), ("num_fewshot", 0)):
        value = getattr(options, name)
        if value is not None and value < minimum:
            raise UserError(f"{prefix}.{name} must be at least {minimum}, not {value}.")
    choose(f"{prefix}.too_long", options.too_long, TOO_LONG_POLICIES)
    if not options.fewshot_as_multiturn and not options.chat_template:
        raise UserError(f"{prefix}.fewshot_as_multiturn is read only with {prefix}.chat_template=true.")
    return [PlannedTask(LmEvalTask(leaf, options.max_gen_toks or leaf.generates), options) for leaf in leaves]


RULER = Ruler()
LM_EVAL = LmEval()
