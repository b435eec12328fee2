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
from kernels import Weights

HAYSTACKS = ("noise", "distractors", "text")
BYTES_PER_TOKEN = 4  # of text
MAX_NEW_TOKENS = 16  # an answer takes 8 tokens if the tokenizer splits digits


@dataclass
class Options:
    """Options of task=retrieval.

    haystack: "noise" (five sentences, repeated), "distractors" (needles with other names) or "text"
        (a file of the user).
    text: the file.
    depths: positions of the needle, from 0 (start of the haystack) to 1 (end).
    """

    haystack: str = "noise"
    text: str | None = None
    depths: list[float] = field(default_factory=lambda: [0.0, 0.25, 0.5, 0.75, 1.0])


class RetrievalRow(SampleRow):
    """A sample with the fields of this task.

    Attributes:
        seen_by: share of all layers and heads in which the prompt's last token sees the needle;
            None for the checkpoint's own attention and in older records.
    """

    score: Number
    nll: Number
    depth: Number
    distance: int
    tokens_seen: int
    seen_by: float | None = None


class Retrieval:
    name = "retrieval"
    options = Options
    rows_are = "samples"
    needs_model = True
    runs_weights = True
    needs_trained_weights = True
    natural_text = False
    generates = MAX_NEW_TOKENS

    def tasks(self, options: Options) -> list[PlannedTask]:
        return [PlannedTask(self, options)]

    def identity(self, options: Options) -> dict:
        if options.haystack != "text" or not options.text:
            return asdict(options)
        # the way a text is split; ids of other haystacks hold no version
        return {**asdict(options), "text": prompts.text_hash(options.text), "prompts": prompts.PROMPT_VERSION}

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
        need = _min_context(load_tokenizer(cell.model))
        if cell.context < need:
            raise UserError(
                f"context={cell.context} leaves no room for a haystack: the question and one needle of "
                f"task=retrieval need {need} tokens with this tokenizer."
            )

    def amount(self, options: Options, cell: Cell, samples: int, batch: int) -> tuple[int, int]:
        return samples, batch

    def prepare(self, options: Options, cell: Cell, samples: int, folder: Path) -> Prepared:
        _refuse_oversize(samples, cell.context, folder)
        tokenizer = load_tokenizer(cell.model)
        return prompts.prepare_samples(
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
        data = prompts.load_samples(context.data.place)
        weights = functools.cache(cell.weights)
        for draw, keys in context.batches():
            started = time.perf_counter()
            with loaded.attention.use(weights(draw)):
                rows = answer(loaded, [data[k] for k in keys], evict=cell.attention.evict)
            seconds = (time.perf_counter() - started) / len(rows)
            # some tokenizers allow no exact length
            missing = [cell.context - r.tokens_seen for r in rows]
            extra: list[dict] = [{"tokens_short": tokens} if tokens > 0 else {} for tokens in missing]
            if (layers := weights(draw)) is not None and not cell.attention.by_score:
                extra = [{**fields, "seen_by": seen_by(layers, r)} for fields, r in zip(extra, rows, strict=True)]
            yield [r.but(**fields, draw=draw, seconds=seconds) for r, fields in zip(rows, extra, strict=True)]

    def metrics(self, options: Options, rows: Sequence[RetrievalRow], *, clustered: bool) -> dict[str, stats.Metric]:
        def rate(subset: Sequence[RetrievalRow]) -> stats.Metric:
            return stats.proportion([r.score for r in subset], [r.draw for r in subset], clustered=clustered)

        draws = [r.draw for r in rows]
        metrics = {"accuracy": rate(rows)}
        metrics["answer_nll"] = stats.mean(
            [r.nll for r in rows], draws, clustered=clustered, unit="nats per answer", least=0.0
        )
        for depth in sorted({r.depth for r in rows}):
            metrics[f"accuracy_depth_{depth:g}"] = rate([r for r in rows if r.depth == depth])
        for low, high in distance_bins(rows):
            in_bin = [r for r in rows if low <= r.distance < high]
            metrics[f"accuracy_distance_{low}_{high}"] = rate(in_bin)
        seen = [r for r in rows if r.seen_by]
        unseen = [r for r in rows if r.seen_by == 0]
        if unseen:
            metrics |= {"accuracy_seen": rate(seen)} if seen else {}
            metrics["accuracy_unseen"] = rate(unseen)
        shares = [r.text_share for r in rows if r.text_share is not None]
        if shares:
            metrics["text_share"] = stats.mean(shares, draws, clustered=clustered, unit="share of tokens", least=0.0)
        short = [r.tokens_short for r in rows if r.tokens_short is not None]
        if short:
            metrics["tokens_short"] = stats.Metric(max(short), None, None, len(short), "tokens")
        for name in ("kv_allocated_bytes", "kv_used_bytes"):
            sizes = [size for r in rows if (size := getattr(r, name)) is not None]  # absent in older records
            if sizes:
                metrics[name] = stats.Metric(max(sizes), None, None, len(sizes), "bytes")
        return metrics


@functools.lru_cache(maxsize=16)
def _min_context(tokenizer) -> int:
    return prompts.overhead(prompts.encoder(tokenizer)) + 8


def distance_bins(rows: Sequence[RetrievalRow]) -> list[tuple[int, int]]:
    """Return the octaves of distance, [2^k, 2^(k+1)) tokens, that contain samples.

    The octaves do not depend on the context, so that contexts can be compared.
    """
    return sorted({(1 << (b - 1), 1 << b) for b in (max(1, r.distance).bit_length() for r in rows)})


def seen_by(layers: Sequence[Weights], row: RetrievalRow) -> float:
    """Return the share of all layers and heads in which the prompt's last token sees the needle's
    last token.

    Args:
        layers: weights of every layer.
        row: the sample.
    """
    last = row.tokens_seen - 1
    needle = last - row.distance
    firsts = [w.reach(torch.arange(w.heads), torch.full((w.heads, 1), last))[0] for w in layers]
    sees = torch.cat([(first <= needle) | (needle < w.sinks) for first, w in zip(firsts, layers, strict=True)])
    return float(sees.double().mean())


def answer(loaded: LoadedModel, samples: Sequence[Mapping], *, evict: bool = False) -> list[RetrievalRow]:
    """Answer prompts greedily, and return their rows in order of their keys.

    Prompts of equal length form a batch. A row has the negative log-likelihood of the true answer,
    and the bytes of the KV cache of one sequence.

    Args:
        loaded: the model.
        samples: samples of `prompts.make_samples`.
        evict: whether the cache drops keys out of reach.

    Raises:
        FloatingPointError: if the model's output is not finite.
        UserError: if a prompt's length differs from the recorded length.
    """
    by_length: dict[int, list[Mapping]] = defaultdict(list)
    for sample in samples:
        by_length[sample["tokens"]].append(sample)
    rows = [row for group in by_length.values() for row in _answer(loaded, group, evict=evict)]
    return sorted(rows, key=lambda row: row.key)


@torch.inference_mode()
def _answer(loaded: LoadedModel, samples: Sequence[Mapping], *, evict: bool) -> list[RetrievalRow]:
    model, tokenizer = loaded.model, loaded.tokenizer
    encode = prompts.encoder(tokenizer)
    ids = [encode(s["prompt"]) for s in samples]
    tokens = samples[0]["tokens"]
    if any(len(i) != tokens for i in ids):
        raise UserError(
            f"Prompts made with {tokens} tokens have {sorted({len(i) for i in ids})} with this tokenizer: they were "
            "made with another one."
        )
    prompt = torch.tensor(ids, device=model.device)
    answers = [_answer_ids(tokenizer, needles.answer(s["value"])) for s in samples]
    budget = max(MAX_NEW_TOKENS, *(len(a) for a in answers))
    # the likelihood of the answer rewinds the generated tokens
    cache = new_cache(model, tokens + budget, evict=evict, rewind=MAX_NEW_TOKENS)
    generated = cast(Any, model).generate(  # PreTrainedModel's type lacks generate
        prompt,
        attention_mask=torch.ones_like(prompt),
        **cache.argument,
        use_cache=True,  # false in published MPT configurations
        prefill_chunk_size=cache.chunk,
        max_new_tokens=MAX_NEW_TOKENS,
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
    """Return the first whole number of a continuation, which counts as the answer."""
    match = re.search(r"\d+", text)
    return match.group() if match else None


def _answer_ids(tokenizer, answer_text: str) -> list[int]:
    return tokenizer(answer_text, add_special_tokens=False)["input_ids"]


def _answer_nll(model, cache, prompt: torch.Tensor, answers: list[list[int]]) -> list[float]:
    """Return the negative log-likelihood of each answer in nats, from the prompt's cache.

    The last prompt token and the answer go through the model again. Right padding of answers is
    hidden by causality.
    """
    longest = max(len(a) for a in answers)
    padded = torch.tensor([a + [a[-1]] * (longest - len(a)) for a in answers], device=prompt.device)
    cache.crop(prompt.shape[1] - 1 - cache.get_seq_length())  # negative: the number to drop at the end
    inputs = torch.cat([prompt[:, -1:], padded[:, :-1]], dim=1)
    mask = prompt.new_ones(len(prompt), prompt.shape[1] + longest - 1)
    logits = model(input_ids=inputs, attention_mask=mask, **cache.argument, use_cache=True).logits.float()
    if not bool(torch.isfinite(logits).all()):
        raise FloatingPointError("The model's logits are not finite (NaN or infinite).")
    loss = torch.nn.functional.cross_entropy(logits.transpose(1, 2), padded, reduction="none")
    return [float(loss[i, : len(a)].sum()) for i, a in enumerate(answers)]


def _refuse_oversize(samples: int, context: int, folder: Path) -> None:
    """Raise UserError if the prompts exceed the memory or the disk of `folder`."""
    need = samples * context * BYTES_PER_TOKEN
    for free, place in (
        (psutil.virtual_memory().available, "of memory"),
        (shutil.disk_usage(next(p for p in (folder, *folder.parents) if p.exists())).free, f"on the disk of {folder}"),
    ):
        if need > free:
            raise UserError(
                f"samples={samples} prompts of {context} tokens take about {need / 2**30:,.0f} GiB, and there are "
                f"{free / 2**30:,.0f} GiB {place}: ask for fewer samples."
            )


RETRIEVAL = Retrieval()
