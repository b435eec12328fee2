"""The plan of a bench: head sets, kinds of calls, lengths and numbers of masks, and their order."""

import itertools
import re
from dataclasses import dataclass

import torch

from kernels.methods.slopes import alibi_slopes


@dataclass(frozen=True)
class HeadSet:
    """The heads of one layer, with ALiBi's slopes for this `bias_max`."""

    heads: int
    dim: int
    bias_max: float = 8.0

    @property
    def slopes(self) -> torch.Tensor:
        """Slopes of the heads, (H,) float64."""
        return alibi_slopes(self.heads, bias_max=self.bias_max)


# as in the models' configurations; BLOOM-7B1 has the heads, head dimension and slopes of MPT-7B, so
# that both are measured at once
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
    """One part of the bench: a call on one head set and length, with PLSH of `masks` masks and the
    methods that it is compared with. The `first` number of masks of a call includes the methods
    without masks."""

    name: str
    heads: HeadSet
    call: str
    tokens: int
    masks: int
    first: bool

    @property
    def queries(self) -> int:
        """Number of rows of the call."""
        return CALLS[self.call] or self.tokens

    @property
    def title(self) -> str:
        """Name of the part for messages."""
        return f"{self.name}, {self.call}, {self.tokens} tokens, {self.masks} masks"


def head_sets(names: list[str]) -> dict[str, HeadSet]:
    """Head sets by name; equal ones under one joint name. `8x64` stands for 8 heads of dimension
    64, `8x64x16` for a bias_max of 16. Raises ValueError for any other unknown name."""
    joint: dict[HeadSet, list[str]] = {}
    for name in names:
        if name in HEAD_SETS:
            heads = HEAD_SETS[name]
        elif match := re.fullmatch(r"([1-9]\d*)x([1-9]\d*)(?:x([1-9]\d*))?", name):
            heads = HeadSet(int(match[1]), int(match[2]), float(match[3] or 8))
        else:
            raise ValueError(f"Unknown heads {name!r}: choose from {', '.join(HEAD_SETS)}, or say 8x64.")
        joint.setdefault(heads, []).append(name)
    return {" and ".join(same): heads for heads, same in joint.items()}


def plan(heads: dict[str, HeadSet], calls: list[str], lengths: list[int], masks: list[int]) -> list[Work]:
    """All combinations, the most informative first: the first head set at 32k and 128k with the
    first number of masks, forward.

    Args:
        heads: the head sets by name.
        calls: names of CALLS.
        lengths: numbers of tokens.
        masks: numbers of masks; the first brings the methods without masks.
    """

    def rank(work: Work) -> int:
        return (
            2 * list(heads).index(work.name)
            + {"forward": 0, "decode-1": 1, "backward": 1, "decode-16": 2}[work.call]
            + (0 if work.tokens in (32768, 131072) else 2)
            + (0 if work.first else 3)
        )

    every = itertools.product(heads.items(), calls, lengths, masks)
    works = [Work(name, one, call, tokens, s, s == masks[0]) for (name, one), call, tokens, s in every]
    return sorted(works, key=rank)
