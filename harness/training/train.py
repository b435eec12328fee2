"""Training: two processes of one thread each, which average their gradients after every step.

Stages have a fixed number of steps, never a time, so that a run can be repeated.
"""

import functools
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from harness.training import net as nets
from harness.training.batches import Batch, Source, collate
from harness.training.grammars import build_tokenizer

RANKS = 2
WARM_UP = 50
FULL_SHARE = 0.6
NEGATIVES = 256
OTHERS_WEIGHT = 0.1
MUON_LR, ADAM_LR = 0.02, 4e-3
LOCAL_SHARE, LOCAL_RANGE = 0.7, (0.3, 2.5)
LOG_EVERY, PROBE_EVERY, PROBES = 50, 250, 24


@dataclass(frozen=True)
class Stage:
    """`steps` steps of rows of `length` tokens (some shorter), `tokens` per step and process."""

    length: int
    steps: int
    tokens: int


@dataclass(frozen=True)
class Phase:
    """Stages under one schedule: a short warm-up, and a linear decay over the last share `decay`.

    With `local`, most steps show every head only the pairs whose ALiBi bias is small: a locality
    regulariser.
    """

    name: str
    stages: tuple[Stage, ...]
    decay: float
    local: bool = False


def candidates(targets: Tensor, core: Tensor, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """The tokens the softmax runs over (`core`, targets, some random ones) and the targets' places.

    The full softmax would cost more than the rest of the model.
    """
    drawn = torch.randint(size, (NEGATIVES,), generator=generator)
    tokens = torch.unique(torch.cat([core, drawn, targets.flatten()]))
    return tokens, torch.searchsorted(tokens, targets)


def loss_of(
    net: nets.Net, batch: Batch, bias: Tensor, core: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """(training loss, mean answer loss), in nats per token."""
    tokens, places = candidates(batch.targets, core, net.shape.vocab_size, generator)
    hidden = net(batch.ids, bias, batch.rows)
    losses = F.cross_entropy(net.logits(hidden, tokens).flatten(0, 1).float(), places.flatten(), reduction="none")
    answer = batch.answer.flatten()
    told, others = losses[answer].mean(), losses[~answer].mean()
    return told + OTHERS_WEIGHT * others, told.detach()


def locality() -> str:
    """The regulariser in words."""
    low, high = LOCAL_RANGE
    return f"{LOCAL_SHARE:.0%} of steps see m (i - j) <= length / 256 + U({low}, {high}) only"


def optimisers(net: nets.Net) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the blocks, AdamW for the embedding and the norms."""
    matrices = [p for p in net.transformer.blocks.parameters() if p.dim() == 2]
    others = [net.transformer.wte.weight, *(p for p in net.parameters() if p.dim() == 1)]
    return [
        torch.optim.Muon(matrices, lr=MUON_LR, momentum=0.95, weight_decay=0.1),
        torch.optim.AdamW(others, lr=ADAM_LR, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def schedule(step: int, steps: int, phase: Phase) -> float:
    """The factor on the learning rates at `step` of `steps`."""
    left = (steps - step) / max(1.0, steps * phase.decay)
    return min(1.0, (step + 1) / WARM_UP, left)


def average(net: nets.Net) -> None:
    """Replace every gradient by its mean over the processes."""
    gradients = [p.grad for p in net.parameters() if p.grad is not None]
    flat = torch.cat([g.flatten() for g in gradients])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))


@torch.no_grad()
def probe(net: nets.Net, source: Source, length: int, cutoff: float | None) -> str:
    """Shares of one-needle prompts answered: own noise, own needles only, lm-eval's noise."""
    bias = nets.alibi_bias(net.shape.n_heads, length, cutoff)
    shares = []
    for prompts, stored in ((source.own, 1), (source.own, None), (source.ruler, 1)):
        rng = random.Random(length)
        batch = collate([prompts.draw(rng, length, stored, 1) for _ in range(PROBES)], length, 0, rng)
        hit = net.logits(net(batch.ids, bias, batch.rows)).argmax(-1) == batch.targets
        shares.append((hit | ~batch.answer).all(-1).float().mean().item())
    return "/".join(f"{share:.2f}" for share in shares)


def train(net: nets.Net, source: Source, phase: Phase, seed: int, log: Callable[[str], None]) -> list[float]:
    """Run a phase on this process's share of the data; return the answer loss (nats) of each step.

    `source` is this process's own; what is drawn from `seed` is the same in all of them.
    """
    shared = random.Random(f"{seed} {phase.name}")
    generator = torch.Generator().manual_seed(shared.randrange(2**31))
    heads = net.shape.n_heads
    biases = functools.cache(functools.partial(nets.alibi_bias, heads))
    workers = optimisers(net)
    bases = [group["lr"] for worker in workers for group in worker.param_groups]
    total = sum(stage.steps for stage in phase.stages)
    told: list[float] = []
    seen, start = 0, time.perf_counter()
    for stage in phase.stages:
        for _ in range(stage.steps):
            step = len(told)
            length = stage.length
            if shared.random() >= FULL_SHARE:
                length = max(64, length // shared.choice((2, 4)))
            bias = biases(length)
            if phase.local and shared.random() < LOCAL_SHARE:
                bias = nets.cut(bias, length / 256 + shared.uniform(*LOCAL_RANGE))
            factor = schedule(step, total, phase)
            groups = [group for worker in workers for group in worker.param_groups]
            for group, base in zip(groups, bases, strict=True):
                group["lr"] = base * factor
            batch = source.batch(length, stage.tokens // length)
            loss, answers = loss_of(net, batch, bias, source.core, generator)
            loss.backward()
            average(net)
            torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            for worker in workers:
                worker.step()
                worker.zero_grad()
            told.append(answers.item())
            seen += batch.ids.numel() * dist.get_world_size()
            if (step + 1) % LOG_EVERY == 0:
                recent = sum(told[-LOG_EVERY:]) / LOG_EVERY
                rate = seen / (time.perf_counter() - start)
                where = f"{phase.name} {step + 1}/{total} T={stage.length}"
                log(f"{where} loss {recent:.3f} {seen / 1e6:.1f}M {rate:.0f} tok/s")
            if (step + 1) % PROBE_EVERY == 0 and dist.get_rank() == 0:
                longest = max(128, stage.length)
                near = longest / 256 + 1.4
                exact, local = (probe(net, source, longest, c) for c in (None, near))
                log(f"  T={longest} exact {exact}, with m d <= {near:.2f} {local}")
    return told


def work(rank: int, meeting: str, phase: Phase, seed: int, start: Path | None, result: Path) -> None:
    """One process of a phase: from the weights at `start` (None: random ones) to `result`."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=RANKS)
    tokenizer = build_tokenizer()
    torch.manual_seed(seed)
    net = nets.Net(nets.config(len(tokenizer)))
    if start is not None:
        net.load_state_dict(torch.load(start))
    log = functools.partial(print, flush=True) if rank == 0 else lambda line: None
    source = Source(tokenizer, f"{seed} {phase.name} {rank}")
    train(net, source, phase, seed, log)
    if rank == 0:
        torch.save(net.state_dict(), result)
    dist.destroy_process_group()
