"""Options of random masks that several methods share: samplers, and masks on a grid."""

from typing import TYPE_CHECKING

from harness.common.errors import UserError

if TYPE_CHECKING:
    from harness.models.spec import ModelSpec
    from kernels.methods.samplers import Sampler


def samplers() -> "dict[str, Sampler]":
    """Return the samplers by name (`kernels.methods.samplers`)."""
    from kernels.methods.samplers import SAMPLERS

    return SAMPLERS


def refuse_align(align: int, sampler: str, model: "ModelSpec", weights: str = "count") -> None:
    """Check that masks on a grid exist and differ from those without a grid.

    Args:
        align: tokens of the grid.
        sampler: name of the sampler.
        model: the model, for its slopes.
        weights: the option attn.weights.

    Raises:
        UserError: if they do not.
    """
    from kernels.methods.masks import MAX_GRID_BIAS, aligned

    if align < 2:
        raise UserError(f"attn.align must be 0 or at least 2 tokens, not {align}.")
    if not samplers()[sampler].random:
        random = " or ".join(name for name, candidate in samplers().items() if candidate.random)
        raise UserError(f"attn.align needs random masks: use attn.sampler={random}.")
    if weights != "count":
        raise UserError(f"attn.align is for counts: use attn.weights=count with it, not {weights}.")
    if not bool(aligned(model.slopes, align).any()):
        flattest, bound = float(model.slopes.min()), (8 * MAX_GRID_BIAS) ** 0.5  # bound of slope * align
        largest = int(bound / flattest)
        raise UserError(
            f"attn.align={align} would move no mask of {model.name}: it takes heads whose weights it moves by at "
            f"most {MAX_GRID_BIAS:.0%}, of slopes up to {bound / align:.2g}, and the flattest has {flattest:.2g}. "
            + (f"Use at most attn.align={largest}." if largest >= 2 else "Leave it out.")
        )
