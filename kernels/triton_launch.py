"""How the Triton kernels are launched: their arguments, and the constants, steps and warps they are compiled with."""

import torch
import triton

from kernels.tables import WORD, Tables
from kernels.triton_weights import INTERPRETED

LEAST = 16  # rows or columns of a product's operand


def pointers(tables: Tables) -> list[torch.Tensor]:
    """The tables in the order in which the kernels take them; one that the law does not need is never read."""
    named = ("order", "first", "last", "slope", "bias", "planes", "corners", "share")
    return [getattr(tables, name) if getattr(tables, name).numel() else tables.first for name in named]


KEPT = 64  # calls whose places stay on a device
_PLACES: dict[tuple, torch.Tensor] = {}


def places_on(places: tuple[tuple[int, ...], ...], device: torch.device) -> torch.Tensor:
    """Places on the host, as of `kernels.triton_tiles.place_of`, as int32 on a device. All layers of a model ask for
    the same: they stay there for a while, for each stream by itself, so that no stream reads what another has yet to
    write. A graph being captured has its own, which its replays fill in anew: a copy from the host would end it."""
    if device.type != "cuda":
        return torch.tensor(places, dtype=torch.int32)
    if torch.cuda.is_current_stream_capturing():
        held = torch.empty(len(places), len(places[0]), dtype=torch.int32, device=device)
        for to, numbers in zip(held, places, strict=True):
            for part, number in zip(to, numbers, strict=True) if len(set(numbers)) > 1 else [(to, numbers[0])]:
                part.fill_(number)
        return held
    key = (places, device, torch.cuda.current_stream(device).cuda_stream)
    held = _PLACES.get(key)
    if held is None:
        if len(_PLACES) >= KEPT:
            del _PLACES[next(iter(_PLACES))]
        with torch.inference_mode(False):  # a copy out of pinned memory does not make the host wait for the device
            held = torch.tensor(places, dtype=torch.int32, pin_memory=True).to(device, non_blocking=True)
        _PLACES[key] = held
    return held


def constants(
    kernel: str, law: str, masks: int, sinks: int, causal: bool, dim: int, dtype: torch.dtype, tile: int,
    gaps: bool = False,
) -> dict:  # fmt: skip
    """What the kernel over tiles, "forward", "dq" or "dkdv", is compiled for, and how it is launched; other kernels
    have a step and warps of their own. gaps: of the forward kernel, whether keys leave out tokens."""
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
        "num_stages": 2,
        "enable_fp_fusion": True,  # the default changes with Triton's version
    }


def step_of(
    kernel: str, law: str, masks: int, causal: bool, dim: int, dtype: torch.dtype, tile: int, sinks: int, gaps: bool
) -> int:
    """How much of the other side a program takes at a time: the whole tile where score, weights and sums fit into the
    registers that two programs on a multiprocessor have, else a half or a quarter of it."""
    looked_up, words = law in ("distance", "sum"), law in ("count", "sum") and masks > WORD
    if kernel != "forward":
        more = law in ("rb", "distance", "sum") and not causal or words and (law == "sum" or kernel == "dkdv")
        halvings = int(width_of(dim) > 64) + int(more)
    elif dtype == torch.float32 or tile == 64:
        many = sinks > LEAST and law in ("rb", "sum")  # a loop over sinks, which fewer would be no loop for
        more = law == "sum" and (not causal or many)
        halvings = int(dtype == torch.float32 or looked_up or words or not causal or gaps or many) + int(more)
    else:
        halvings = 0
    return max(LEAST, tile >> halvings)


def warps_of(kernel: str, dim: int, dtype: torch.dtype, tile: int) -> int:
    """4 where two programs shall share a multiprocessor. dk and dv take too many registers for that on sm_90, and
    float32, which is not multiplied by the tensor cores, has all operands in registers."""
    backward = kernel != "forward" and width_of(dim) > 64
    if dtype == torch.float32:
        return 16 if backward else 8
    return 8 if backward and kernel == "dkdv" and tile == 64 else 4


def width_of(dim: int) -> int:
    """Columns of a tile that holds head dimension `dim`: tiles are powers of two, and a product takes at least 16."""
    return max(LEAST, triton.next_power_of_2(dim))


def precision_of(dtype: torch.dtype) -> str:
    """How products of this type are computed: TF32 would keep 10 bits of a float32."""
    return "ieee" if dtype == torch.float32 else "tf32"


def tile_of(dtype: torch.dtype, capability: int) -> int:
    """Rows of a tile: 64 are what wgmma wants; elsewhere they would spill, or not fit into shared memory (capability
    12), and of float32 not fit twice. The interpreter takes small tiles too, so that short tests meet many of them."""
    return 64 if capability in (9, 10) and dtype != torch.float32 else 32
