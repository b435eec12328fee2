"""attn=window: exact ALiBi cut where slope * distance exceeds a cutoff, which is given or matches
the cost of masks."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness.attentions.base import Attention, Style, one_of
from harness.attentions.masks import refuse_align, samplers
from harness.common.errors import UserError

if TYPE_CHECKING:
    from harness.models.spec import ModelSpec


def _matches() -> tuple[str, ...]:
    from kernels.methods.samplers import MATCHES

    return MATCHES


@dataclass
class Options:
    match: str | None = one_of(_matches)  # fused
    sampler: str | None = one_of(samplers)  # gamma; of the masks that the cutoff matches, as `align`
    cutoff: float | None = None
    sinks: int = 0
    evict: bool = False
    align: int = 0


@dataclass(frozen=True)
class Window(Attention):
    """cutoff: in units of 1/slope."""

    name = "window"
    Options = Options
    any_context = False  # its cutoff follows the cost of masks, which grows with the context
    style = Style("window", "window", "square-open")

    cutoff: float
    sinks: int = 0
    evict: bool = False

    @classmethod
    def chosen(cls, options, *, masks, context, model):
        from kernels.methods.cost import expected_pairs

        kept = {"sinks": options.sinks, "evict": options.evict}
        if options.cutoff is not None:
            if not 0 <= options.cutoff < math.inf:
                raise UserError(
                    f"attn.cutoff must be a number of at least 0, not {options.cutoff}; attn=alibi has no cutoff."
                )
            return cls(options.cutoff, **kept)
        match, sampler = options.match or "fused", options.sampler or "gamma"
        if match not in samplers()[sampler].matches:
            known = " or ".join(name for name, one in samplers().items() if match in one.matches)
            raise UserError(
                f"attn.match={match} needs the expected pairs of the masks, for which attn.sampler={sampler} has no "
                f"formula: use attn.sampler={known}, or give attn.cutoff."
            )
        if options.align:
            refuse_align(options.align, sampler, model)
        drawn = {"match": match, "sampler": sampler, "sinks": options.sinks, "align": options.align}
        return cls.of_cost(expected_pairs(model.slopes, masks, context, **drawn), model, context, **kept)

    @classmethod
    def of_cost(
        cls, pairs: float, model: "ModelSpec", context: int, *, sinks: int = 0, evict: bool = False
    ) -> "Window":
        """The window that visits so many pairs. Six digits: the cutoff is part of the cell's
        identity, and its last bits may differ between machines."""
        from kernels.methods.cost import cutoff_of

        return cls(float(f"{cutoff_of(model.slopes, pairs, context, sinks=sinks):.6g}"), sinks, evict)

    @property
    def label(self):
        return f"window T={self.cutoff:.3g}{self.kept}"

    def weights_of(self, model, *, seed, draw):
        from kernels import Window

        return [Window(model.slopes, self.cutoff, self.sinks)] * model.architecture.layers

    def pairs(self, model, context):
        from kernels.methods.cost import window_pairs

        return {"fused": window_pairs(model.slopes, self.cutoff, context, sinks=self.sinks)}

    def costs_as_much_as(self, other):
        return (self.sinks, self.evict) == (other.sinks, other.evict)


def windows_beside(attention: Attention, model: "ModelSpec", context: int) -> dict[str, Attention]:
    """The windows with the sinks and the eviction of `attention` that visit as many pairs, by each
    way to count them: what an approximation of ALiBi should beat."""
    kept: dict[str, Any] = {"sinks": attention.sinks, "evict": attention.evict}
    counts = attention.pairs(model, context)
    return {f"window {match}": Window.of_cost(pairs, model, context, **kept) for match, pairs in counts.items()}
