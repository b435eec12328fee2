"""ALiBi attention, exact, windowed and by Positional LSH: the mathematics and its kernels, on torch and triton."""

from kernels.attend import attend
from kernels.cost import equal_cost_cutoff, expected_pairs
from kernels.slopes import alibi_slopes
from kernels.union import PositionalLSH
from kernels.weights import Alibi, Weights, Window

__all__ = [
    "Alibi",
    "PositionalLSH",
    "Weights",
    "Window",
    "alibi_slopes",
    "attend",
    "equal_cost_cutoff",
    "expected_pairs",
]
