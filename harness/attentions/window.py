"""attn=window: exact ALiBi cut where slope * distance exceeds a cutoff.

The cutoff is given, or chosen so that the window costs as much as random masks.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness.attentions.base import Attention, Near, Style, word_option
from harness.attentions.masks import matched_pairs, matches, samplers
from harness.common.errors import UserError

if TYPE_CHECKING:
    from harness.models.spec import ModelSpec


@dataclass
class Options:
    match: str | None = word_option(matches)  # fused
    # gamma; like `align` an option of the masks whose cost is matched
    sampler: str | None = word_option(samplers)
    cutoff: float | None = None
    sinks: int = 0
    evict: bool = False
    align: int = 0
    near: Near = 0
    stagger: bool = False


@dataclass(frozen=True)
class Window(Attention):
    """A window in each head. cutoff: its length in units of 1/slope. near: its least length in
    tokens. stagger: whether the length varies over layers and heads with this mean, as the reach of
    masks does (`kernels.methods.stagger`)."""

    name = "window"
    Options = Options
    any_context = False  # the matched cutoff grows with the context
    style = Style("window", "slope window", "square-open")

    cutoff: float
    sinks: int = 0
    evict: bool = False
    near: int = 0
    stagger: bool = False

    @classmethod
    def from_options(cls, options, *, masks, context, model):
        shared = {name: getattr(options, name) for name in ("sinks", "evict", "near", "stagger")}
        if cls.matched(options):
            pairs = matched_pairs(options, masks=masks, context=context, model=model, instead="attn.cutoff")
            return cls.of_cost(pairs, model, context, **shared)
        if not 0 <= options.cutoff < math.inf:
            raise UserError(
                f"attn.cutoff must be a number of at least 0, not {options.cutoff}; attn=alibi has no cutoff."
            )
        return cls(options.cutoff, **shared)

    @classmethod
    def matched(cls, options):
        return options.cutoff is None

    @classmethod
    def of_cost(
        cls, pairs: float, model: "ModelSpec", context: int, *, sinks: int = 0, evict: bool = False, near: int = 0,
        stagger: bool = False,
    ) -> "Window":  # fmt: skip
        """Return the window that visits a number of pairs.

        Args:
            pairs: pairs of all heads over the context (`Attention.pairs`).
            model: the model, for its slopes.
            context: tokens.
            sinks: first tokens that stay visible.
            evict: whether generation drops keys out of reach.
            near: nearest keys that every row sees.
            stagger: whether the length varies over layers and heads.
        """
        from kernels.methods.cost import cutoff_of
        from kernels.methods.stagger import staggered_cutoff_of

        if stagger:
            layers = model.architecture.layers
            cutoff = staggered_cutoff_of(model.slopes, pairs, context, layers=layers, sinks=sinks, near=near)
        else:
            cutoff = cutoff_of(model.slopes, pairs, context, sinks=sinks, near=near)
        # six digits, because the cutoff is part of the identity and its last bits vary by machine
        return cls(float(f"{cutoff:.6g}"), sinks, evict, near, stagger)

    @property
    def label(self):
        return f"window T={self.cutoff:.3g}{', staggered' * self.stagger}{self.label_suffix}"

    @property
    def variant(self):
        return super().variant + ["staggered"] * self.stagger

    def weights_of(self, model, *, seed, draw):
        from kernels import Window
        from kernels.methods.stagger import staggered_cutoffs

        if self.stagger:
            cutoffs = staggered_cutoffs(self.cutoff, model.architecture.layers, len(model.slopes))
            return [Window(model.slopes, cutoff, self.sinks, self.near) for cutoff in cutoffs]
        return [Window(model.slopes, self.cutoff, self.sinks, self.near)] * model.architecture.layers

    def pairs(self, model, context):
        from kernels.methods.cost import window_pairs
        from kernels.methods.stagger import staggered_pairs

        if self.stagger:
            shared: dict[str, Any] = {"layers": model.architecture.layers, "sinks": self.sinks, "near": self.near}
            return {"fused": staggered_pairs(model.slopes, self.cutoff, context, **shared)}
        return {"fused": window_pairs(model.slopes, self.cutoff, context, sinks=self.sinks, near=self.near)}

    def costs_as_much_as(self, other, *, pairs, wanted, context):
        # the cutoff has six digits
        alike = (self.sinks, self.evict, self.near) == (other.sinks, other.evict, other.near)
        return alike and not self.stagger and abs(pairs - wanted) < 1e-4 * wanted
