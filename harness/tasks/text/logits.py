"""Logits of the scored tokens of windows, a few at a time: all at once, those of a large vocabulary
would exceed the memory."""

from collections.abc import Iterator
from typing import Any, cast

import torch

from harness.models.load import LoadedModel

MAX_LOGITS = 1 << 25  # per piece: 128 MB in float32


def hidden_states(loaded: LoadedModel, ids: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Return the output of every layer, the last after the final normalisation.

    Args:
        loaded: the model, under its present weights.
        ids: token ids (windows, context).

    Returns:
        Tensors (windows, context, width).
    """
    base = cast(Any, loaded.model).base_model
    return base(ids.to(loaded.model.device), use_cache=False, output_hidden_states=True).hidden_states[1:]


def last_hidden_state(loaded: LoadedModel, ids: torch.Tensor) -> torch.Tensor:
    """Return the output of the last layer, (windows, context, width); arguments as in
    `hidden_states`."""
    base = cast(Any, loaded.model).base_model
    return base(ids.to(loaded.model.device), use_cache=False).last_hidden_state


def pieces(loaded: LoadedModel, *hidden: torch.Tensor) -> Iterator[tuple[slice, list[torch.Tensor]]]:
    """Yield the logits of consecutive positions.

    Args:
        loaded: the model.
        hidden: tensors (positions, width) of equal shape.

    Yields:
        The positions, and for each tensor the logits (positions, vocabulary) in float32.

    Raises:
        FloatingPointError: if logits are not finite.
    """
    head = loaded.model.get_output_embeddings()
    size = max(1, MAX_LOGITS // loaded.model.config.vocab_size)
    for first in range(0, len(hidden[0]), size):
        part = slice(first, min(first + size, len(hidden[0])))
        logits = [head(h[part]).float() for h in hidden]
        if not all(bool(torch.isfinite(x).all()) for x in logits):
            raise FloatingPointError("The model's logits are not finite (NaN or infinite).")
        yield part, logits
