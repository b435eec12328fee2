"""Training of the models that read texts: plain ALiBi, next tokens, two processes of one thread each.

A stopped run resumes from its last checkpoint, with the rows that it would have read. A longer plan
may resume from it too, as long as it would have made the same steps so far.
"""

import functools
import hashlib
import json
import math
import random
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from harness.common import environment
from harness.common.errors import UserError
from harness.common.files import write_atomic
from harness.training import bits, tokenizer
from harness.training import net as nets
from harness.training.train import RANKS, Phase, Stage, average, optimisers, schedule

SEED = 0
TOKENS_PER_STEP = 2048  # of one process
MAX_LENGTH = 8192
LOG_EVERY, PROBE_EVERY, SAVE_SECONDS = 25, 200, 120.0
PROBE_ROWS, PROBE_LENGTH = 8, 2048
PROBE_EDGES = (0, 128, 256, 512, 1024, 2048)


@dataclass(frozen=True)
class Recipe:
    """The recipe of a model that reads texts.

    vocabulary: tokens of the byte-pair encoding.
    shape: arguments of `nets.config` after the vocabulary.
    """

    name: str
    vocabulary: int
    shape: dict[str, int]
    phase: Phase


def phase(name: str, steps: dict[int, int], decay: float) -> Phase:
    """Return the phase of a model from the number of steps by row length."""
    return Phase(name, tuple(Stage(length, count, TOKENS_PER_STEP) for length, count in steps.items()), decay)


# 16 heads of 16 numbers: four slopes are below 2^-6
RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            "tiny-books",
            2048,
            {"d_model": 256, "layers": 3, "heads": 16},
            phase("tiny-books", {512: 1100, 1024: 250}, 0.95),
        ),
        Recipe(
            "tiny-code",
            4096,
            {"d_model": 256, "layers": 4, "heads": 16},
            phase("tiny-code", {256: 3000, 2048: 9000}, 0.3),
        ),
    )
}


@dataclass(frozen=True)
class Step:
    """A step: rows of `length` tokens from `starts`, for all processes, at `factor` of the rates."""

    length: int
    factor: float
    starts: list[int]


def stream(encoder: PreTrainedTokenizerBase, texts: Iterable[str]) -> Tensor:
    """Return the tokens (N,) of the texts, each preceded by an end token."""
    # verbose: transformers would warn that a novel is longer than max_length
    pieces = (encoder.encode(text, verbose=False) for text in texts)
    return torch.tensor([token for piece in pieces for token in (encoder.eos_token_id, *piece)])


def row_starts(tokens: int, length: int, rng: random.Random) -> Iterator[int]:
    """Yield start positions of rows, without end.

    Each pass over the stream cuts rows at a new offset and shuffles them.

    Args:
        tokens: tokens of the stream.
        length: tokens of a row, without its last target.
        rng: source of offsets and orders.
    """
    while True:
        positions = list(range(rng.randrange(min(length, tokens - length)), tokens - length, length))
        rng.shuffle(positions)
        yield from positions


