"""Training of tiny-books in one process of one thread: plain ALiBi, next tokens of novels.

A stopped run resumes from its last checkpoint, with the rows that it would have read.
"""

import functools
import json
import random
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from harness.common import environment
from harness.common.errors import UserError
from harness.common.files import write_atomic
from harness.training import books, tokenizer
from harness.training import net as nets
from harness.training.train import Phase, Stage, optimisers, schedule

NAME = "tiny-books"
SEED = 0
VOCABULARY = 2048
SHAPE = {"d_model": 256, "layers": 3, "heads": 8}
PHASE = Phase(NAME, (Stage(512, 1100, 4096), Stage(1024, 250, 4096)), decay=0.95)
MAX_LENGTH = 8192
LOG_EVERY, SAVE_EVERY = 25, 100


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


def batches(tokens: int, stages: Iterable[Stage], seed: int) -> list[tuple[int, list[int]]]:
    """Return (length, starts of rows) of all steps.

    Args:
        tokens: tokens of the stream.
        stages: the stages.
        seed: seed of `row_starts`.
    """
    rng = random.Random(seed)
    steps = []
    for stage in stages:
        positions = row_starts(tokens, stage.length, rng)
        steps += [
            (stage.length, [next(positions) for _ in range(stage.tokens // stage.length)]) for _ in range(stage.steps)
        ]
    return steps


def train(
    net: nets.Net, data: Tensor, phase: Phase, seed: int, log: Callable[[str], None], checkpoint: Path | None = None
) -> tuple[list[float], float]:
    """Run a phase, and return the loss of each step (nats per token) and the CPU seconds.

    Args:
        net: the network, trained in place.
        data: the result of `stream` (N,).
        phase: the phase.
        seed: seed of the rows.
        log: prints a line.
        checkpoint: file to resume from, if it is of the same run, and to save to.

    Raises:
        UserError: if the texts are shorter than a row.
    """
    max_length = max(stage.length for stage in phase.stages)
    if len(data) <= max_length:
        raise UserError(f"The texts have {len(data)} tokens: rows of {max_length} need more text.")
    optims = optimisers(net)
    bases = [group["lr"] for optim in optims for group in optim.param_groups]
    biases = functools.cache(functools.partial(nets.alibi_bias, net.shape.n_heads))
    run = {"phase": repr(phase), "seed": seed, "tokens": len(data), "sum": int(data.sum())}
    losses, earlier_seconds = restore(checkpoint, run, net, optims)
    start_time, first_step = time.process_time(), len(losses)
    plan = batches(len(data), phase.stages, seed)
    read_tokens = sum(length * len(positions) for length, positions in plan[:first_step])
    for step, (length, positions) in enumerate(plan[first_step:], first_step):
        groups = [group for optim in optims for group in optim.param_groups]
        for group, base in zip(groups, bases, strict=True):
            group["lr"] = base * schedule(step, len(plan), phase)
        rows = torch.stack([data[position : position + length + 1] for position in positions])
        with torch.autocast("cpu", torch.bfloat16):
            logits = net.logits(net(rows[:, :-1], biases(length)))
        loss = F.cross_entropy(logits.flatten(0, 1).float(), rows[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        for optim in optims:
            optim.step()
            optim.zero_grad()
        losses.append(loss.item())
        read_tokens += length * len(positions)
        seconds = earlier_seconds + time.process_time() - start_time
        if (step + 1) % LOG_EVERY == 0:
            recent = sum(losses[-LOG_EVERY:]) / LOG_EVERY
            progress = f"{phase.name} {step + 1}/{len(plan)} T={length}"
            log(f"{progress} loss {recent:.3f} {read_tokens / 1e6:.1f}M {seconds:.0f} s")
        if checkpoint and (step + 1) % SAVE_EVERY == 0:
            state = {"run": run, "losses": losses, "seconds": seconds, "net": net.state_dict()}
            state["optimisers"] = [optim.state_dict() for optim in optims]
            torch.save(state, checkpoint.with_suffix(".new"))
            checkpoint.with_suffix(".new").replace(checkpoint)
    return losses, earlier_seconds + time.process_time() - start_time


def restore(
    checkpoint: Path | None, run: dict, net: nets.Net, optims: list[torch.optim.Optimizer]
) -> tuple[list[float], float]:
    """Load a checkpoint, and return its losses and CPU seconds; none if it is of another run.

    Args:
        checkpoint: the file.
        run: the identity of the run.
        net: the network to load.
        optims: the optimisers to load.
    """
    if not checkpoint or not checkpoint.exists():
        return [], 0.0
    state = torch.load(checkpoint)
    if state["run"] != run:
        return [], 0.0
    net.load_state_dict(state["net"])
    for optim, saved in zip(optims, state["optimisers"], strict=True):
        optim.load_state_dict(saved)
    return state["losses"], state["seconds"]


def make(texts: dict[books.Book, str], folder: Path, phase: Phase, log: Callable[[str], None]) -> None:
    """Train the model and save it with its record `training.json`.

    Args:
        texts: the novels.
        folder: folder of the model.
        phase: the phase of training.
        log: prints a line.
    """
    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    train_texts = [text for book, text in texts.items() if book.part == "train"]
    encoder = tokenizer.learn(train_texts, VOCABULARY, MAX_LENGTH)
    data = stream(encoder, train_texts)
    size = sum(len(text.encode()) for text in train_texts)
    log(f"{phase.name}: {len(data)} tokens in {size} bytes of {len(train_texts)} novels")
    torch.manual_seed(SEED)
    net = nets.Net(nets.config(len(encoder), **SHAPE))
    checkpoint = folder / "checkpoint.pt"
    machine = environment.describe(torch.device("cpu"))
    losses, seconds = train(net, data, phase, SEED, log, checkpoint)
    nets.export(net, folder)
    encoder.save_pretrained(folder)
    stages = [vars(stage) for stage in phase.stages]
    record = {
        "commit": machine["commit"],
        "dirty": machine["dirty"],
        "device": machine["device"],
        "packages": {name: machine["packages"][name] for name in ("torch", "transformers", "tokenizers")},
        "seed": SEED,
        "stages": stages,
        "decay": phase.decay,
        "stream_tokens": len(data),
        "stream_bytes": size,
        "tokens": sum(stage.steps * (stage.tokens // stage.length) * stage.length for stage in phase.stages),
        "cpu_seconds": seconds,
        "loss_nats_per_token": sum(losses[-LOG_EVERY:]) / len(losses[-LOG_EVERY:]),
        "texts": {f"{book.part}/{book.file}": books.digest(text) for book, text in texts.items()},
    }
    write_atomic(folder / "training.json", record)
    checkpoint.unlink(missing_ok=True)


def read_record(folder: Path) -> dict:
    """Return the record that `make` wrote to `folder`; raise UserError if there is none."""
    try:
        return json.loads((folder / "training.json").read_text())
    except FileNotFoundError:
        raise UserError(f"{folder} holds no training.json: train the model first.") from None
