"""Weights whose pieces are not their definition end a task before its first sample."""

from dataclasses import dataclass

import pytest
import torch

from harness.models.selfcheck import check_weights
from kernels import Alibi, PositionalLSH, Window, alibi_slopes

CPU = torch.device("cpu")
SLOPES, FLAT = alibi_slopes(4), torch.full((4,), 0.01, dtype=torch.float64)


@dataclass(frozen=True)
class Wrong(Window):
    def log_piece(self, heads, rows, first, width, causal):
        return 3 * super().log_piece(heads, rows, first, width, causal)

    @property
    def tokens(self):  # no piece of it is kept
        return super().tokens


@dataclass(frozen=True)
class Short(Window):
    """Its reach is 30 keys short."""

    def reach(self, heads, rows):
        first, last = super().reach(heads, rows)
        return first + 30, last


def test_sound_weights_pass():
    layers = [Alibi(SLOPES), Window(SLOPES, 2.0, 3), PositionalLSH.draw(SLOPES, 5, seed=0, weights="rb")]
    for kernel in ("sdpa", "auto"):
        check_weights(layers, kernel, CPU)


@pytest.mark.parametrize("kind", [Wrong, Short])
def test_pieces_that_are_not_the_definition_are_an_error(kind):
    with pytest.raises(ArithmeticError, match=f"than {kind.__name__}.log_dense defines"):
        check_weights([Alibi(SLOPES), kind(FLAT, 2.0)], "sdpa", CPU)
