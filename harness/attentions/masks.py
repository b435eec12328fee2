"""Options of random masks that several methods have: the samplers, and masks on a grid."""

from typing import TYPE_CHECKING

from harness.common.errors import UserError

if TYPE_CHECKING:
    from harness.models.spec import ModelSpec
    from kernels.methods.samplers import Sampler


def samplers() -> "dict[str, Sampler]":
    """By name (`kernels.methods.samplers`)."""
    from kernels.methods.samplers import SAMPLERS

    return SAMPLERS


def refuse_align(align: int, sampler: str, model: "ModelSpec", weights: str = "count") -> None:
    """UserError if masks on a grid of `align` tokens cannot be drawn, or would be those without a
    grid."""
    from kernels.methods.masks import FLAT, aligned

    if align < 2:
        raise UserError(f"attn.align must be 0 or at least 2 tokens, not {align}.")
    if not samplers()[sampler].random:
        known = " or ".join(name for name, one in samplers().items() if one.random)
        raise UserError(f"attn.align needs random masks: use attn.sampler={known}.")
    if weights != "count":
        raise UserError(f"attn.align is for counts: use attn.weights=count with it, not {weights}.")
    if not bool(aligned(model.slopes, align).any()):
        flattest, most = float(model.slopes.min()), (8 * FLAT) ** 0.5
        raise UserError(
            f"attn.align={align} would move no mask of {model.name}: it takes heads whose weights it moves by at "
            f"most {FLAT:.0%}, of slopes up to {most / align:.2g}, and the flattest has {flattest:.2g}. "
            + (f"Use at most attn.align={int(most / flattest)}." if most / flattest >= 2 else "Leave it out.")
        )
