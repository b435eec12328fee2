"""A cell: one model under one attention at one context. Its identity is a dictionary of what the results depend on;
its id is a hash of exactly that, so options that cannot matter collapse to null and the same cell is never run
twice."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace

from harness.models.spec import ModelSpec
from harness.store import short_hash
from kernels import Alibi, PositionalLSH, Weights, Window, equal_cost_cutoff, expected_pairs
from kernels.cost import align_bias, window_pairs

SCHEMA = 1
DRAWS = 8  # of the masks, where the configuration does not say
ATTENTIONS = ("alibi", "plsh", "window", "stock")


@dataclass(frozen=True)
class Attention:
    """What is computed. Fields that cannot matter for `name` are None; a window's cutoff is a number. sinks: the first
    tokens that stay visible with exact weight. evict: generation drops the keys that nothing can reach any more. align:
    tokens of the grid on which the masks of flat heads begin and end, 0 for none."""

    name: str
    masks: int | None = None
    sampler: str | None = None
    weights: str | None = None
    cutoff: float | None = None
    sinks: int = 0
    evict: bool = False
    align: int = 0

    @property
    def random(self) -> bool:
        return self.name == "plsh" and self.sampler != "fixed"

    @property
    def label(self) -> str:
        if self.name == "alibi":
            return "exact ALiBi"
        if self.name == "stock":
            return "stock (transformers' own)"
        more = f" +{self.sinks} sink{'s' * (self.sinks > 1)}" if self.sinks else ""
        more += ", evicting" if self.evict else ""
        if self.name == "window":
            return f"window T={self.cutoff:.3g}{more}"
        grid = f", grid of {self.align}" if self.align else ""
        return f"PLSH S={self.masks} {self.sampler} {self.weights}{more}{grid}"

    @property
    def identity(self) -> dict:
        """What came after the first records is in it only where it is in use: their ids stay what they are."""
        fields = {field: getattr(self, field) for field in ("name", "masks", "sampler", "weights", "cutoff")}
        later = {field: getattr(self, field) for field in ("sinks", "evict", "align")}
        return {**fields, **{field: value for field, value in later.items() if value}}


@dataclass(frozen=True)
class Cell:
    model: ModelSpec
    attention: Attention
    kernel: str
    context: int
    seed: int | None
    draws: int
    data_seed: int

    @property
    def identity(self) -> dict:
        attention = self.attention
        return {
            "schema": SCHEMA,
            "model": self.model.identity,
            "dtype": self.model.dtype,
            "attn": attention.identity,
            "kernel": None if attention.name == "stock" else self.kernel,
            "context": self.context,
            "seed": self.seed if attention.random else None,
            "draws": self.draws if attention.random else None,
            "data_seed": self.data_seed,
        }

    @functools.cached_property
    def cell_id(self) -> str:
        return short_hash(self.identity)

    def task_id(self, name: str, options: dict) -> str:
        return short_hash({"cell": self.cell_id, "task": name, "options": options})

    def with_attention(self, attention: Attention, *, draws: int = 1) -> "Cell":
        return replace(self, attention=attention, draws=draws)

    def weights(self, draw: int) -> Sequence[Weights] | None:
        """The weights of every layer in one draw of the masks; None where the checkpoint's own code decides."""
        slopes, attention, layers = self.model.slopes, self.attention, self.model.architecture.layers
        if attention.name == "stock":
            return None
        if attention.name == "alibi":
            return [Alibi(slopes)] * layers
        if attention.name == "window":
            return [Window(slopes, attention.cutoff, attention.sinks)] * layers
        return [
            PositionalLSH.draw(
                slopes,
                attention.masks,
                seed=self.seed,
                draw=draw,
                layer=layer,
                sampler=attention.sampler,
                weights=attention.weights,
                sinks=attention.sinks,
                align=attention.align,
            )
            for layer in range(layers)
        ]

    def cost(self) -> dict[str, float]:
        """Visited pairs per row and head, key before query, expected over draws: {"fused": ...} and, for masks counted
        one by one, {"passes": ...}."""
        slopes, attention = self.model.slopes, self.attention
        rows = self.context * len(slopes)
        if attention.name in ("alibi", "stock"):
            return {"fused": (self.context - 1) / 2}
        if attention.name == "window":
            return {"fused": window_pairs(slopes, attention.cutoff, self.context, sinks=attention.sinks) / rows}
        options = {"sampler": attention.sampler, "sinks": attention.sinks, "align": attention.align}
        return {
            match: expected_pairs(slopes, attention.masks, self.context, match=match, **options) / rows
            for match in ("fused", "passes")
        }

    def alignment(self) -> dict[str, float] | None:
        """Of masks on a grid how many heads are on it, and how far at most an expected weight is off from theirs under
        ALiBi: {"heads": ..., "bias": ...}; None for others."""
        if not self.attention.align:
            return None
        off = align_bias(self.model.slopes, self.attention.align)
        return {"heads": int((off > 0).sum()), "bias": float(off.max())}


def matched_window(
    model: ModelSpec, *, masks: int, sampler: str, context: int, match: str, sinks: int = 0, align: int = 0
) -> Attention:
    """The window that visits as many pairs as the masks do, both with the same sinks. Six digits: the cutoff is part of
    the cell's identity, and its last bits may differ between machines."""
    options = {"match": match, "sampler": sampler, "sinks": sinks, "align": align}
    cutoff = equal_cost_cutoff(model.slopes, masks, context, **options)
    return Attention("window", cutoff=float(f"{cutoff:.6g}"), sinks=sinks)
