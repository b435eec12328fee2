"""Options of random masks that several methods share: samplers, masks on a grid, and their cost."""

from typing import TYPE_CHECKING, Any

from harness.common.errors import UserError

if TYPE_CHECKING:
    from harness.models.spec import ModelSpec
    from kernels.methods.samplers import Sampler


def samplers() -> "dict[str, Sampler]":
    """Return the samplers by name (`kernels.methods.samplers`)."""
    from kernels.methods.samplers import SAMPLERS

    return SAMPLERS


def matches() -> tuple[str, ...]:
    """Return the ways to count the pairs of masks (`kernels.methods.samplers`)."""
    from kernels.methods.samplers import MATCHES

    return MATCHES


def matched_pairs(options: Any, *, masks: int, context: int, model: "ModelSpec", instead: str) -> float:
    """Return the expected pairs of the masks whose cost a window matches.

    Args:
        options: attn.match, sampler, sinks, align and near of the masks.
        masks: number of masks.
        context: tokens.
        model: the model, for its slopes.
        instead: the option that makes the match unnecessary, for the error.

    Returns:
        Pairs of all heads over the context.

    Raises:
        UserError: if the sampler has no formula, or the masks do not fit on the grid.
    """
    from kernels.methods.cost import expected_pairs

    match, sampler = options.match or "fused", options.sampler or "gamma"
    if match not in samplers()[sampler].matches:
        usable = " or ".join(name for name, candidate in samplers().items() if match in candidate.matches)
        raise UserError(
            f"attn.match={match} needs the expected pairs of the masks, for which attn.sampler={sampler} has no "
            f"formula: use attn.sampler={usable}, or give {instead}."
        )
    if options.align:
        refuse_align(options.align, sampler, model)
    shared = {"sinks": options.sinks, "align": options.align, "near": options.near}
    return expected_pairs(model.slopes, masks, context, match=match, sampler=sampler, **shared)


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