def plan(tokens: int, phase: Phase, seed: int, ranks: int) -> list[Step]:
    """Return all steps of a phase.

    The rows of a stage do not depend on the number of steps of any stage.

    Args:
        tokens: tokens of the stream.
        phase: the phase.
        seed: seed of the rows.
        ranks: number of processes.

    Raises:
        UserError: if the texts are shorter than a row.
    """
    total = sum(stage.steps for stage in phase.stages)
    longest = max(stage.length for stage in phase.stages)
    if tokens <= longest:
        raise UserError(f"The texts have {tokens} tokens: rows of {longest} need more text.")
    steps: list[Step] = []
    for index, stage in enumerate(phase.stages):
        positions = row_starts(tokens, stage.length, random.Random(f"{seed} {phase.name} {index}"))
        rows = ranks * (stage.tokens // stage.length)
        for _ in range(stage.steps):
            starts = [next(positions) for _ in range(rows)]
            steps.append(Step(stage.length, schedule(len(steps), total, phase), starts))
    return steps


class Progress:
    """What a checkpoint holds beside weights: losses (nats per token), probes and the time so far."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.probes: list[dict[str, Any]] = []
        self.seconds = {"wall": 0.0, "cpu": 0.0}


def train(
    net: nets.Net,
    data: Tensor,
    phase: Phase,
    seed: int,
    log: Callable[[str], None],
    checkpoint: Path | None = None,
    probe: Callable[[nets.Net], dict[str, float]] | None = None,
) -> Progress:
    """Run a phase, as one of the processes of the default group if there is one.

    Args:
        net: the network, trained in place.
        data: the result of `stream` (N,).
        phase: the phase.
        seed: seed of the rows.
        log: prints a line.
        checkpoint: file to resume from, if it is there, and to save to.
        probe: measures the network now and then, in the first process.

    Returns:
        Losses of each step, probes, and the time of all runs.

    Raises:
        UserError: if the texts are shorter than a row, or the checkpoint is of another run.
    """
    rank, ranks = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    optims = optimisers(net)
    bases = [group["lr"] for optim in optims for group in optim.param_groups]
    biases = functools.cache(functools.partial(nets.plain_bias, net.shape))
    steps, run = plan(len(data), phase, seed, ranks), identity(data, seed, ranks)
    progress = Progress()
    if checkpoint and checkpoint.exists():
        restore(read_checkpoint(checkpoint, run, steps), net, optims, progress)
    earlier, wall, cpu = dict(progress.seconds), time.perf_counter(), time.process_time()
    saved = wall
    read_tokens = sum(step.length * len(step.starts) for step in steps[: len(progress.losses)])
    for step in steps[len(progress.losses) :]:
        groups = [group for optim in optims for group in optim.param_groups]
        for group, base in zip(groups, bases, strict=True):
            group["lr"] = base * step.factor
        starts = step.starts[rank::ranks]
        rows = torch.stack([data[start : start + step.length + 1] for start in starts]).long()
        loss = row_loss(net, rows, biases(step.length))
        loss.backward()
        if ranks > 1:
            average(net)
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        for optim in optims:
            optim.step()
            optim.zero_grad()
        progress.losses.append(loss.item())
        done = len(progress.losses)
        read_tokens += step.length * len(step.starts)
        progress.seconds = {
            "wall": earlier["wall"] + time.perf_counter() - wall,
            "cpu": earlier["cpu"] + ranks * (time.process_time() - cpu),
        }
        if done % LOG_EVERY == 0:
            recent = sum(progress.losses[-LOG_EVERY:]) / LOG_EVERY
            spent = f"{progress.seconds['wall']:.0f} s, {progress.seconds['cpu']:.0f} s of CPU"
            log(f"{phase.name} {done}/{len(steps)} T={step.length} loss {recent:.3f} {read_tokens / 1e6:.1f}M {spent}")
        if rank == 0 and probe and done % PROBE_EVERY == 0:
            progress.probes.append({"step": done, "tokens": read_tokens} | probe(net))
            log(f"  {json.dumps(progress.probes[-1])}")
        if rank == 0 and checkpoint and (time.perf_counter() - saved > SAVE_SECONDS or done == len(steps)):
            saved = time.perf_counter()
            save(checkpoint, run, steps, net, optims, progress)
    return progress


def row_loss(net: nets.Net, rows: Tensor, bias: Tensor) -> Tensor:
    """Return the mean cross-entropy of next tokens, in nats.

    Args:
        net: the network.
        rows: token ids (rows, length + 1).
        bias: the result of `nets.plain_bias`.
    """
    with torch.autocast("cpu", torch.bfloat16):
        logits = net.logits(net(rows[:, :-1], bias))
    return F.cross_entropy(logits.flatten(0, 1).float(), rows[:, 1:].flatten())


def history(steps: list[Step]) -> list[tuple[int, float]]:
    """Return length and factor of each step: with the run's identity, what made the weights."""
    return [(step.length, step.factor) for step in steps]


def save(
    checkpoint: Path,
    run: dict,
    steps: list[Step],
    net: nets.Net,
    optims: list[torch.optim.Optimizer],
    progress: Progress,
) -> None:
    """Replace a checkpoint at once; one of full rates stays beside it as `stable.pt`.

    Args:
        checkpoint: the file.
        run: the run's `identity`.
        steps: its plan.
        net: the network.
        optims: the optimisers.
        progress: the progress.
    """
    done = steps[: len(progress.losses)]
    state = {"run": run, "history": history(done), "progress": vars(progress), "net": net.state_dict()}
    state["optimisers"] = [optim.state_dict() for optim in optims]
    torch.save(state, checkpoint.with_suffix(".new"))
    checkpoint.with_suffix(".new").replace(checkpoint)
    if done[-1].factor == 1.0:
        torch.save(state, checkpoint.with_name("stable.new"))
        checkpoint.with_name("stable.new").replace(checkpoint.with_name("stable.pt"))


def identity(data: Tensor, seed: int, ranks: int) -> dict[str, int]:
    """Return what tells a run from others, beside its plan.

    Args:
        data: the stream (N,).
        seed: seed of the rows.
        ranks: number of processes.
    """
    return {"seed": seed, "tokens": len(data), "sum": int(data.sum()), "ranks": ranks}


def read_checkpoint(checkpoint: Path, run: dict, steps: list[Step]) -> dict[str, Any]:
    """Return the state in a checkpoint that a run can resume from.

    Args:
        checkpoint: the file.
        run: the run's `identity`.
        steps: its plan.

    Raises:
        UserError: if the checkpoint is of another run, or its steps are not the plan's first ones.
    """
    state = torch.load(checkpoint)
    done = len(state["history"])
    if state["run"] != run:
        raise UserError(f"{checkpoint} is of a run on other texts or seeds: delete it, or give another --work.")
    if state["history"] != history(steps[:done]):
        raise UserError(
            f"{checkpoint} has {done} steps that this plan would not make: give the same --steps and --decay, or copy "
            "stable.pt, the last checkpoint before the decay, over it."
        )
    return state


def restore(state: dict[str, Any], net: nets.Net, optims: list[torch.optim.Optimizer], progress: Progress) -> None:
    """Load a state.

    Args:
        state: the result of `read_checkpoint`.
        net: the network to load.
        optims: the optimisers to load.
        progress: the progress to load.
    """
    net.load_state_dict(state["net"])
    for optim, saved in zip(optims, state["optimisers"], strict=True):
        optim.load_state_dict(saved)
    vars(progress).update(state["progress"])


@torch.no_grad()
def probe_rows(net: nets.Net, rows: Tensor, sizes: Tensor) -> dict[str, float]:
    """Return the bits per byte of tokens by their position in the row, "0-127" and so on.

    Args:
        net: the network.
        rows: token ids (rows, PROBE_LENGTH + 1).
        sizes: bytes of each token.
    """
    bias = nets.plain_bias(net.shape, rows.shape[1] - 1)
    nats = []
    for row in rows.split(1):
        with torch.autocast("cpu", torch.bfloat16):
            logits = net.logits(net(row[:, :-1], bias))
        nats.append(F.cross_entropy(logits[0].float(), row[0, 1:], reduction="none"))
    total, width = torch.stack(nats).sum(0), sizes[rows[:, 1:]].sum(0)
    return {
        f"{low}-{high - 1}": float(total[low:high].sum() / width[low:high].sum()) / math.log(2)
        for low, high in zip(PROBE_EDGES, PROBE_EDGES[1:], strict=False)
    }


def run_rank(rank: int, meeting: str, recipe: Recipe, work: Path) -> None:
    """Train a model as one of the processes.

    Args:
        rank: number of the process.
        meeting: address where the processes meet.
        recipe: the recipe.
        work: the folder of `make`, with tokenizer and streams; for checkpoint.pt.
    """
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=RANKS)
    encoder = PreTrainedTokenizerFast.from_pretrained(work)
    streams = torch.load(work / "streams.pt")
    torch.manual_seed(SEED)
    net = nets.Net(nets.config(len(encoder), **recipe.shape))
    held_out = streams["validation"].long()
    ends = torch.linspace(PROBE_LENGTH, len(held_out) - 1, PROBE_ROWS).long().tolist()
    probe = None
    if len(held_out) > PROBE_LENGTH:
        rows = torch.stack([held_out[end - PROBE_LENGTH : end + 1] for end in ends])
        probe = functools.partial(probe_rows, rows=rows, sizes=bits.byte_counts(encoder))
    log = functools.partial(print, flush=True) if rank == 0 else lambda line: None
    train(net, streams["train"], recipe.phase, SEED, log, work / "checkpoint.pt", probe)
    dist.destroy_process_group()


