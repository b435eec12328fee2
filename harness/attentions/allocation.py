"""Lengths of windows for each head of a model, in a file that `python -m harness.allocate` makes."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from harness.common.errors import UserError
from harness.common.files import parse_json, short_hash

if TYPE_CHECKING:
    from harness.models.spec import ModelSpec

VERSION = 1
Lengths = tuple[tuple[int, ...], ...]  # nearest keys that each head of each layer sees, its own included


@dataclass(frozen=True)
class Allocation:
    """The content of a file.

    tokens: lengths of all heads. digest: hash of the content. text: hash of the text of the
    calibration; None for prompts.
    """

    tokens: Lengths
    digest: str
    text: str | None


def read_allocation(path: str, model: "ModelSpec") -> Allocation:
    """Return the allocation in a file.

    Args:
        path: the file.
        model: the model that it must be for, by its identity or, if that is unknown, by its slopes.

    Raises:
        UserError: if the file cannot be read, is no allocation, or is for another model.
    """
    option = f"attn.allocation={path}"
    file = Path(path).expanduser()
    try:
        content = parse_json(file.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"{option} cannot be read as JSON: {error}.") from None
    fields = content if isinstance(content, dict) else {}
    if fields.get("schema") != VERSION or not isinstance(fields.get("tokens"), list):
        raise UserError(f"{option} is no allocation of version {VERSION}: make it with python -m harness.allocate.")
    found = fields.get("model")
    about = found if isinstance(found, dict) else {}
    # of a model that a program has loaded itself nothing but the slopes is known
    alike = about == model.identity if model.identity else about.get("slopes") == model.rounded_slopes
    if not alike:
        raise UserError(
            f"{option} is for another model than {model.name}: its weights, configuration or tokenizer differ. Make "
            f"one with python -m harness.allocate model={model.name}."
        )
    rows, layers, heads = fields["tokens"], model.architecture.layers, model.architecture.heads
    if [len(row) if isinstance(row, list) else None for row in rows] != [heads] * layers:
        raise UserError(f"{option} must hold {layers} lists, one a layer, of the tokens of {heads} heads.")
    if any(type(n) is not int or not 1 <= n < 2**53 for row in rows for n in row):
        raise UserError(f"{option} must hold whole numbers of at least 1, the row's own token.")
    calibration = fields.get("calibration")
    text = calibration.get("text_sha256") if isinstance(calibration, dict) else None
    return Allocation(tuple(map(tuple, rows)), short_hash(content), text if isinstance(text, str) else None)


@lru_cache(maxsize=256)
def allocated_pairs(tokens: Lengths, context: int, sinks: int, near: int) -> float:
    """Return the pairs of all heads over a context, averaged over the layers.

    Args:
        tokens: as in `Allocation`.
        context: tokens.
        sinks, near: of every head.
    """
    import torch

    from kernels.methods.cost import window_pairs

    lengths = torch.tensor(tokens).clamp_min(near).flatten().double() - 1
    ones = torch.ones_like(lengths)  # as slopes: cutoffs are then tokens
    return window_pairs(ones, lengths, context, sinks=sinks) / len(tokens)
