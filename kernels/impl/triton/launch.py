"""How the Triton kernels are launched: their arguments, and the constants, steps and warps they are
compiled with."""

import torch
import triton

from kernels.impl.tables import WORD, Tables, capturing
from kernels.impl.triton.weights import INTERPRETED

LEAST = 16  # rows or columns of a product's operand


def pointers(tables: Tables, *, last: bool = True) -> list[torch.Tensor]:
    """The tables in the order in which the kernels take them, those for causal calls alone without
    `last`; one that the law does not need is never read."""
    named = ("order", "first", *["last"] * last, "slope", "bias", "planes", "corners", "share")
    return [getattr(tables, name) if getattr(tables, name).numel() else tables.first for name in named]


KEPT = 64  # calls whose places stay on a device
_PLACES: dict[tuple, torch.Tensor] = {}


def places_on(places: tuple[tuple[int, ...], ...], device: torch.device) -> torch.Tensor:
    """`kernels.impl.geometry.Places` on the host as int32 on a device. All layers of a model ask
    for the same: they stay there for a while, for each stream by itself, so that none reads what
    another has yet to write. A CUDA graph that is being captured has its own, filled in by every
    replay: a copy from the host would end the capture."""
    if capturing(device):
        held = torch.empty(len(places), len(places[0]), dtype=torch.int32, device=device)
        for to, numbers in zip(held, places, strict=True):
            for part, number in zip(to, numbers, strict=True) if len(set(numbers)) > 1 else [(to, numbers[0])]:
                part.fill_(number)
        return held
    cuda = device.type == "cuda"
    key = (places, device, triton.runtime.driver.active.get_current_stream(device.index) if cuda else None)
    held = _PLACES.get(key)
    if held is None:
        if len(_PLACES) >= KEPT:
            del _PLACES[next(iter(_PLACES))]
        with torch.inference_mode(False):  # a copy out of pinned memory does not make the host wait for the device
            made = torch.tensor(places, dtype=torch.int32, pin_memory=cuda)
            held = _PLACES[key] = made.to(device, non_blocking=True)
    return held


class Launcher:
    """A kernel and the constants that it is compiled for and launched with.

    Triton looks at every argument of a launch to find what it has compiled, which on the host takes
    longer than some kernels on the device. Launches that are `alike` on one device all get the
    same: it is kept and launched directly. Alike are those whose pointers and strides are multiples
    of 16; other numbers change nothing (`ANY`).
    """

    def __init__(self, kernel, **fixed):
        self.kernel, self.fixed = kernel, fixed
        names = [name for name in kernel.arg_names if name in fixed]
        assert kernel.arg_names[-len(names) :] == names  # after all arguments
        self.constants = tuple(fixed[name] for name in names)
        self.compiled = {}

    def __call__(self, grid: tuple[int, ...], device: torch.device, *arguments, alike: bool = True) -> None:
        found = self.compiled.get(device) if alike else None
        if found is None or watched():
            found = self.kernel[grid](*arguments, **self.fixed)
            if alike and not INTERPRETED:
                self.compiled[device] = found
            return
        stream = triton.runtime.driver.active.get_current_stream(device.index)
        grid += (1,) * (3 - len(grid))
        # as Triton launches it, without metadata and hooks for who looks on
        known = (found.function, found.packed_metadata, None, None, None)
        found.run(*grid, stream, *known, *arguments, *self.constants)


def watched() -> bool:
    """Whether somebody looks on at every launch: a profiler of Triton's."""
    runtime = triton.knobs.runtime
    return bool(runtime.launch_enter_hook.calls or runtime.launch_exit_hook.calls)


def strides_of(*tensors: torch.Tensor, places: torch.Tensor) -> tuple[list[int], bool]:
    """Strides of all dimensions but the last, and whether launches with these tensors and places
    are alike."""
    strides, bits, largest = [], places.data_ptr(), 0
    for x in tensors:
        each = x.stride()[:-1]
        strides += each
        bits |= x.data_ptr()
        for stride in each:
            bits |= stride
            largest |= stride
    return strides, not bits & 15 and largest < 2**31


