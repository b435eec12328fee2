"""The Triton kernels: in the interpreter in a process of its own, and what a process without a GPU says."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from kernels import Alibi, alibi_slopes, attend

pytest.importorskip("triton", reason="Triton exists on Linux only")


def test_in_the_interpreter():
    tests = Path(__file__).with_name("in_interpreter.py")
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--timeout=0", str(tests)]
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-2000:]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_what_to_use():
    q = torch.zeros(1, 4, 9, 16)
    with pytest.raises(ValueError, match="kernel='sdpa' on the CPU, or set TRITON_INTERPRET=1"):
        attend(q, q, q, Alibi(alibi_slopes(4)), kernel="triton")
    assert attend(q, q, q, Alibi(alibi_slopes(4)), kernel="auto").shape == q.shape
