"""Retrieval: find one number by its name in a haystack of `context` tokens, greedy decoding."""

import functools
import re
import shutil
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import psutil
import torch

from harness.cell import Cell
from harness.common import stats
from harness.common.errors import UserError, choose
from harness.models.cache import new_cache
from harness.models.load import LoadedModel, load_tokenizer
from harness.results.schema import Number, SampleRow
from harness.tasks.base import PlannedTask, Prepared, TaskContext
from harness.tasks.retrieval import needles, prompts

HAYSTACKS = ("noise", "distractors", "text")
TEXT = 4  # bytes of a token's text
BUDGET = 16  # tokens that may be generated: a tokenizer without digit groups needs 8 for the answer


@dataclass
class Options:
    """haystack: noise (five sentences repeated), distractors (needles with other names), text (a
    file of the user's). depths: where needles lie, 0 (start of the haystack) to 1 (end)."""

    haystack: str = "noise"
    text: str | None = None
    depths: list[float] = field(default_factory=lambda: [0.0, 0.25, 0.5, 0.75, 1.0])


class RetrievalRow(SampleRow):
    """A sample, with what each of this task has."""

    score: Number
    nll: Number
    depth: Number
    distance: int
    tokens_seen: int


class Retrieval:
    name = "retrieval"
    options = Options
    rows_are = "samples"
    needs_model = True
    needs_trained_weights = True
    natural_text = False
    generates = BUDGET

    def tasks(self, options: Options) -> list[PlannedTask]:
        return [PlannedTask(self, options)]

    def identity(self, options: Options) -> dict:
        if options.haystack != "text" or not options.text:
            return asdict(options)
        # how a text is cut: what the first records knew no number of
        return {**asdict(options), "text": prompts.text_hash(options.text), "prompts": prompts.VERSION}

    def identity_on(self, options: Options, cell: Cell) -> dict:
        return {}

    def check(self, options: Options, cell: Cell) -> None:
        choose("task.retrieval.haystack", options.haystack, HAYSTACKS)
        if options.haystack == "text":
            prompts.read_text(options.text)
        elif options.text:
            raise UserError("task.retrieval.text is read only with task.retrieval.haystack=text.")
        if not options.depths or any(not 0 <= d <= 1 for d in options.depths):
            raise UserError(f"task.retrieval.depths must be numbers from 0 to 1, not {list(options.depths)}.")
        need = _least_context(load_tokenizer(cell.model))
        if cell.context < need:
            raise UserError(
                f"context={cell.context} leaves no room for a haystack: the question and one needle of "
                f"task=retrieval need {need} tokens with this tokenizer."
            )

    def amount(self, options: Options, cell: Cell, samples: int, batch: int) -> tuple[int, int]:
        return samples, batch

    def prepare(self, options: Options, cell: Cell, samples: int, folder: Path) -> Prepared:
        _refuse_what_does_not_fit(samples, cell.context, folder)
        tokenizer = load_tokenizer(cell.model)
        return prompts.kept(
            folder,
            prompts.encoder(tokenizer),
            cell.model.tokenizer,
            samples=samples,
            context=cell.context,
            data_seed=cell.data_seed,
            haystack=options.haystack,
            text=options.text,
            depths=list(options.depths),
        )

    row = staticmethod(RetrievalRow.read)

    def run(self, options: Options, context: TaskContext) -> Iterator[list[RetrievalRow]]:
        cell, loaded = context.cell, context.model()
        assert context.data is not None, "the task prepares data"
        data = prompts.read(context.data.place)
        weights = functools.cache(cell.weights)
        for draw, keys in context.batches():
            started = time.perf_counter()
            with loaded.attention.use(weights(draw)):
                rows = answer(loaded, [data[k] for k in keys], evict=cell.attention.evict)
            seconds = (time.perf_counter() - started) / len(rows)
            # a tokenizer may allow no exact length
            lacking = [cell.context - r.tokens_seen for r in rows]
            short = [{"tokens_short": tokens} if tokens > 0 else {} for tokens in lacking]
            yield [r.but(**lack, draw=draw, seconds=seconds) for r, lack in zip(rows, short, strict=True)]

    def metrics(self, options: Options, rows: Sequence[RetrievalRow], *, clustered: bool) -> dict[str, stats.Metric]:
        def rate(chosen: Sequence[RetrievalRow]) -> stats.Metric:
            return stats.proportion([r.score for r in chosen], [r.draw for r in chosen], clustered=clustered)

        draws = [r.draw for r in rows]
        found = {"accuracy": rate(rows)}
        found["answer_nll"] = stats.mean(
            [r.nll for r in rows], draws, clustered=clustered, unit="nats per answer", least=0.0
        )
        for depth in sorted({r.depth for r in rows}):
            found[f"accuracy_depth_{depth:g}"] = rate([r for r in rows if r.depth == depth])
        for low, high in distance_bins(rows):
            within = [r for r in rows if low <= r.distance < high]
            found[f"accuracy_distance_{low}_{high}"] = rate(within)
        shares = [r.text_share for r in rows if r.text_share is not None]
        if shares:
            found["text_share"] = stats.mean(shares, draws, clustered=clustered, unit="share of tokens", least=0.0)
        short = [r.tokens_short for r in rows if r.tokens_short is not None]
        if short:
            found["tokens_short"] = stats.Metric(max(short), None, None, len(short), "tokens")
        for name in ("kv_allocated_bytes", "kv_used_bytes"):
            sizes = [size for r in rows if (size := getattr(r, name)) is not None]  # rows of older records have none
            if sizes:
                found[name] = stats.Metric(max(sizes), None, None, len(sizes), "bytes")
        return found


