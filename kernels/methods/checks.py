"""Checks of arguments that several weights share."""

import operator

import torch


def check_slopes(slopes: torch.Tensor) -> torch.Tensor:
    """Returns the slopes as (H,) float64 on the CPU. Raises ValueError unless they are a non-empty
    list of finite positive numbers."""
    slopes = torch.as_tensor(slopes, dtype=torch.float64, device="cpu")
    if slopes.ndim != 1 or len(slopes) == 0 or not bool(((slopes > 0) & slopes.isfinite()).all()):
        raise ValueError(
            "slopes must be a list of finite positive numbers, one per head (the bias is -m|i-j|: a negative one would "
            f"reward distance); got {slopes.tolist()!r}."
        )
    return slopes


def check_whole(name: str, value: int, least: int, end: int = 2**63) -> int:
    """Returns the value as an int.

    Args:
        name: of the option, for the error.
        value: the number.
        least: smallest allowed number.
        end: first number that is too large.

    Raises:
        ValueError: unless the value is a whole number of least .. end - 1.
    """
    try:
        number = operator.index(None if isinstance(value, bool) else value)  # type: ignore[arg-type]
    except TypeError:
        raise ValueError(f"{name} must be a whole number, not {value!r}.") from None
    if number < least:
        raise ValueError(f"{name} must be at least {least}, not {number}.")
    if number >= end:
        raise ValueError(f"{name} must be below {end}, not {number}.")
    return number
