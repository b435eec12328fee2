"""Training in two processes of one thread each, which average their gradients at each step.

Stages have a number of steps, not a duration, so that runs are reproducible.
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
WARM_UP_STEPS = 50
FULL_LENGTH_SHARE = 0.6
NUM_NEGATIVES = 256
OTHER_WEIGHT = 0.1
MUON_LR, ADAM_LR = 0.02, 4e-3
LOCAL_SHARE, LOCAL_RANGE = 0.7, (0.3, 2.5)
LOG_EVERY, PROBE_EVERY, PROBE_PROMPTS = 50, 250, 24


@dataclass(frozen=True)
class Stage:
    """A stage of training.

    length: tokens of a row; some rows are shorter.
    steps: number of steps.
    tokens: tokens of one process in one step.
    """

    length: int
    steps: int
    tokens: int


@dataclass(frozen=True)
class Phase:
    """Stages with a common schedule of the learning rate, which starts with a short warm-up.

    decay: final share of steps with linear decay.
    local: whether most steps hide pairs with a large ALiBi bias, as a locality regulariser.
    """

    name: str
    stages: tuple[Stage, ...]
    decay: float
    local: bool = False


def candidates(targets: Tensor, core: Tensor, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return the tokens of a sampled softmax, and the targets' positions among them.

    The full softmax would cost more than the rest of the model.

    Args:
        targets: target ids.
        core: ids that are always included.
        size: tokens of the vocabulary.
        generator: source of random negatives.
    """
    negatives = torch.randint(size, (NUM_NEGATIVES,), generator=generator)
    tokens = torch.unique(torch.cat([core, negatives, targets.flatten()]))
    return tokens, torch.searchsorted(tokens, targets)


