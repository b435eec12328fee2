"""What is measured, and in which order: head sets, kinds of calls, lengths and numbers of masks."""

import itertools
import re
from dataclasses import dataclass

import torch

from kernels.methods.slopes import alibi_slopes


@dataclass(frozen=True)
class HeadSet:
    """Heads of one layer; their slopes are those of ALiBi with this `bias_max`."""

    heads: int
    dim: int
    bias_max: float = 8.0

    @property
    def slopes(self) -> torch.Tensor:
        return alibi_slopes(self.heads, bias_max=self.bias_max)


# as in the models' configurations; BLOOM-7B1 has MPT-7B's heads, head dimension and slopes, so that
# both are measured once
HEAD_SETS = {
    "mpt-7b": HeadSet(32, 128),
    "storywriter": HeadSet(32, 128, 16.0),
    "bloom-7b1": HeadSet(32, 128),
    "small": HeadSet(8, 64),
}
CALLS = {"forward": 0, "decode-1": 1, "decode-16": 16, "backward": 0}  # rows of a call; 0: as many as tokens
MASKS = (16, 4, 64, 1)
FILE = "bench_{device}.json"  # of docs/results
COMMAND = "python -m kernels.bench --device {device} --json docs/results/" + FILE
LENGTHS = (32768, 131072, 16384, 65536, 4096, 8192)


@dataclass(frozen=True)
class Work:
    """One part of the bench: a call on one head set and length, PLSH with `masks` masks beside what
    it is compared to. The `first` number of masks of a call brings the methods without masks."""

    name: str
    heads: HeadSet
    call: str
    tokens: int
    masks: int
    first: bool

    @property
    def queries(self) -> int:
        return CALLS[self.call] or self.tokens

    @property
    def title(self) -> str:
        return f"{self.name}, {self.call}, {self.tokens} tokens, {self.masks} masks"


def head_sets(names: list[str]) -> dict[str, HeadSet]:
    """Head sets by name, `8x64` for 8 heads of dimension 64, `8x64x16` with bias_max 16; equal ones
    under one joint name. Raises ValueError for a name that is neither."""
    joint: dict[HeadSet, list[str]] = {}
    for name in names:
        if name in HEAD_SETS:
            found = HEAD_SETS[name]
        elif own := re.fullmatch(r"([1-9]\d*)x([1-9]\d*)(?:x([1-9]\d*))?", name):
            found = HeadSet(int(own[1]), int(own[2]), float(own[3] or 8))
        else:
            raise ValueError(f"Unknown heads {name!r}: choose from {', '.join(HEAD_SETS)}, or say 8x64.")
        joint.setdefault(found, []).append(name)
    return {" and ".join(own): found for found, own in joint.items()}


def plan(heads: dict[str, HeadSet], calls: list[str], lengths: list[int], masks: list[int]) -> list[Work]:
    """All combinations, those that tell most first: the first head set at 32k and 128k with 16
    masks, forward."""

    def rank(work: Work) -> int:
        return (
            2 * list(heads).index(work.name)
            + {"forward": 0, "decode-1": 1, "backward": 1, "decode-16": 2}[work.call]
            + (0 if work.tokens in (32768, 131072) else 2)
            + (0 if work.first else 3)
        )

    every = itertools.product(heads.items(), calls, lengths, masks)
    works = [Work(name, own, call, tokens, s, s == masks[0]) for (name, own), call, tokens, s in every]
    return sorted(works, key=rank)