def make(
    recipe: Recipe,
    texts: dict[str, list[str]],
    folder: Path,
    work: Path,
    log: Callable[[str], None],
    *,
    resume: bool = False,
    facts: dict[str, Any] | None = None,
) -> None:
    """Train a model and save it with its record `training.json`.

    Args:
        recipe: the recipe.
        texts: the texts of "train" and "validation".
        folder: folder of the model.
        work: folder of checkpoints and streams.
        log: prints a line.
        resume: whether to go on from the checkpoint in `work`.
        facts: what else the record holds, about the texts.

    Raises:
        UserError: if `work` has a checkpoint and `resume` is false, or the other way round; if the
            checkpoint is of another run, or the texts are shorter than a row.
    """
    if resume != (checkpoint := work / "checkpoint.pt").exists():
        raise UserError(
            f"{checkpoint} is missing: without --resume a run begins."
            if resume
            else f"{checkpoint} is there: --resume goes on from it, another --work begins anew."
        )
    work.mkdir(parents=True, exist_ok=True)
    streams = read_streams(recipe, texts, work)
    size = sum(len(text.encode()) for text in texts["train"])
    log(f"{recipe.name}: {len(streams['train'])} tokens in {size} bytes of {len(texts['train'])} texts")
    # before the processes start, which would bury the sentence in tracebacks
    steps = plan(len(streams["train"]), recipe.phase, SEED, RANKS)
    if resume:
        read_checkpoint(checkpoint, identity(streams["train"], SEED, RANKS), steps)
    meeting = work / "meeting"
    meeting.unlink(missing_ok=True)
    mp.spawn(run_rank, args=(f"file://{meeting}", recipe, work), nprocs=RANKS)
    finish(recipe, folder, work, {"stream_bytes": size} | (facts or {}))


