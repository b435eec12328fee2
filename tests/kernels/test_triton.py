"""The Triton kernels: in the interpreter in a process of its own, and what a process without a GPU says."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from kernels import Alibi, PositionalLSH, alibi_slopes, attend

pytest.importorskip("triton", reason="Triton exists on Linux only")

from kernels import triton_attend


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("file", sorted(Path(__file__).parent.glob("in_interpreter*.py")), ids=lambda file: file.stem)
def test_in_the_interpreter(file: Path):
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--timeout=0", str(file)]
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-2000:]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_what_to_use():
    q = torch.zeros(1, 4, 9, 16)
    with pytest.raises(ValueError, match="kernel='sdpa' on the CPU, or set TRITON_INTERPRET=1"):
        attend(q, q, q, Alibi(alibi_slopes(4)), kernel="triton")
    assert attend(q, q, q, Alibi(alibi_slopes(4)), kernel="auto").shape == q.shape


@pytest.mark.parametrize(
    "weights", [Alibi, lambda slopes: PositionalLSH.draw(slopes, 40, seed=0)], ids=["alibi", "count"]
)
def test_its_operators_are_traced_for_a_gpu_that_is_not_there(weights, monkeypatch):
    """With shapes alone; a look at a number of q's device would fail."""
    monkeypatch.setattr(triton_attend, "capability", lambda q: 9)
    weights = weights(alibi_slopes(4))
    with FakeTensorMode(allow_non_fake_inputs=True):
        k, v = (torch.empty(2, 2, 300, 80, device="cuda", dtype=torch.bfloat16) for _ in range(2))
        for queries in (300, 3):
            q = torch.empty(2, 4, queries, 80, device="cuda", dtype=torch.bfloat16)
            out, lse = attend(q, k, v, weights, kernel="triton", return_lse=True)
            assert (out.shape, out.device, out.dtype) == (q.shape, q.device, q.dtype)
            assert (lse.shape, lse.device, lse.dtype) == (q.shape[:3], q.device, torch.float32)
