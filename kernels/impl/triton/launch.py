"""How the Triton kernels are launched: their arguments, and the constants, steps and warps they are
compiled with."""

import torch
import triton

from kernels.impl.tables import WORD, Tables, capturing
from kernels.impl.triton.weights import INTERPRETED
from kernels.methods.laws import Law

MIN_OPERAND = 16  # rows or columns of a matrix product's operand


def pointers(tables: Tables, *, last: bool = True) -> list[torch.Tensor]:
    """The tables in the order in which the kernels take them, those for causal calls alone without
    `last`; one that the law does not need is never read."""
    named = ("order", "first", *["last"] * last, "slope", "bias", "planes", "corners", "share")
    return [getattr(tables, name) if getattr(tables, name).numel() else tables.first for name in named]


MAX_GEOMETRIES = 64  # kept on a device
_GEOMETRIES: dict[tuple, torch.Tensor] = {}


def geometry_on_device(geometry: tuple[tuple[int, ...], ...], device: torch.device) -> torch.Tensor:
    """Returns a geometry that is known on the host (`kernels.impl.geometry`) as int32 on a device.

    All layers of a model ask for the same geometry: its tensor is kept for a while, one for each
    stream, so that no stream reads what another has yet to write. A CUDA graph that is being
    captured gets a tensor of its own, filled in by every replay, because a copy from the host would
    end the capture.
    """
    if capturing(device):
        rows = torch.empty(len(geometry), len(geometry[0]), dtype=torch.int32, device=device)
        for row, numbers in zip(rows, geometry, strict=True):
            if len(set(numbers)) == 1:
                row.fill_(numbers[0])
                continue
            for element, number in zip(row, numbers, strict=True):
                element.fill_(number)
        return rows
    cuda = device.type == "cuda"
    key = (geometry, device, triton.runtime.driver.active.get_current_stream(device.index) if cuda else None)
    known = _GEOMETRIES.get(key)
    if known is None:
        if len(_GEOMETRIES) >= MAX_GEOMETRIES:
            del _GEOMETRIES[next(iter(_GEOMETRIES))]
        with torch.inference_mode(False):  # a copy out of pinned memory does not make the host wait for the device
            pinned = torch.tensor(geometry, dtype=torch.int32, pin_memory=cuda)
            known = _GEOMETRIES[key] = pinned.to(device, non_blocking=True)
    return known


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


def strides_of(*tensors: torch.Tensor, geometry: torch.Tensor) -> tuple[list[int], bool]:
    """Strides of all dimensions but the last, and whether launches with these tensors and geometry
    are alike."""
    strides: list[int] = []
    bits, largest = geometry.data_ptr(), 0
    for x in tensors:
        each = x.stride()[:-1]
        strides += each
        bits |= x.data_ptr()
        for stride in each:
            bits |= stride
            largest |= stride
    return strides, not bits & 15 and largest < 2**31


def constants(
    kernel: str, law: Law, masks: int, sinks: int, causal: bool, dim: int, dtype: torch.dtype, tile: int,
    gaps: bool = False,
) -> dict:  # fmt: skip
    """What the kernel over tiles, "forward", "dq" or "dkdv", is compiled for, and how it is
    launched; other kernels have a step and warps of their own. gaps: of the forward kernel, whether
    keys leave out tokens."""
    return {
        "LAW": law.value,
        "CAUSAL": causal,
        "MASKS": masks if law.uses_mask_count else 0,
        "SINKS": sinks,
        "DIM": dim,
        "WIDE": width_of(dim),
        "TILE": tile,
        "STEP": step_of(kernel, law, masks, causal, dim, dtype, tile, sinks, gaps),
        "PRECISION": precision_of(dtype),
        "ASM": not INTERPRETED,
        "num_warps": warps_of(kernel, dim, dtype, tile),
        # what two words of masks that are summed in both directions would fetch ahead would spill
        "num_stages": 1 if kernel == "dq" and law is Law.SUM and masks > WORD and not causal else 2,
        "enable_fp_fusion": True,  # the default changes with Triton's version
    }


def step_of(
    kernel: str, law: Law, masks: int, causal: bool, dim: int, dtype: torch.dtype, tile: int, sinks: int, gaps: bool
) -> int:
    """How much of the other side a program takes at a time: the whole tile where score, weights and
    sums fit into the registers that two programs on a multiprocessor have, else a half or a quarter
    of it."""
    two_words = law.per_mask and masks > WORD
    if kernel != "forward":
        more = (law is Law.RAO_BLACKWELL or law.uses_lookup) and not causal
        more |= two_words and (law is Law.SUM or kernel == "dkdv")
        more |= law is Law.DISTANCE and sinks > 0
        halvings = int(width_of(dim) > 64) + int(more)
    elif dtype == torch.float32 or tile == 64:
        # a loop over sinks, which fewer would be no loop for
        many = law is Law.RAO_BLACKWELL and sinks > 0 or law is Law.SUM and sinks > MIN_OPERAND
        more = law is Law.SUM and (not causal or many or gaps)
        halvings = int(dtype == torch.float32 or law.uses_lookup or two_words or not causal or gaps or many) + int(more)
    else:
        halvings = 0
    return max(MIN_OPERAND, tile >> halvings)


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
    return max(MIN_OPERAND, triton.next_power_of_2(dim))


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
