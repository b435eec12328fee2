"""The training of a model that reads texts: plain ALiBi, next tokens.

A stopped run resumes from its last checkpoint, with the rows that it would have read. A longer plan
may resume from it too, as long as it would have made the same steps so far.
"""

import functools
import json
import math
import random
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from harness.common.errors import UserError
from harness.training import net as nets
from harness.training.checkpoints import Progress, Step, identity, read_checkpoint, restore, save
from harness.training.train import Phase, average, optimisers, schedule

LOG_EVERY, PROBE_EVERY, SAVE_SECONDS = 25, 200, 120.0
PROBE_LENGTH = 2048
PROBE_EDGES = (0, 128, 256, 512, 1024, 2048)


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
