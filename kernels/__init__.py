"""ALiBi attention, exact, windowed and by Positional LSH: the mathematics and its kernels, on torch
and triton."""

from kernels.attend import attend
from kernels.methods.cost import equal_cost_cutoff, expected_pairs
from kernels.methods.plsh import PositionalLSH
from kernels.methods.slopes import alibi_slopes
from kernels.methods.topk import TopK
from kernels.methods.weights import Alibi, Weights, Window

__all__ = [
    "Alibi",
    "PositionalLSH",
    "TopK",
    "Weights",
    "Window",
    "alibi_slopes",
    "attend",
    "equal_cost_cutoff",
    "expected_pairs",
]
