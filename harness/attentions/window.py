"""attn=window: exact ALiBi cut where slope * distance exceeds a cutoff.

The cutoff is given, or chosen so that the window costs as much as random masks.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness.attentions.base import Attention, Style, word_option
from harness.attentions.masks import refuse_align, samplers
from harness.common.errors import UserError

if TYPE_CHECKING:
    from harness.models.spec import ModelSpec


def _matches() -> tuple[str, ...]:
    from kernels.methods.samplers import MATCHES

    return MATCHES


@dataclass
class Options:
    match: str | None = word_option(_matches)  # fused
    # gamma; like `align` an option of the masks whose cost is matched
    sampler: str | None = word_option(samplers)
    cutoff: float | None = None
    sinks: int = 0
    evict: bool = False
    align: int = 0
    near: int = 0


@dataclass(frozen=True)
class Window(Attention):
    """A window in each head. cutoff: its length in units of 1/slope. near: its least length in
    tokens; with cutoff 0 it is the sliding window of `near` tokens in every head."""

    name = "window"
    Options = Options
    any_context = False  # the matched cutoff grows with the context
    style = Style("window", "window", "square-open")

    cutoff: float
    sinks: int = 0
    evict: bool = False
    near: int = 0

    @classmethod
    def from_options(cls, options, *, masks, context, model):
        from kernels.methods.cost import expected_pairs

        shared = {"sinks": options.sinks, "evict": options.evict, "near": options.near}
        if options.cutoff is not None:
            if not 0 <= options.cutoff < math.inf:
                raise UserError(
                    f"attn.cutoff must be a number of at least 0, not {options.cutoff}; attn=alibi has no cutoff."
                )
            return cls(options.cutoff, **shared)
        match, sampler = options.match or "fused", options.sampler or "gamma"
        if match not in samplers()[sampler].matches:
            usable = " or ".join(name for name, candidate in samplers().items() if match in candidate.matches)
            raise UserError(
                f"attn.match={match} needs the expected pairs of the masks, for which attn.sampler={sampler} has no "
                f"formula: use attn.sampler={usable}, or give attn.cutoff."
            )
        if options.align:
            refuse_align(options.align, sampler, model)
        mask_options = {"match": match, "sampler": sampler, "sinks": options.sinks, "align": options.align}
        mask_options["near"] = options.near
        pairs = expected_pairs(model.slopes, masks, context, **mask_options)
        return cls.of_cost(pairs, model, context, **shared)

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

    def costs_as_much_as(self, other):
        return (self.sinks, self.evict, self.near) == (other.sinks, other.evict, other.near)


def equal_cost_windows(attention: Attention, model: "ModelSpec", context: int) -> dict[str, Attention]:
    """Return the windows that visit as many pairs as an attention, one for each way to count.

    They have its sinks, near field and eviction. An approximation of ALiBi should beat them.

    Args:
        attention: the attention.
        model: the model.
        context: tokens.
    """
    shared: dict[str, Any] = {"sinks": attention.sinks, "evict": attention.evict, "near": attention.near}
    counts = attention.pairs(model, context)
    return {f"window {match}": Window.of_cost(pairs, model, context, **shared) for match, pairs in counts.items()}
