"""attn=plsh: Positional LSH (arXiv 2605.09472), weights on the union of random masks."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness.attentions.base import Attention, Style, one_of
from harness.attentions.masks import refuse_align, samplers
from harness.common.errors import UserError

if TYPE_CHECKING:
    pass

SYMBOLS = {"gamma": "circle", "systematic": "triangle-down", "fixed": "cross"}
DASHES = {"gamma": "solid", "systematic": "dash", "fixed": "dot"}


def _weights() -> tuple[str, ...]:
    from kernels.methods.plsh import UNION_WEIGHTS

    return UNION_WEIGHTS


@dataclass
class Options:
    sampler: str | None = one_of(samplers)  # gamma
    weights: str | None = one_of(_weights)  # count
    sinks: int = 0
    evict: bool = False
    align: int = 0


@dataclass(frozen=True)
class Plsh(Attention):
    """weights: "count", "rb" or "exact" (`kernels.PositionalLSH`). align: tokens of the grid on
    which the masks of flat heads begin and end, 0 for none."""

    name = "plsh"
    Options = Options
    beside_windows = True

    masks: int
    sampler: str
    weights: str
    sinks: int = 0
    evict: bool = False
    align: int = 0

    @classmethod
    def chosen(cls, options, *, masks, context, model):
        sampler, weights = options.sampler or "gamma", options.weights or "count"
        if options.align:
            refuse_align(options.align, sampler, model, weights)
        law = samplers()[sampler]
        if weights == "rb" and law.log_coverage is None:
            known = " or ".join(name for name, one in samplers().items() if one.log_coverage is not None)
            needs = f"P(covered), for which {sampler} has no formula" if law.random else "random masks"
            raise UserError(f"attn.weights=rb needs {needs}: use attn.sampler={known}.")
        masks = masks if law.random else 1  # all masks of a draw are one and the same
        return cls(masks, sampler, weights, options.sinks, options.evict, options.align)

    @property
    def random(self):
        return samplers()[self.sampler].random

    @property
    def label(self):
        grid = f", grid of {self.align}" if self.align else ""
        return f"PLSH S={self.masks} {self.sampler} {self.weights}{self.kept}{grid}"

    @property
    def style(self):
        key = f"plsh-{self.weights}" if self.weights in ("count", "rb", "exact") else "plsh"
        symbol, dash = SYMBOLS.get(self.sampler, "star"), DASHES.get(self.sampler, "solid")
        return Style(key, f"PLSH {self.sampler} {self.weights}", symbol, dash)

    @property
    def variant(self):
        return super().variant + [f"grid of {self.align}"] * bool(self.align)

    def weights_of(self, model, *, seed, draw):
        from kernels import PositionalLSH

        options: dict[str, Any] = {
            "sampler": self.sampler,
            "weights": self.weights,
            "sinks": self.sinks,
            "align": self.align,
        }
        return [
            PositionalLSH.draw(model.slopes, self.masks, seed=seed, draw=draw, layer=layer, **options)
            for layer in range(model.architecture.layers)
        ]

    def pairs(self, model, context):
        from kernels.methods.cost import expected_pairs

        options: dict[str, Any] = {"sampler": self.sampler, "sinks": self.sinks, "align": self.align}
        known = samplers()[self.sampler].matches
        return {match: expected_pairs(model.slopes, self.masks, context, match=match, **options) for match in known}

    @property
    def masks_drawn(self):
        return self.masks

    @property
    def masks_counted(self):
        return self.masks if self.weights == "count" else 0

    def facts(self, model):
        """Of masks on a grid how many heads are on it, and how far at most an expected weight is
        off from theirs under ALiBi."""
        from kernels.methods.cost import align_bias

        if not self.align:
            return {}
        off = align_bias(model.slopes, self.align)
        return {"alignment": {"heads": int((off > 0).sum()), "bias": float(off.max())}}

    def remarks(self, cell):
        said = ["one draw: intervals leave out the masks' variance"] * (cell.identity.draws == 1)
        if grid := cell.more.get("alignment"):
            heads = f"{grid['heads']} head{'s' * (grid['heads'] > 1)} on the grid"
            said.append(f"{heads}: expected weights, at most 1, are off by up to {grid['bias']:.2g}")
        return said
