"""How the Triton kernels are launched: their arguments, and the constants, steps and warps that
they are compiled with."""

import torch
import triton

from kernels.impl.tables import WORD, Tables, capturing
from kernels.impl.triton.weights import INTERPRETED
from kernels.methods.laws import Law

MIN_OPERAND = 16  # rows or columns of a matrix product's operand


def pointers(tables: Tables, *, last: bool = True) -> list[torch.Tensor]:
    """Returns the tables in the order in which the kernels take them, without `last` for the
    kernels of causal calls. `first` stands in for a table that the law does not need, and is not
    read."""
    ends = [tables.last] if last else []
    needed = (
        tables.order, tables.first, *ends, tables.slope, tables.bias, tables.bitplanes, tables.pivot_blocks,
        tables.byte_weights,
    )  # fmt: skip
    return [x if x.numel() else tables.first for x in needed]


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

    Triton inspects every argument of a launch to select a compilation, which on the host takes
    longer than some kernels on the device. Launches that are `alike`, with pointers and strides
    that are multiples of 16, use the same compilation on one device: it is kept and launched
    directly. Other arguments change nothing (`UNSPECIALIZED`).
    """

    def __init__(self, kernel, **fixed):
        self.kernel, self.fixed = kernel, fixed
        names = [name for name in kernel.arg_names if name in fixed]
        assert kernel.arg_names[-len(names) :] == names  # after all arguments
        self.constants = tuple(fixed[name] for name in names)
        self.compiled = {}

    def __call__(self, grid: tuple[int, ...], device: torch.device, *arguments, alike: bool = True) -> None:
        compiled = self.compiled.get(device) if alike else None
        if compiled is None or watched():
            compiled = self.kernel[grid](*arguments, **self.fixed)
            if alike and not INTERPRETED:
                self.compiled[device] = compiled
            return
        stream = triton.runtime.driver.active.get_current_stream(device.index)
        grid += (1,) * (3 - len(grid))
        # as Triton launches it, without the metadata and hooks of a profiler
        metadata = (compiled.function, compiled.packed_metadata, None, None, None)
        compiled.run(*grid, stream, *metadata, *arguments, *self.constants)


def watched() -> bool:
    """Whether a profiler of Triton hooks into every launch."""
    runtime = triton.knobs.runtime
    return bool(runtime.launch_enter_hook.calls or runtime.launch_exit_hook.calls)


def strides_of(*tensors: torch.Tensor, geometry: torch.Tensor) -> tuple[list[int], bool]:
    """Returns the strides of all dimensions but the last, and whether launches with these tensors
    and this geometry are alike (`Launcher`)."""
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
    kernel: str, law: Law, masks: int, sinks: int, near: int, causal: bool, dim: int, dtype: torch.dtype, tile: int,
    gaps: bool = False,
) -> dict:  # fmt: skip
    """Returns the constants and launch options of a kernel over tiles; other kernels choose step
    and warps themselves.

    Args:
        kernel: "forward", "dq" or "dkdv".
        law, masks, sinks, near: of the weights.
        causal, dim, dtype: of the call.
        tile: rows of a tile (`tile_of`).
        gaps: whether tokens were evicted from the keys; the forward kernel only.
    """
    return {
        "LAW": law.value,
        "CAUSAL": causal,
        "MASKS": masks if law.uses_mask_count else 0,
        "SINKS": sinks,
        "NEAR": near_constant(law, near),
        "DIM": dim,
        "WIDE": width_of(dim),
        "TILE": tile,
        "STEP": step_of(kernel, law, masks, causal, dim, dtype, tile, sinks, near_constant(law, near), gaps),
        "PRECISION": precision_of(dtype),
        "ASM": not INTERPRETED,
        "num_warps": warps_of(kernel, dim, dtype, tile),
        # prefetching would spill with two words of masks that are summed in both directions
        "num_stages": 1 if kernel == "dq" and law is Law.SUM and masks > WORD and not causal else 2,
        "enable_fp_fusion": True,  # the default changes with Triton's version
    }


def near_constant(law: Law, near: int) -> int:
    """The near field that the kernels over tiles are compiled for: 0 for laws whose tables alone
    describe it, by the first key of each row and the weight by distance."""
    return near if law.uses_mask_count else 0


def step_of(
    kernel: str, law: Law, masks: int, causal: bool, dim: int, dtype: torch.dtype, tile: int, sinks: int, near: int,
    gaps: bool,
) -> int:  # fmt: skip
    """Inner-loop step. The full tile if scores, weights and accumulators fit into the registers
    available to two programs per multiprocessor; otherwise half or a quarter.

    Args:
        kernel, law, masks, causal, dim, dtype, tile, sinks, gaps: as in `constants`.
        near: as `near_constant` returns it.
    """
    two_words = law.per_mask and masks > WORD
    if kernel != "forward":
        more = (law is Law.RAO_BLACKWELL or law.uses_lookup) and not causal
        more |= two_words and (law is Law.SUM or kernel == "dkdv")
        more |= law is Law.DISTANCE and sinks > 0
        more |= near > 0 and kernel == "dq" and (law is Law.SUM or not causal)
        halvings = int(width_of(dim) > 64) + int(more)
    elif dtype == torch.float32 or tile == 64:
        # whether there is a loop over sinks: for fewer, there is one step
        many = law is Law.RAO_BLACKWELL and sinks > 0 or law is Law.SUM and sinks > MIN_OPERAND or near > 0
        more = law is Law.SUM and (not causal or many or gaps) or near > 0 and not causal
        halvings = int(dtype == torch.float32 or law.uses_lookup or two_words or not causal or gaps or many) + int(more)
    else:
        halvings = 0
    return max(MIN_OPERAND, tile >> halvings)


def warps_of(kernel: str, dim: int, dtype: torch.dtype, tile: int) -> int:
    """Warps per program: 4 if two programs share a multiprocessor. dk and dv take too many
    registers for that on sm_90. Float32 products do not use the tensor cores, so that all operands
    take registers.

    Args:
        kernel, dim, dtype, tile: as in `constants`.
    """
    backward = kernel != "forward" and width_of(dim) > 64
    if dtype == torch.float32:
        return 16 if backward else 8
    return 8 if backward and kernel == "dkdv" and tile == 64 else 4


def width_of(dim: int) -> int:
    """Columns of a tile for head dimension `dim`: a power of two, and at least MIN_OPERAND."""
    return max(MIN_OPERAND, triton.next_power_of_2(dim))


def precision_of(dtype: torch.dtype) -> str:
    """`input_precision` of the products: TF32 would keep only 10 bits of a float32."""
    return "ieee" if dtype == torch.float32 else "tf32"


def capability(q: torch.Tensor) -> int:
    """Major compute capability of q's GPU, 0 on the CPU."""
    return _capability(q.device.index) if q.is_cuda else 0


@torch.compiler.assume_constant_result
def _capability(index: int) -> int:
    return torch.cuda.get_device_capability(index)[0]


def tile_of(dtype: torch.dtype, capability: int) -> int:
    """Rows of a tile: 64, as wgmma needs, with capability 9 and 10. Elsewhere 64 rows would spill,
    or not fit into shared memory (capability 12), and 64 rows of float32 would not fit twice. The
    interpreter takes small tiles too, so that short tests cover many of them."""
    return 64 if capability in (9, 10) and dtype != torch.float32 else 32
