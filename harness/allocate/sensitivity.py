"""How much the model's predictions change when one head sees fewer tokens."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from harness.models.load import LoadedModel
from harness.tasks.text import logits
from kernels import Alibi, Weights, Window

NEGLIGIBLE = 1e-5  # nats per token: from a head that changes less, greater lengths are not measured
Tokens = Sequence[Sequence[int]]  # nearest keys that each head of each layer sees


@dataclass(frozen=True)
class Sequences:
    """Token ids of calibration.

    ids: (sequences, tokens).
    scored: (sequences, tokens) bool, the positions whose predictions are compared.
    """

    ids: torch.Tensor
    scored: torch.Tensor

    def batches(self, size: int) -> Iterator["Sequences"]:
        for ids, scored in zip(self.ids.split(size), self.scored.split(size), strict=True):
            yield Sequences(ids, scored)


def lengths(context: int) -> list[int]:
    """Return the lengths among which a head's is chosen: powers of 2, 3/2 of them, and the context."""
    powers = [1 << k for k in range(context.bit_length())]
    return sorted({n for p in powers for n in (p, p * 3 // 2) if n < context} | {context})


def windows(slopes: torch.Tensor, tokens: Tokens) -> list[Weights]:
    """Return exact ALiBi within the lengths of each head, one for each layer."""
    return [Window.of_tokens(slopes, torch.tensor(layer)) for layer in tokens]


class Divergence:
    """KL(exact || windows) in nats per scored position, the mean over all sequences."""

    def __init__(self, loaded: LoadedModel, batches: Sequence[Sequences]):
        self.loaded, self.batches = loaded, batches
        layers = loaded.model.config.num_hidden_layers
        self._exact = [self._log_p(batch, [Alibi(loaded.attention.slopes)] * layers) for batch in batches]

    @torch.inference_mode()
    def _log_p(self, batch: Sequences, weights: Sequence[Weights]) -> torch.Tensor:
        with self.loaded.attention.use(weights):
            hidden = logits.last_hidden_state(self.loaded, batch.ids)[batch.scored.to(self.loaded.model.device)]
        return torch.cat([scores.log_softmax(-1) for _, (scores,) in logits.pieces(self.loaded, hidden)])

    @torch.inference_mode()
    def __call__(self, tokens: Tokens) -> float:
        weights = windows(self.loaded.attention.slopes, tokens)
        total, count = 0.0, 0
        for batch, exact in zip(self.batches, self._exact, strict=True):
            changed = self._log_p(batch, weights)
            total += float((exact.exp() * (exact - changed)).sum(-1).clamp_min(0).double().sum())
            count += len(exact)
        return total / count


def sensitivities(
    divergence: Divergence, around: Tokens, grid: Sequence[int], say: Callable[[str], None] = lambda line: None
) -> torch.Tensor:
    """Return the divergence with one head at one length, (layers, heads, lengths) float64.

    Args:
        divergence: of the model on the calibration.
        around: lengths of the other heads.
        grid: increasing lengths.
        say: told of progress.
    """
    layers, heads = len(around), len(around[0])
    base = divergence(around)
    found = torch.full((layers, heads, len(grid)), base, dtype=torch.float64)
    for layer in range(layers):
        for head in range(heads):
            for i, length in enumerate(grid):
                if length == around[layer][head]:
                    continue
                changed = [list(row) for row in around]
                changed[layer][head] = length
                found[layer, head, i] = value = divergence(changed)
                # a head that loses nothing any more; one that is short itself may still gain
                if abs(value - base) < NEGLIGIBLE and around[layer][head] == grid[-1]:
                    found[layer, head, i:] = value
                    break
            say(f"layer {layer + 1} head {head + 1}: " + " ".join(f"{x:.1e}" for x in found[layer, head].tolist()))
    return found