def read_streams(recipe: Recipe, texts: dict[str, list[str]], work: Path) -> dict[str, Tensor]:
    """Return the streams of the texts, int32 (N,) each, and learn the tokens.

    Both are kept in `work` and used again for the same texts.

    Args:
        recipe: the recipe, for its vocabulary.
        texts: the texts of "train" and "validation".
        work: the folder.
    """
    told = json.dumps([recipe.vocabulary, texts]).encode()
    digest, file = hashlib.sha256(told).hexdigest(), work / "streams.pt"
    if file.exists() and (kept := torch.load(file)).get("texts") == digest:
        return kept
    encoder = tokenizer.learn(texts["train"], recipe.vocabulary, MAX_LENGTH)
    encoder.save_pretrained(work)
    streams = {part: stream(encoder, texts[part]).to(torch.int32) for part in ("train", "validation")}
    torch.save(streams | {"texts": digest}, file)
    return streams


def finish(recipe: Recipe, folder: Path, work: Path, facts: dict[str, Any]) -> None:
    """Write the model of a checkpoint and its record.

    Args:
        recipe: the recipe.
        folder: folder of the model.
        work: folder of the checkpoint.
        facts: what else the record holds, about the texts.
    """
    encoder = PreTrainedTokenizerFast.from_pretrained(work)
    state = torch.load(work / "checkpoint.pt")
    net = nets.Net(nets.config(len(encoder), **recipe.shape))
    net.load_state_dict(state["net"])
    nets.export(net, folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):  # loaded and saved again they would say so
        shutil.copyfile(work / name, folder / name)
    machine = environment.describe(torch.device("cpu"))
    losses, stages = state["progress"]["losses"], recipe.phase.stages
    means = [losses[first : first + LOG_EVERY] for first in range(0, len(losses), LOG_EVERY)]
    record = {
        "commit": machine["commit"],
        "dirty": machine["dirty"],
        "device": machine["device"],
        "packages": {name: machine["packages"][name] for name in ("torch", "transformers", "tokenizers")},
        "seed": SEED,
        "processes": RANKS,
        "shape": recipe.shape,
        "stages": [vars(stage) for stage in stages],
        "decay": recipe.phase.decay,
        "stream_tokens": state["run"]["tokens"],
        "tokens": RANKS * sum(stage.steps * (stage.tokens // stage.length) * stage.length for stage in stages),
        "seconds": state["progress"]["seconds"],
        "loss_nats_per_token": sum(means[-1]) / len(means[-1]),
        "losses": [round(sum(values) / len(values), 4) for values in means],
        "probes": state["progress"]["probes"],
    } | facts
    write_atomic(folder / "training.json", record)


def read_record(folder: Path) -> dict:
    """Return the record that `make` wrote to `folder`; raise UserError if there is none."""
    try:
        return json.loads((folder / "training.json").read_text())
    except FileNotFoundError:
        raise UserError(f"{folder} holds no training.json: train the model first.") from None
