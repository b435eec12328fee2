"""The issue floor: the time that the instructions of the executed path take at one a cycle on every scheduler.

Instructions a program are those of docs/results/aot.json, turns of the loops follow from what each tile of rows
reaches. No clock, cache or memory is part of it: beside the byte floor it is the other thing that no kernel of this
code can undercut.
"""

import functools
import json

import torch

from kernels.aot import RECORD, Configuration
from kernels.bench.measure import CAPABILITY
from kernels.bench.record import SCHEDULERS
from kernels.tables import law_of
from kernels.triton_launch import step_of, tile_of
from kernels.triton_tables import LANES
from kernels.union import PositionalLSH
from kernels.weights import Weights, Window

NAMES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}


def issued(weights: Weights, tokens: int, dim: int, dtype: torch.dtype) -> dict[str, int] | None:
    """Instructions of warps that a causal forward call on all `tokens`, batch 1, issues at least: of the forward kernel
    and of the kernel that builds its tables. None where no machine code of these is recorded."""
    law, masks = law_of(weights), weights.count if isinstance(weights, PositionalLSH) else 0
    named = Configuration("forward", 90, law, dim, NAMES[dtype], masks)
    # without masks the kernel of the tables does the same under every law
    of_tables = Configuration("tables", 90, law if law in ("rb", "count") else "rb")
    forward, tables = (_recorded().get(c.id) for c in (named, of_tables))
    if not forward or not tables or law not in ("rb", "count", "linear") or weights.sinks:
        return None
    tile = tile_of(dtype, CAPABILITY)
    step = step_of("forward", law, masks, True, dim, dtype, tile, 0, False)
    programs = weights.heads * -(-tokens // tile)
    far = idle = 0  # steps before the diagonal tile, and programs without any
    rows = torch.arange(0, tokens, tile)
    for head in range(weights.heads):
        first, _ = weights.reach(torch.tensor([head]), rows[None])
        steps = rows // step - first[0].clamp_min(0) // step
        far, idle = far + int(steps.sum()), idle + int((steps == 0).sum())
    count = _forward(forward["path"], programs, programs * tile // step, far, idle)
    way = tables["path"]
    if count is None or len(way["loops"]) > 1:
        return None
    one = way["straight"][0] + sum(-(-masks // LANES.value) * loop for loop, _ in way["loops"])
    if not masks and way["loops"]:
        one = way["none"][0]
    return {"forward": forward["warps"] * count, "tables": tables["warps"] * programs * one}


def _forward(way: dict, programs: int, near: int, far: int, idle: int) -> int | None:
    """Instructions of all programs, which take `near` steps on the diagonal and `far` before it, `idle` of them none of
    the latter; the loops over these are those with products. None for code that looks otherwise."""
    products = [instructions for instructions, mma in way["loops"] if mma]
    (straight, written_out), (none, _) = way["straight"], way["none"]
    if len(products) == 1 and written_out:  # the diagonal
        return (programs - idle) * straight + idle * none + far * products[0]
    if len(products) == 1:
        return programs * straight + (near + far) * products[0]
    if len(products) == 2 and not written_out:  # the way without the second loop holds one turn of the first
        of_idle = min(straight, none - products[0])
        return (programs - idle) * straight + idle * of_idle + near * products[0] + far * products[1]
    return None


@functools.cache
def _recorded() -> dict:
    return {name: one for name, one in json.loads(RECORD.read_text())["kernels"].items() if one.get("path")}


def table(slopes: torch.Tensor, tokens: int, *, multiprocessors: int = 132, mhz: float = 1755.0) -> str:
    """Issue floors in ms of head dimension 128 in bf16 with 16 masks, as Markdown."""
    rate = multiprocessors * SCHEDULERS * mhz * 1e3
    drawn = {kind: PositionalLSH.draw(slopes, 16, seed=0, weights=kind) for kind in ("count", "rb")}
    lines = ["| weights | forward | tables |", "|---|---:|---:|"]
    for name, weights in (drawn | {"window T=2": Window(slopes, 2.0)}).items():
        found = issued(weights, tokens, 128, torch.bfloat16)
        cells = ["", ""] if found is None else [f"{found[part] / rate:.2f} ms" for part in ("forward", "tables")]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)
