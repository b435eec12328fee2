"""Training of tiny-books, one process of one thread: plain ALiBi, the next token of novels at every
position.

A run that was stopped goes on from its last checkpoint, on the rows it would have read.
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
    """The texts' tokens in a row (N,), an end token before each text."""
    # verbose: transformers would warn that a novel is longer than max_length
    pieces = (encoder.encode(text, verbose=False) for text in texts)
    return torch.tensor([token for piece in pieces for token in (encoder.eos_token_id, *piece)])


def starts(tokens: int, length: int, rng: random.Random) -> Iterator[int]:
    """Where rows of `length` tokens and their next ones start, without end: pass after pass over
    the stream, each cut from a new offset and in a new order."""
    while True:
        places = list(range(rng.randrange(min(length, tokens - length)), tokens - length, length))
        rng.shuffle(places)
        yield from places


def batches(tokens: int, stages: Iterable[Stage], seed: int) -> list[tuple[int, list[int]]]:
    """The (length, starts of rows) of every step."""
    rng = random.Random(seed)
    found = []
    for stage in stages:
        places = starts(tokens, stage.length, rng)
        found += [
            (stage.length, [next(places) for _ in range(stage.tokens // stage.length)]) for _ in range(stage.steps)
        ]
    return found


def train(
    net: nets.Net, data: Tensor, phase: Phase, seed: int, log: Callable[[str], None], checkpoint: Path | None = None
) -> tuple[list[float], float]:
    """Run a phase; return the loss (nats per token) of each step and the seconds of CPU time all of
    them took.

    `data` (N,) is what `stream` gives. `checkpoint`: a file to go on from if it is of this very
    run, and to keep.
    """
    longest = max(stage.length for stage in phase.stages)
    if len(data) <= longest:
        raise UserError(f"The texts have {len(data)} tokens: rows of {longest} need more text.")
    workers = optimisers(net)
    bases = [group["lr"] for worker in workers for group in worker.param_groups]
    biases = functools.cache(functools.partial(nets.alibi_bias, net.shape.n_heads))
    run = {"phase": repr(phase), "seed": seed, "tokens": len(data), "sum": int(data.sum())}
    losses, before = restore(checkpoint, run, net, workers)
    began, first = time.process_time(), len(losses)
    plan = batches(len(data), phase.stages, seed)
    read = sum(length * len(places) for length, places in plan[:first])
    for step, (length, places) in enumerate(plan[first:], first):
        groups = [group for worker in workers for group in worker.param_groups]
        for group, base in zip(groups, bases, strict=True):
            group["lr"] = base * schedule(step, len(plan), phase)
        rows = torch.stack([data[at : at + length + 1] for at in places])
        with torch.autocast("cpu", torch.bfloat16):
            logits = net.logits(net(rows[:, :-1], biases(length)))
        loss = F.cross_entropy(logits.flatten(0, 1).float(), rows[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        for worker in workers:
            worker.step()
            worker.zero_grad()
        losses.append(loss.item())
        read += length * len(places)
        seconds = before + time.process_time() - began
        if (step + 1) % LOG_EVERY == 0:
            recent = sum(losses[-LOG_EVERY:]) / LOG_EVERY
            log(f"{phase.name} {step + 1}/{len(plan)} T={length} loss {recent:.3f} {read / 1e6:.1f}M {seconds:.0f} s")
        if checkpoint and (step + 1) % SAVE_EVERY == 0:
            state = {"run": run, "losses": losses, "seconds": seconds, "net": net.state_dict()}
            state["optimisers"] = [worker.state_dict() for worker in workers]
            torch.save(state, checkpoint.with_suffix(".new"))
            checkpoint.with_suffix(".new").replace(checkpoint)
    return losses, before + time.process_time() - began


def restore(
    checkpoint: Path | None, run: dict, net: nets.Net, workers: list[torch.optim.Optimizer]
) -> tuple[list[float], float]:
    """Losses and CPU seconds so far, network and optimisers put back; none if the file is of
    another run."""
    if not checkpoint or not checkpoint.exists():
        return [], 0.0
    state = torch.load(checkpoint)
    if state["run"] != run:
        return [], 0.0
    net.load_state_dict(state["net"])
    for worker, kept in zip(workers, state["optimisers"], strict=True):
        worker.load_state_dict(kept)
    return state["losses"], state["seconds"]


def make(texts: dict[books.Book, str], folder: Path, phase: Phase, log: Callable[[str], None]) -> None:
    """Train the model into `folder`, with `training.json`: how it was made."""
    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    read = [text for book, text in texts.items() if book.part == "train"]
    encoder = tokenizer.learn(read, VOCABULARY, MAX_LENGTH)
    data = stream(encoder, read)
    size = sum(len(text.encode()) for text in read)
    log(f"{phase.name}: {len(data)} tokens in {size} bytes of {len(read)} novels")
    torch.manual_seed(SEED)
    net = nets.Net(nets.config(len(encoder), **SHAPE))
    checkpoint = folder / "checkpoint.pt"
    where = environment.describe(torch.device("cpu"))
    losses, seconds = train(net, data, phase, SEED, log, checkpoint)
    nets.export(net, folder)
    encoder.save_pretrained(folder)
    stages = [vars(stage) for stage in phase.stages]
    made = {
        "commit": where["commit"],
        "dirty": where["dirty"],
        "device": where["device"],
        "packages": {name: where["packages"][name] for name in ("torch", "transformers", "tokenizers")},
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
    write_atomic(folder / "training.json", made)
    checkpoint.unlink(missing_ok=True)


def told(folder: Path) -> dict:
    """What `make` wrote of the model in `folder`. Raises UserError if nothing is there."""
    try:
        return json.loads((folder / "training.json").read_text())
    except FileNotFoundError:
        raise UserError(f"{folder} holds no training.json: train the model first.") from None