@functools.lru_cache(maxsize=16)
def _least_context(tokenizer) -> int:
    return prompts.shortest(prompts.encoder(tokenizer)) + 8


def distance_bins(rows: Sequence[RetrievalRow]) -> list[tuple[int, int]]:
    """Octaves of the needle's distance from the question, [2^k, 2^(k+1)) tokens, that hold samples:
    the same for every context, so that contexts can be laid over one another."""
    return sorted({(1 << (b - 1), 1 << b) for b in (max(1, r.distance).bit_length() for r in rows)})


def answer(loaded: LoadedModel, samples: Sequence[Mapping], *, evict: bool = False) -> list[RetrievalRow]:
    """Greedy answers to prompts, those of one length together, and the true answers' negative
    log-likelihood. The bytes of the KV cache are those of one sequence.

    Raises FloatingPointError if the model's output is not finite, UserError if a prompt's length is
    not what it says.
    """
    alike: dict[int, list[Mapping]] = defaultdict(list)
    for sample in samples:
        alike[sample["tokens"]].append(sample)
    rows = [row for together in alike.values() for row in _answer(loaded, together, evict=evict)]
    return sorted(rows, key=lambda row: row.key)


@torch.inference_mode()
def _answer(loaded: LoadedModel, samples: Sequence[Mapping], *, evict: bool) -> list[RetrievalRow]:
    model, tokenizer = loaded.model, loaded.tokenizer
    encode = prompts.encoder(tokenizer)
    ids = [encode(s["prompt"]) for s in samples]
    tokens = samples[0]["tokens"]
    if any(len(i) != tokens for i in ids):
        raise UserError(
            f"Prompts of {sorted({len(i) for i in ids})} tokens where {tokens} were made: another tokenizer?"
        )
    prompt = torch.tensor(ids, device=model.device)
    answers = [_answer_ids(tokenizer, needles.answer(s["value"])) for s in samples]
    budget = max(BUDGET, *(len(a) for a in answers))
    # the answer's likelihood takes back what was generated
    cache = new_cache(model, tokens + budget, evict=evict, rewind=BUDGET)
    generated = cast(Any, model).generate(  # of a mixin that the type of a model does not name
        prompt,
        attention_mask=torch.ones_like(prompt),
        **cache.argument,
        use_cache=True,  # published MPT configurations say false
        prefill_chunk_size=cache.chunk,
        max_new_tokens=BUDGET,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id,
        return_dict_in_generate=True,
    )
    texts = tokenizer.batch_decode(generated.sequences[:, tokens:], skip_special_tokens=True)
    nll = _answer_nll(model, cache, prompt, answers)
    return [
        RetrievalRow(
            key=s["key"],
            score=float(first_number(text) == s["value"]),
            nll=loss,
            prediction=text,
            target=s["value"],
            depth=s["depth"],
            distance=s["distance"],
            doc_hash=prompts.doc_hash(s["prompt"], s["value"]),
            tokens_wanted=s["tokens"],
            tokens_seen=len(i),
            kv_allocated_bytes=cache.allocated_bytes // len(samples),
            kv_used_bytes=cache.used_bytes // len(samples),
            **{name: s[name] for name in ("text_share",) if name in s},
        )
        for s, text, loss, i in zip(samples, texts, nll, ids, strict=True)
    ]


def first_number(text: str) -> str | None:
    """The first whole number of a continuation: what counts as the answer."""
    found = re.search(r"\d+", text)
    return found.group() if found else None


def _answer_ids(tokenizer, answer_text: str) -> list[int]:
    return tokenizer(answer_text, add_special_tokens=False)["input_ids"]


def _answer_nll(model, cache, prompt: torch.Tensor, answers: list[list[int]]) -> list[float]:
    """Sum over the answer's tokens of -log p, in nats, from the prompt's cache: the last prompt
    token and the answer go through once more. Answers are padded on the right, which causality
    hides."""
    longest = max(len(a) for a in answers)
    padded = torch.tensor([a + [a[-1]] * (longest - len(a)) for a in answers], device=prompt.device)
    cache.crop(prompt.shape[1] - 1 - cache.get_seq_length())  # negative: how many to drop from the end
    fed = torch.cat([prompt[:, -1:], padded[:, :-1]], dim=1)
    whole = prompt.new_ones(len(prompt), prompt.shape[1] + longest - 1)
    logits = model(input_ids=fed, attention_mask=whole, **cache.argument, use_cache=True).logits.float()
    if not bool(torch.isfinite(logits).all()):
        raise FloatingPointError("The model's logits are not finite (NaN or infinite).")
    loss = torch.nn.functional.cross_entropy(logits.transpose(1, 2), padded, reduction="none")
    return [float(loss[i, : len(a)].sum()) for i, a in enumerate(answers)]


def _refuse_what_does_not_fit(samples: int, context: int, folder: Path) -> None:
    """UserError if the prompts, which are made at once, fit neither into memory nor on the disk of
    `folder`."""
    need = samples * context * TEXT
    for free, where in (
        (psutil.virtual_memory().available, "of memory"),
        (shutil.disk_usage(next(p for p in (folder, *folder.parents) if p.exists())).free, f"on the disk of {folder}"),
    ):
        if need > free:
            raise UserError(
                f"samples={samples} prompts of {context} tokens take about {need / 2**30:,.0f} GiB, and there are "
                f"{free / 2**30:,.0f} GiB {where}: ask for fewer samples."
            )


RETRIEVAL = Retrieval()
