"""Kernel `triton` where there is no GPU: what it says, what is traced, and what "auto" takes."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from kernels import Alibi, PositionalLSH, alibi_slopes, attend
from kernels.impl import accuracy

pytest.importorskip("triton", reason="Triton exists on Linux only")

from kernels import auto
from kernels.impl.triton import attend as triton_attend


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


@pytest.mark.parametrize("lost", [False, True])
def test_auto_stops_where_the_fused_kernel_breaks_the_gpu(lost, monkeypatch):
    def fail(*_):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    auto._self_check.cache_clear()
    monkeypatch.setattr(accuracy, "errors", fail)
    monkeypatch.setattr(torch.cuda, "synchronize", fail if lost else lambda device: None)
    call = (attend, "cuda:0", "float32", 16, Alibi(alibi_slopes(2)).kind, 16, True, False, False)
    if lost:
        with pytest.raises(RuntimeError, match="use kernel=sdpa in a new process. .*illegal memory access"):
            auto.passes_self_check(*call)
    else:
        with pytest.warns(UserWarning, match="auto' uses sdpa: .* did not run here"):
            assert not auto.passes_self_check(*call)
    auto._self_check.cache_clear()


def test_auto_does_not_take_a_kernel_that_could_not_be_checked(monkeypatch):
    """Where every key of the short case is within reach there is no gap to check."""
    auto._self_check.cache_clear()
    monkeypatch.setattr(accuracy, "errors", lambda *_: None)
    call = (attend, "cpu", "float32", 16, tuple(Alibi(alibi_slopes(2)).kind), 16, True, False, True)
    with pytest.warns(UserWarning, match="auto' uses sdpa: .* could not be checked"):
        assert not auto.passes_self_check(*call)
    auto._self_check.cache_clear()


@pytest.mark.parametrize("right", [True, False])
def test_auto_is_the_fused_kernel_on_a_gpu_where_it_is_right(right, monkeypatch):
    asked = []
    monkeypatch.setattr(auto, "passes_self_check", lambda *call: asked.append(call) or right)
    with FakeTensorMode():
        q = torch.empty(1, 4, 40, 80, device="cuda", dtype=torch.float16)
        few = torch.empty(1, 4, 3, 80, device="cuda", dtype=torch.float16)
        wide, double = (
            torch.empty(1, 4, 9, 160, device="cuda"),
            torch.empty(1, 4, 9, 80, device="cuda", dtype=torch.float64),
        )
    lsh, many = (PositionalLSH.draw(alibi_slopes(4), masks, seed=0) for masks in (16, 65))
    assert auto.choose(q, q, q, lsh, True, False, attend) == ("triton" if right else "sdpa")
    auto.choose(few, q, q, lsh, True, True, attend)
    assert asked[0][1:] == ("cuda:0", "float16", 80, ("plsh", "count", "gamma", 16, 0, 0, 0), 136, True, False, False)
    assert asked[1][5:] == (16, True, False, True)
    for cannot in ((wide, lsh), (double, lsh), (q, many)):
        assert auto.choose(*[cannot[0]] * 3, cannot[1], True, False, attend) == "sdpa"
    assert len(asked) == 2
