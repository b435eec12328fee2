"""The search for lengths, and the content of an allocation's file."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from harness.allocate import calibration
from harness.allocate.knapsack import choose
from harness.allocate.sensitivity import Divergence, lengths, sensitivities
from harness.attentions.allocation import VERSION, Lengths, allocated_pairs
from harness.attentions.sliding import Sliding
from harness.cell import Cell
from harness.models.load import LoadedModel
from harness.tasks.texts import read_text, text_hash


def allocate(
    cell: Cell,
    load: Callable[[], LoadedModel],
    *,
    text: str,
    samples: int,
    budgets: Sequence[float],
    rounds: int,
    batch: int,
    say: Callable[[str], None],
) -> Iterator[dict[str, Any]]:
    """Yield the content of the file of each budget.

    Args:
        cell: for its model, context and data seed.
        load: loads the model.
        text, samples: as in `calibration.sequences`.
        budgets: pairs per row, the mean over heads.
        rounds: how often all heads are measured for a budget.
        batch: sequences computed at a time.
        say: told of progress.

    Raises:
        UserError: for a text that does not serve.
    """
    found = calibration.sequences(text, cell, samples)
    heads = len(cell.model.slopes)
    divergence = Divergence(load(), list(found.batches(batch)))
    grid = lengths(cell.context)
    whole: Lengths = ((cell.context,) * heads,) * cell.model.architecture.layers
    alone = sensitivities(divergence, whole, grid, say).numpy()
    for pairs in budgets:
        loss = alone
        tried: list[tuple[float, Lengths]] = []
        for number in range(rounds):
            if number:
                loss = sensitivities(divergence, tried[-1][1], grid, say).numpy()
            around = _cheapest(loss, grid, cell.context, pairs)
            tried.append((divergence(around), around))
            say(f"{pairs_per_row(around, cell.context):.1f} pairs per row: {tried[-1][0]:.4f} nats")
        nats, tokens = min(tried)
        used = pairs_per_row(tokens, cell.context)
        uniform = Sliding.of_cost(used * cell.context * heads, cell.model, cell.context).tokens
        yield {
            "schema": VERSION,
            "name": cell.model.name,
            "model": cell.model.identity,
            "calibration": {
                "text": text,
                "text_sha256": None if text == calibration.PROMPTS else text_hash(read_text("--text", text)),
                "sha256": calibration.digest(found),
                "context": cell.context,
                "sequences": len(found.ids),
                "scored": int(found.scored.sum()),
            },
            "options": {"pairs": pairs, "rounds": rounds},
            "pairs_per_row": used,
            "nats": {"allocated": nats, "uniform": divergence(((uniform,) * heads,) * len(whole))},
            "tokens": [list(layer) for layer in tokens],
        }


def pairs_per_row(tokens: Lengths, context: int) -> float:
    """Return the pairs per row, the mean over all heads."""
    return allocated_pairs(tokens, context, 0, 0) / (len(tokens[0]) * context)


def _cheapest(loss: np.ndarray, grid: Sequence[int], context: int, pairs: float) -> Lengths:
    """The lengths of the least sum of losses within the budget. loss: (layers, heads, lengths)."""
    layers, heads, _ = loss.shape
    cost = np.array([pairs_per_row(((n,),), context) for n in grid])
    # a longer window that seems to lose more only shows noise: it may be had for the price of the shorter
    flat = np.minimum.accumulate(loss.reshape(layers * heads, -1), axis=1)
    chosen = choose(flat, np.tile(cost, (layers * heads, 1)), pairs * layers * heads)
    return tuple(tuple(grid[i] for i in chosen[k * heads : (k + 1) * heads]) for k in range(layers))
