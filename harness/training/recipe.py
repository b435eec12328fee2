"""The recipe: which phases of training lead to which model, and the folders that come out."""

import dataclasses
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.multiprocessing as mp

from harness.training import net as nets
from harness.training.grammars import build_tokenizer
from harness.training.train import RANKS, Phase, Stage, work

SEED = 0
PER_STEP = 4096  # Tokens of one process in one step.


def stages(steps: dict[int, int]) -> tuple[Stage, ...]:
    """Stages from the steps at each row length."""
    return tuple(Stage(length, count, PER_STEP) for length, count in steps.items())


COMMON = Phase("common", stages({64: 250, 128: 250, 256: 350, 512: 350}), decay=0.0)
FINISH = {
    "tiny-plain": Phase("tiny-plain", stages({512: 700}), decay=0.8),
    "tiny": Phase("tiny", stages({256: 150, 512: 700, 1024: 2000}), decay=0.65, local=True),
}


@dataclass(frozen=True)
class Cost:
    """What a phase took: training tokens and wall seconds."""

    phase: Phase
    tokens: int
    seconds: float


def scaled(phase: Phase, factor: float) -> Phase:
    """The phase with `factor` times the steps in every stage, at least one."""
    stages = (dataclasses.replace(s, steps=max(1, round(s.steps * factor))) for s in phase.stages)
    return dataclasses.replace(phase, stages=tuple(stages))


def run(phase: Phase, start: Path | None, result: Path, seed: int) -> Cost:
    """Train from the weights at `start` (None: random ones) and write the result to `result`."""
    began = time.perf_counter()
    meeting = result.with_suffix(".meeting")
    mp.spawn(work, args=(f"file://{meeting}", phase, seed, start, result), nprocs=RANKS)
    tokens = sum(stage.steps * stage.tokens for stage in phase.stages) * RANKS
    return Cost(phase, tokens, time.perf_counter() - began)


def export(weights: Path, folder: Path) -> None:
    """Write weights and tokenizer as a Hugging Face folder."""
    tokenizer = build_tokenizer()
    net = nets.Net(nets.config(len(tokenizer)))
    net.load_state_dict(torch.load(weights))
    nets.export(net, folder)
    tokenizer.save_pretrained(folder)


def make(names: list[str], out: Path, factor: float) -> dict[str, list[Cost]]:
    """Train the named models into folders in `out`; what each cost, the common phase first."""
    costs = {}
    with tempfile.TemporaryDirectory() as scratch:
        start = Path(scratch) / "common.pt"
        common = run(scaled(COMMON, factor), None, start, SEED)
        for name in names:
            weights = start.with_stem(name)
            costs[name] = [common, run(scaled(FINISH[name], factor), start, weights, SEED)]
            export(weights, out / name)
    return costs