def answer_losses(
    net: nets.Net, batch: Batch, bias: Tensor, core: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return the training loss and the mean loss of answers, in nats per token.

    Args:
        net: the network.
        batch: the batch.
        bias: the result of `harness.training.net.alibi_bias`.
        core: ids that are always in the softmax.
        generator: source of random negatives.
    """
    tokens, positions = candidates(batch.targets, core, net.shape.vocab_size, generator)
    hidden = net(batch.ids, bias, batch.rows)
    losses = F.cross_entropy(net.logits(hidden, tokens).flatten(0, 1).float(), positions.flatten(), reduction="none")
    answer = batch.answer.flatten()
    answer_loss, other_loss = losses[answer].mean(), losses[~answer].mean()
    return answer_loss + OTHER_WEIGHT * other_loss, answer_loss.detach()


def locality() -> str:
    """Describe the regulariser."""
    low, high = LOCAL_RANGE
    return f"{LOCAL_SHARE:.0%} of steps see m (i - j) <= length / 256 + U({low}, {high}) only"


def optimisers(net: nets.Net) -> list[torch.optim.Optimizer]:
    """Return Muon for the matrices of blocks, and AdamW for embedding and norms."""
    matrices = [p for p in net.transformer.blocks.parameters() if p.dim() == 2]
    vectors = [net.transformer.wte.weight, *(p for p in net.parameters() if p.dim() == 1)]
    return [
        torch.optim.Muon(matrices, lr=MUON_LR, momentum=0.95, weight_decay=0.1),
        torch.optim.AdamW(vectors, lr=ADAM_LR, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def schedule(step: int, steps: int, phase: Phase) -> float:
    """Return the factor on learning rates.

    Args:
        step: the step, from 0.
        steps: number of steps.
        phase: the phase, for its decay.
    """
    decay_factor = (steps - step) / max(1.0, steps * phase.decay)
    return min(1.0, (step + 1) / WARM_UP_STEPS, decay_factor)


def average(net: nets.Net) -> None:
    """Replace each gradient by its mean over the processes."""
    gradients = [p.grad for p in net.parameters() if p.grad is not None]
    flat = torch.cat([g.flatten() for g in gradients])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))


@torch.no_grad()
def probe(net: nets.Net, source: Source, length: int, cutoff: float | None) -> str:
    """Return accuracies on prompts with one question: noise, needles only, and lm-eval's noise.

    Args:
        net: the network.
        source: source of the prompts.
        length: tokens of the prompts.
        cutoff: limit of `m (i - j)`, or None.
    """
    bias = nets.alibi_bias(net.shape.n_heads, length, cutoff)
    shares = []
    for prompts, stored in ((source.harness_prompts, 1), (source.harness_prompts, None), (source.ruler_prompts, 1)):
        rng = random.Random(length)
        batch = collate([prompts.draw(rng, length, stored, 1) for _ in range(PROBE_PROMPTS)], length, 0, rng)
        matches = net.logits(net(batch.ids, bias, batch.rows)).argmax(-1) == batch.targets
        shares.append((matches | ~batch.answer).all(-1).float().mean().item())
    return "/".join(f"{share:.2f}" for share in shares)


def train(net: nets.Net, source: Source, phase: Phase, seed: int, log: Callable[[str], None]) -> list[float]:
    """Run a phase in this process, and return the loss of answers (nats) of each step.

    Args:
        net: the network, trained in place.
        source: source of this process's batches.
        phase: the phase.
        seed: seed of decisions that all processes share.
        log: prints a line.
    """
    shared = random.Random(f"{seed} {phase.name}")
    generator = torch.Generator().manual_seed(shared.randrange(2**31))
    heads = net.shape.n_heads
    biases = functools.cache(functools.partial(nets.alibi_bias, heads))
    optims = optimisers(net)
    bases = [group["lr"] for optim in optims for group in optim.param_groups]
    total = sum(stage.steps for stage in phase.stages)
    losses: list[float] = []
    tokens, start = 0, time.perf_counter()
    for stage in phase.stages:
        for _ in range(stage.steps):
            step = len(losses)
            length = stage.length
            if shared.random() >= FULL_LENGTH_SHARE:
                length = max(64, length // shared.choice((2, 4)))
            bias = biases(length)
            if phase.local and shared.random() < LOCAL_SHARE:
                bias = nets.cut(bias, length / 256 + shared.uniform(*LOCAL_RANGE))
            factor = schedule(step, total, phase)
            groups = [group for optim in optims for group in optim.param_groups]
            for group, base in zip(groups, bases, strict=True):
                group["lr"] = base * factor
            batch = source.batch(length, stage.tokens // length)
            loss, answers = answer_losses(net, batch, bias, source.core, generator)
            loss.backward()
            average(net)
            torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            for optim in optims:
                optim.step()
                optim.zero_grad()
            losses.append(answers.item())
            tokens += batch.ids.numel() * dist.get_world_size()
            if (step + 1) % LOG_EVERY == 0:
                recent = sum(losses[-LOG_EVERY:]) / LOG_EVERY
                rate = tokens / (time.perf_counter() - start)
                position = f"{phase.name} {step + 1}/{total} T={stage.length}"
                log(f"{position} loss {recent:.3f} {tokens / 1e6:.1f}M {rate:.0f} tok/s")
            if (step + 1) % PROBE_EVERY == 0 and dist.get_rank() == 0:
                probe_length = max(128, stage.length)
                cutoff = probe_length / 256 + 1.4
                exact_share, cut_share = (probe(net, source, probe_length, limit) for limit in (None, cutoff))
                log(f"  T={probe_length} exact {exact_share}, with m d <= {cutoff:.2f} {cut_share}")
    return losses


def run_rank(rank: int, meeting: str, phase: Phase, seed: int, start: Path | None, result: Path) -> None:
    """Train a phase as one of its processes.

    Args:
        rank: number of the process.
        meeting: address where the processes meet.
        phase: the phase.
        seed: seed of weights and data.
        start: file of the initial weights; None for random weights.
        result: file for the trained weights.
    """
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