def constants(
    kernel: str, law: str, masks: int, sinks: int, causal: bool, dim: int, dtype: torch.dtype, tile: int,
    gaps: bool = False,
) -> dict:  # fmt: skip
    """What the kernel over tiles, "forward", "dq" or "dkdv", is compiled for, and how it is
    launched; other kernels have a step and warps of their own. gaps: of the forward kernel, whether
    keys leave out tokens."""
    return {
        "LAW": law,
        "CAUSAL": causal,
        "MASKS": 0 if law in ("linear", "distance") else masks,
        "SINKS": sinks,
        "DIM": dim,
        "WIDE": width_of(dim),
        "TILE": tile,
        "STEP": step_of(kernel, law, masks, causal, dim, dtype, tile, sinks, gaps),
        "PRECISION": precision_of(dtype),
        "ASM": not INTERPRETED,
        "num_warps": warps_of(kernel, dim, dtype, tile),
        # what two words of masks that are summed in both directions would fetch ahead would spill
        "num_stages": 1 if kernel == "dq" and law == "sum" and masks > WORD and not causal else 2,
        "enable_fp_fusion": True,  # the default changes with Triton's version
    }


def step_of(
    kernel: str, law: str, masks: int, causal: bool, dim: int, dtype: torch.dtype, tile: int, sinks: int, gaps: bool
) -> int:
    """How much of the other side a program takes at a time: the whole tile where score, weights and
    sums fit into the registers that two programs on a multiprocessor have, else a half or a quarter
    of it."""
    looked_up, words = law in ("distance", "sum"), law in ("count", "sum") and masks > WORD
    if kernel != "forward":
        more = law in ("rb", "distance", "sum") and not causal or words and (law == "sum" or kernel == "dkdv")
        more |= law == "distance" and sinks > 0
        halvings = int(width_of(dim) > 64) + int(more)
    elif dtype == torch.float32 or tile == 64:
        # a loop over sinks, which fewer would be no loop for
        many = law == "rb" and sinks > 0 or law == "sum" and sinks > LEAST
        more = law == "sum" and (not causal or many or gaps)
        halvings = int(dtype == torch.float32 or looked_up or words or not causal or gaps or many) + int(more)
    else:
        halvings = 0
    return max(LEAST, tile >> halvings)


def warps_of(kernel: str, dim: int, dtype: torch.dtype, tile: int) -> int:
    """4 where two programs shall share a multiprocessor. dk and dv take too many registers for that
    on sm_90, and float32, which is not multiplied by the tensor cores, has all operands in
    registers."""
    backward = kernel != "forward" and width_of(dim) > 64
    if dtype == torch.float32:
        return 16 if backward else 8
    return 8 if backward and kernel == "dkdv" and tile == 64 else 4


def width_of(dim: int) -> int:
    """Columns of a tile that holds head dimension `dim`: tiles are powers of two, and a product
    takes at least 16."""
    return max(LEAST, triton.next_power_of_2(dim))


def precision_of(dtype: torch.dtype) -> str:
    """How products of this type are computed: TF32 would keep 10 bits of a float32."""
    return "ieee" if dtype == torch.float32 else "tf32"


def capability(q: torch.Tensor) -> int:
    """Major compute capability of q's GPU, 0 where there is none."""
    return _capability(q.device.index) if q.is_cuda else 0


@torch.compiler.assume_constant_result
def _capability(index: int) -> int:
    return torch.cuda.get_device_capability(index)[0]


def tile_of(dtype: torch.dtype, capability: int) -> int:
    """Rows of a tile: 64 are what wgmma wants; elsewhere they would spill, or not fit into shared
    memory (capability 12), and of float32 not fit twice. The interpreter takes small tiles too, so
    that short tests meet many of them."""
    return 64 if capability in (9, 10) and dtype != torch.float32 else 32
