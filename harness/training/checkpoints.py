"""Checkpoints of a training that can be stopped, and go on by the same plan or by a longer one."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from harness.common.errors import UserError
from harness.training import net as nets


@dataclass(frozen=True)
class Step:
    """A step: rows of `length` tokens from `starts`, for all processes, at `factor` of the rates."""

    length: int
    factor: float
    starts: list[int]


class Progress:
    """What a checkpoint holds beside weights: losses (nats per token), probes and the time so far."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.probes: list[dict[str, Any]] = []
        self.seconds = {"wall": 0.0, "cpu": 0.0}


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
