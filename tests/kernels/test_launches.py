"""What a call launches, and how long the host takes for it: Triton with a driver that launches
nothing."""

import time

import pytest
import torch

pytest.importorskip("triton", reason="Triton exists on Linux only")

from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from kernels import PositionalLSH, Window, alibi_slopes, attend
from kernels.impl.triton import attend as triton_attend
from kernels.impl.triton import decode as triton_decode
from kernels.impl.triton import forward as triton_forward
from kernels.impl.triton import tables
from kernels.impl.triton.packed import packed_on_device

HEADS, KEYS, DIM = 32, 256, 128
SLOPES = alibi_slopes(HEADS)
ALL = {
    "count": PositionalLSH.draw(SLOPES, 16, seed=0),
    "rb": PositionalLSH.draw(SLOPES, 16, seed=0, weights="rb"),
    "distance": PositionalLSH.draw(SLOPES, 16, seed=0, weights="rb", sampler="systematic"),
    "window": Window(SLOPES, 2.0),
}
KERNELS = (triton_decode.decode_kernel, triton_decode.merge_kernel, triton_forward.forward_kernel, tables.tables_kernel)


class Idle:
    """A driver of a GPU that is not there."""

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)


class Compiled:
    """What Triton would have compiled; `run` has the arguments of its launcher."""

    function, packed_metadata = "function", "metadata"

    def __init__(self, name: str, launched: list):
        self.name, self.launched = name, launched

    def launch_metadata(self, *_) -> None:
        return None

    def run(self, x, y, z, stream, function, metadata, about, entering, leaving, *arguments):
        self.launched.append((self.name, (x, y, z), arguments))


@pytest.fixture
def launched(monkeypatch) -> list:
    """The launches so far: name, grid, arguments."""
    found = []

    def compile_nothing(self, key, *_):
        self.device_caches[0][0][key] = Compiled(self.__name__, found)
        return self.device_caches[0][0][key]

    def forget() -> None:
        for kernel in KERNELS:
            kernel.device_caches.clear()
        for cached in (triton_decode._launchers, triton_forward._launcher, tables._launcher):
            cached.cache_clear()

    monkeypatch.setattr(JITFunction, "_do_compile", compile_nothing)
    monkeypatch.setattr(triton_attend, "unsupported_reason", lambda *_: None)
    monkeypatch.setattr(triton_attend, "capability", lambda q: 9)
    forget()
    monkeypatch.setattr(driver, "_active", Idle())
    yield found
    forget()


def inputs(queries: int, keys: int = KEYS, batch: int = 1) -> list[torch.Tensor]:
    return [torch.zeros(batch, HEADS, length, DIM, dtype=torch.bfloat16) for length in (queries, keys, keys)]


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("queries, kernels", [(1, ["decode", "merge"]), (KEYS, ["tables", "forward"])])
def test_a_call_is_two_launches_and_all_after_the_first_are_direct(queries, kernels, name, launched, monkeypatch):
    given = inputs(queries)
    attend(*given, ALL[name], kernel="triton")
    monkeypatch.setattr(JITFunction, "run", None)  # Triton's own way
    made = []
    for maker in ("tensor", "full", "arange", "zeros"):
        monkeypatch.setattr(torch, maker, lambda *_, **__: made.append(1))
    attend(*given, ALL[name], kernel="triton")
    assert [each for each, _, _ in launched] == [f"{kernel}_kernel" for kernel in kernels] * 2 and not made
    for (_, grid, first), (_, same_grid, again) in zip(launched[:2], launched[2:], strict=True):
        assert grid == same_grid
        for one, other in zip(first, again, strict=True):  # memory is new, all else the same
            assert one.shape == other.shape if isinstance(one, torch.Tensor) else one == other


def test_launches_that_are_alike_share_what_triton_compiles(launched):
    """Triton compiles anew for other types, and for numbers that are 1 or multiples of 16; so does
    an odd pointer."""
    weights = ALL["count"]
    for queries, keys, batch in [(1, 1, 1), (1, 256, 1), (3, 77, 2), (16, 100, 1), (17, 90, 1), (256, 300, 2)]:
        q, k, v = inputs(queries, keys, batch)
        for some in ((q, k, v), (q.transpose(1, 2).contiguous().transpose(1, 2), k[:, ::2].repeat(1, 2, 1, 1), v)):
            for cached in (triton_decode._launchers, triton_forward._launcher, tables._launcher):
                cached.cache_clear()
            attend(*some, weights, kernel="triton", padding=[0, 0][:batch])
    assert [len(kernel.device_caches[0][0]) for kernel in KERNELS] == [1, 1, 1, 1]
    q, k, v = inputs(1)
    odd = torch.zeros(k.numel() + 1, dtype=k.dtype)[1:].view_as(k)
    packed, places = packed_on_device(weights, q.device), torch.zeros(3, dtype=torch.int32)[1:].view(2, 1)
    for _ in range(2):
        attend(q, odd, v, weights, kernel="triton")
        triton_decode.decode(q, k, v, packed, packed.byte_weights, places, scale=1.0)
    assert len(triton_decode.decode_kernel.device_caches[0][0]) == 3


@pytest.mark.parametrize("queries, most", [(1, 60), (KEYS, 90)])
def test_the_host_takes_microseconds(queries, most, launched):
    """Of a layer, with the driver left out."""
    given, weights = inputs(queries), ALL["count"]
    with torch.inference_mode():
        best = float("inf")
        for _ in range(12):
            begin = time.process_time()
            for _ in range(50):
                attend(*given, weights, kernel="triton")
            best = min(best, (time.process_time() - begin) / 50)
    assert best < most * 1e-6
