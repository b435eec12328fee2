"""The shared matrix for the tests, and the kernels that are held to all of it on the CPU."""

from kernels.check.cases import EDGES, FACTORS, Case, pairwise

__all__ = ["CASES", "FACTORS", "KERNELS", "Case", "pairwise"]
CASES = pairwise(FACTORS) + EDGES
KERNELS = ["sdpa"]  # every kernel but the oracle: a new one is one more name
