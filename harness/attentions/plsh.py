"""attn=plsh: Positional LSH (arXiv 2605.09472), weights on the union of random masks."""

from dataclasses import dataclass
from typing import Any

from harness.attentions.base import Attention, Near, Style, word_option
from harness.attentions.masks import refuse_align, samplers
from harness.common.errors import UserError

SYMBOLS = {"gamma": "circle", "systematic": "triangle-down", "fixed": "cross"}
SHARES = ("none", "layers", "heads", "all")
DASHES = {"gamma": "solid", "systematic": "dash", "fixed": "dot"}


def _weights() -> tuple[str, ...]:
    from kernels.methods.plsh import UNION_WEIGHTS

    return UNION_WEIGHTS


def _shares() -> tuple[str, ...]:
    return SHARES


@dataclass
class Options:
    sampler: str | None = word_option(samplers)  # gamma
    weights: str | None = word_option(_weights)  # count
    sinks: int = 0
    evict: bool = False
    align: int = 0
    near: Near = 0
    share: str | None = word_option(_shares)  # none


@dataclass(frozen=True)
class Plsh(Attention):
    """Positional LSH with its options.

    masks: masks of each layer and head.
    sampler: how they are drawn (`kernels.methods.samplers`).
    weights: weights on their union, "count", "rb" or "exact" (`kernels.PositionalLSH`).
    sinks: first tokens that stay visible.
    evict: whether generation drops keys out of reach.
    align: tokens of the grid on which masks of flat heads begin and end, 0 for none.
    near: nearest keys that every row sees with the exact weight.
    share: what has the same masks in a draw: all "layers", all "heads" of a layer (in units of their
        sigma), "all" of both, or "none".
    """

    name = "plsh"
    Options = Options
    beside_windows = True

    masks: int
    sampler: str
    weights: str
    sinks: int = 0
    evict: bool = False
    align: int = 0
    near: int = 0
    share: str = "none"

    @classmethod
    def from_options(cls, options, *, masks, context, model):
        name, weights = options.sampler or "gamma", options.weights or "count"
        if options.align:
            refuse_align(options.align, name, model, weights)
        sampler = samplers()[name]
        if weights == "rb" and sampler.log_coverage is None:
            usable = " or ".join(n for n, candidate in samplers().items() if candidate.log_coverage is not None)
            needs = f"P(covered), for which {name} has no formula" if sampler.random else "random masks"
            raise UserError(f"attn.weights=rb needs {needs}: use attn.sampler={usable}.")
        masks = masks if sampler.random else 1  # without randomness all masks of a draw are equal
        share = (options.share or "none") if sampler.random else "none"
        return cls(masks, name, weights, options.sinks, options.evict, options.align, options.near, share)

    @property
    def random(self):
        return samplers()[self.sampler].random

    @property
    def label(self):
        words = [f"PLSH S={self.masks} {self.sampler} {self.weights}{self.label_suffix}", *self._own_words]
        return ", ".join(words)

    @property
    def _own_words(self) -> list[str]:
        shared = {"all": "layers and heads"}.get(self.share, self.share)
        return [f"grid of {self.align}"] * bool(self.align) + [f"shared by {shared}"] * (self.share != "none")

    @property
    def style(self):
        key = f"plsh-{self.weights}" if self.weights in ("count", "rb", "exact") else "plsh"
        symbol, dash = SYMBOLS.get(self.sampler, "star"), DASHES.get(self.sampler, "solid")
        return Style(key, f"PLSH {self.sampler} {self.weights}", symbol, dash)

    @property
    def variant(self):
        return super().variant + self._own_words

    def weights_of(self, model, *, seed, draw):
        from kernels import PositionalLSH

        options: dict[str, Any] = {
            "sampler": self.sampler,
            "weights": self.weights,
            "sinks": self.sinks,
            "align": self.align,
            "near": self.near,
            "share_heads": self.share in ("heads", "all"),
        }
        layers = range(model.architecture.layers)
        keys = [0] * len(layers) if self.share in ("layers", "all") else layers
        return [
            PositionalLSH.draw(model.slopes, self.masks, seed=seed, draw=draw, layer=key, **options) for key in keys
        ]

    def pairs(self, model, context):
        from kernels.methods.cost import expected_pairs

        options: dict[str, Any] = {"sampler": self.sampler, "sinks": self.sinks}
        options |= {"align": self.align, "near": self.near}
        matches = samplers()[self.sampler].matches
        return {match: expected_pairs(model.slopes, self.masks, context, match=match, **options) for match in matches}

    @property
    def masks_drawn(self):
        return self.masks

    @property
    def masks_counted(self):
        return self.masks if self.weights == "count" else 0

    def facts(self, model):
        """Return, for masks on a grid, the heads on the grid and the largest bias of their weights.

        The bias is the difference between the expected weight of a pair and its ALiBi weight.
        """
        from kernels.methods.cost import align_bias

        if not self.align:
            return {}
        bias = align_bias(model.slopes, self.align)
        return {"alignment": {"heads": int((bias > 0).sum()), "bias": float(bias.max())}}

    def remarks(self, cell):
        remarks = ["one draw: intervals leave out the masks' variance"] * (cell.identity.draws == 1)
        grid = cell.more.get("alignment")
        if isinstance(grid, dict) and isinstance(grid.get("heads"), int) and isinstance(grid.get("bias"), float):
            heads = f"{grid['heads']} head{'s' * (grid['heads'] > 1)} on the grid"
            remarks.append(f"{heads}: expected weights, at most 1, are off by up to {grid['bias']:.2g}")
        return remarks
