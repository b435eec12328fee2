"""The issue floor: the time of the instructions on the executed path at one per cycle and
scheduler.

The instructions per program are those of docs/results/aot.json; the numbers of loop iterations
follow from the keys that each tile of rows reaches. Clocks, caches and memory play no part: like
the byte floor, it is a lower bound for any run of this code.
"""

import functools
import json

import torch

from kernels.aot.configurations import NEAR, RECORD, Configuration
from kernels.common.gpus import CAPABILITY, SCHEDULERS
from kernels.impl.tables import law_of, near_of
from kernels.impl.triton.causal import STEP
from kernels.impl.triton.launch import near_constant, tile_of
from kernels.impl.triton.tables import BLOCK
from kernels.methods.laws import Law
from kernels.methods.plsh import PositionalLSH
from kernels.methods.weights import Weights, Window

NAMES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}


def issued(weights: Weights, tokens: int, dim: int, dtype: torch.dtype) -> dict[str, int] | None:
    """Lower bound of the warp instructions of a causal forward call on all `tokens`, batch 1.

    Args:
        weights, tokens, dim, dtype: of the call.

    Returns:
        the instructions of the "forward" kernel and of the kernel that builds the "tables"; None if
        their machine code is not recorded.
    """
    law, masks = law_of(weights), weights.count
    near = near_of(weights)
    causal = Configuration("causal", 90, law, dim, NAMES[dtype], masks, near=near_constant(law, near))
    # without masks the kernel that builds the tables does the same under every law
    of_tables = Configuration("tables", 90, law if law is Law.COUNT else Law.RAO_BLACKWELL, near=near)
    forward, tables = (_recorded().get(c.id) for c in (causal, of_tables))
    if not forward or not tables or weights.sinks:
        return None
    tile = tile_of(dtype, CAPABILITY)
    rows = torch.arange(0, tokens, tile)
    steps = weights.heads * len(rows) * tile // STEP  # on the diagonal
    for head in range(weights.heads):
        first, _ = weights.reach(torch.tensor([head]), rows[None])
        steps += int((rows // STEP - first[0].clamp_min(0) // STEP).sum())
    products = [instructions for instructions, mma in forward["path"]["loops"] if mma]
    if len(products) != 1:
        return None
    count = weights.heads * len(rows) * forward["path"]["straight"][0] + steps * products[0]
    built = weights.heads * -(-tokens // BLOCK) * (tables["path"]["none"][0] + _turns(tables["path"]["loops"], masks))
    return {"forward": forward["warps"] * count, "tables": tables["warps"] * built}


def _turns(loops: list[list[int]], masks: int) -> int:
    """Instructions of the loop over the masks, which is the first; the last runs only where
    rounding could decide. If there is another between them, the compiler unrolled the first by four
    masks, and the second takes the remaining masks one by one."""
    first, *rest = (instructions for instructions, _ in loops)
    return masks // 4 * first + masks % 4 * rest[0] if len(rest) > 1 else masks * first


@functools.cache
def _recorded() -> dict:
    return {name: one for name, one in json.loads(RECORD.read_text())["kernels"].items() if one.get("path")}


def table(slopes: torch.Tensor, tokens: int, *, multiprocessors: int = 132, mhz: float = 1755.0) -> str:
    """Returns issue floors in ms for head dimension 128, bf16 and 16 masks, as a Markdown table.

    Args:
        slopes: (H,).
        tokens: context.
        multiprocessors, mhz: of the GPU; by default an H100's.
    """
    rate = multiprocessors * SCHEDULERS * mhz * 1e3
    plsh = {
        kind + (f", near {near}" if near else ""): PositionalLSH.draw(slopes, 16, seed=0, weights=kind, near=near)
        for kind in ("count", "rb")
        for near in (0, NEAR)
    }
    lines = ["| weights | forward | tables |", "|---|---:|---:|"]
    windows = {"window T=2": Window(slopes, 2.0), f"window T=2, near {NEAR}": Window(slopes, 2.0, 0, NEAR)}
    for name, weights in (plsh | windows).items():
        floors = issued(weights, tokens, 128, torch.bfloat16)
        cells = ["", ""] if floors is None else [f"{floors[part] / rate:.2f} ms" for part in ("forward", "tables")]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)
