"""The recipe: the phases of training of each model, and the resulting folders."""

import dataclasses
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.multiprocessing as mp

from harness.training import net as nets
from harness.training.grammars import build_tokenizer
from harness.training.train import RANKS, Phase, Stage, run_rank

SEED = 0
TOKENS_PER_STEP = 4096  # of one process


def stages(steps: dict[int, int]) -> tuple[Stage, ...]:
    """Return stages from the number of steps by row length."""
    return tuple(Stage(length, count, TOKENS_PER_STEP) for length, count in steps.items())


COMMON_PHASE = Phase("common", stages({64: 250, 128: 250, 256: 350, 512: 350}), decay=0.0)
FINAL_PHASES = {
    "tiny-plain": Phase("tiny-plain", stages({512: 700}), decay=0.8),
    "tiny": Phase("tiny", stages({256: 150, 512: 700, 1024: 2000}), decay=0.65, local=True),
}


@dataclass(frozen=True)
class Cost:
    """The cost of a phase: training tokens and wall seconds."""

    phase: Phase
    tokens: int
    seconds: float


def scale_steps(phase: Phase, factor: float) -> Phase:
    """Return the phase with `factor` times the steps of each stage, at least one."""
    stages = (dataclasses.replace(s, steps=max(1, round(s.steps * factor))) for s in phase.stages)
    return dataclasses.replace(phase, stages=tuple(stages))


def run(phase: Phase, start: Path | None, result: Path, seed: int) -> Cost:
    """Train a phase and return its cost.

    Args:
        phase: the phase.
        start: file of the initial weights; None for random weights.
        result: file for the trained weights.
        seed: seed of weights and data.
    """
    start_time = time.perf_counter()
    meeting = result.with_suffix(".meeting")
    mp.spawn(run_rank, args=(f"file://{meeting}", phase, seed, start, result), nprocs=RANKS)
    tokens = sum(stage.steps * stage.tokens for stage in phase.stages) * RANKS
    return Cost(phase, tokens, time.perf_counter() - start_time)


def export(weights: Path, folder: Path) -> None:
    """Write weights and tokenizer as a Hugging Face folder."""
    tokenizer = build_tokenizer()
    net = nets.Net(nets.config(len(tokenizer)))
    net.load_state_dict(torch.load(weights))
    nets.export(net, folder)
    tokenizer.save_pretrained(folder)


def make(names: list[str], out: Path, factor: float) -> dict[str, list[Cost]]:
    """Train models, and return the costs of each, beginning with the common phase.

    Args:
        names: names of the models.
        out: parent of their folders.
        factor: factor on the number of steps.
    """
    costs = {}
    with tempfile.TemporaryDirectory() as scratch:
        start = Path(scratch) / "common.pt"
        common = run(scale_steps(COMMON_PHASE, factor), None, start, SEED)
        for name in names:
            weights = start.with_stem(name)
            costs[name] = [common, run(scale_steps(FINAL_PHASES[name], factor), start, weights, SEED)]
            export(weights, out / name)
    return costs
