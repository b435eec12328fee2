"""kernels stands alone, and its memory grows with the tokens, not with their square. In processes of their own."""

import json
import subprocess
import sys

import pytest

FOREIGN = ["harness", "hydra", "omegaconf", "transformers", "wandb", "datasets", "lm_eval"]


def run(code: str) -> dict:
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    return json.loads(result.stdout.splitlines()[-1])


def test_importing_kernels_loads_nothing_foreign():
    seen = run(
        "import json, sys, kernels, kernels.bench.__main__, kernels.check\n"
        f"print(json.dumps({{'loaded': [m for m in {FOREIGN} if m in sys.modules],"
        " 'version': hasattr(kernels, '__version__'), 'torch': 'torch' in sys.modules}))"
    )
    # transformers takes a package named kernels that has a version for the one on the Hugging Face hub
    assert seen == {"loaded": [], "version": False, "torch": True}


MEMORY = """
import json, resource, torch
from kernels import PositionalLSH, Window, alibi_slopes, attend
torch.set_num_threads(1)
slopes = alibi_slopes(4)
weights = {weights}
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
def call(tokens):
    q, k, v = (torch.zeros(1, 4, tokens, 32) for _ in range(3))
    before = peak()
    attend(q, k, v, weights, kernel="sdpa")
    return peak() - before
call(256)
print(json.dumps({{"16k": call(16384), "64k": call(65536)}}))
"""


@pytest.mark.parametrize(
    "weights",
    [
        "Window(slopes, 3.4)",
        "PositionalLSH.draw(slopes, 16, seed=0)",
        "PositionalLSH.draw(slopes, 16, seed=0, weights='rb')",
    ],
    ids=["window", "count", "rb"],
)
def test_memory_is_linear_in_tokens(weights):
    """One n x n matrix of bytes at 64k would be 4 GB, of one head; out and a few index lists are all that may grow."""
    grown = run(MEMORY.format(weights=weights))
    assert grown["64k"] < 600
