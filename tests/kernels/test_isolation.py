"""kernels stands on torch, triton and numpy alone, and its memory grows with the tokens, not with
their square."""

import json
import subprocess
import sys

import pytest

import kernels

FOREIGN = ["harness", "hydra", "omegaconf", "transformers", "wandb", "datasets", "lm_eval"]


def run(code: str) -> dict:
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    return json.loads(result.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["kernels.aot", "merge-sm90-d64"], '"registers"'),
        (["kernels.gpu", "--help"], "--minutes"),  # the dry run of test_measure.py does this to its steps
    ],
    ids=["aot", "measure"],
)
def test_commands_of_kernels_need_torch_triton_and_numpy_alone(command, said):
    """Importing anything else ends with the error of a package that is not installed."""
    code = (
        f"import runpy, sys; sys.modules |= dict.fromkeys({FOREIGN}); sys.argv = {command}\n"
        f"runpy.run_module({command[0]!r}, run_name='__main__', alter_sys=True)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert said in done.stdout, done.stderr


def test_kernels_has_no_version():
    """transformers takes a package named kernels that has one for the one on the Hugging Face
    hub."""
    assert not hasattr(kernels, "__version__")


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
    """One n x n matrix of bytes at 64k would be 4 GB, of one head; out and a few index lists are
    all that may grow."""
    grown = run(MEMORY.format(weights=weights))
    assert grown["64k"] < 600
