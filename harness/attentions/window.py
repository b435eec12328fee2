"""attn=window: exact ALiBi cut where slope * distance exceeds a cutoff.

The cutoff is given, or chosen so that the window costs as much as random masks.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

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


@dataclass(frozen=True)
class Window(Attention):
    """A window in each head. cutoff: its length in units of 1/slope. near: its least length in
    tokens."""

    name = "window"
    Options = Options
    any_context = False  # the matched cutoff grows with the context
    style = Style("window", "slope window", "square-open")

    cutoff: float
    sinks: int = 0
    evict: bool = False
    near: int = 0

    @classmethod
    def from_options(cls, options, *, masks, context, model):
        shared = {"sinks": options.sinks, "evict": options.evict, "near": options.near}
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
        cls, pairs: float, model: "ModelSpec", context: int, *, sinks: int = 0, evict: bool = False, near: int = 0
    ) -> "Window":
        """Return the window that visits a number of pairs.

        Args:
            pairs: pairs of all heads over the context (`Attention.pairs`).
            model: the model, for its slopes.
            context: tokens.
            sinks: first tokens that stay visible.
            evict: whether generation drops keys out of reach.
            near: nearest keys that every row sees.
        """
        from kernels.methods.cost import cutoff_of

        # six digits, because the cutoff is part of the identity and its last bits vary by machine
        cutoff = cutoff_of(model.slopes, pairs, context, sinks=sinks, near=near)
        return cls(float(f"{cutoff:.6g}"), sinks, evict, near)

    @property
    def label(self):
        return f"window T={self.cutoff:.3g}{self.label_suffix}"

    def weights_of(self, model, *, seed, draw):
        from kernels import Window

        return [Window(model.slopes, self.cutoff, self.sinks, self.near)] * model.architecture.layers

    def pairs(self, model, context):
        from kernels.methods.cost import window_pairs

        return {"fused": window_pairs(model.slopes, self.cutoff, context, sinks=self.sinks, near=self.near)}

    def costs_as_much_as(self, other, *, pairs, wanted, context):
        # the cutoff has six digits
        alike = (self.sinks, self.evict, self.near) == (other.sinks, other.evict, other.near)
        return alike and abs(pairs - wanted) < 1e-4 * wanted
