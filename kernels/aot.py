"""Compile the Triton kernels ahead of time, without a GPU, and hold what the compiler says to a committed record.

`python -m kernels.aot` compiles every configuration for sm_80 and sm_90 and compares with docs/results/aot.json;
`--write` renews the record. Registers, spills and shared memory decide how many blocks share a multiprocessor.
"""

import argparse
import itertools
import json
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from kernels.triton_forward import STAGES, forward_kernel
from kernels.triton_weights import tile_of, warps_of, width_of

RECORD = Path(__file__).parents[1] / "docs/results/aot.json"
KERNELS = {"forward": forward_kernel}
TENSORS = {"Q", "K", "V", "Out"}
FLOATS = {"Lse", "Slope", "Bias", "Share"}
# a multiprocessor of sm_90: registers, and bytes of shared memory of which every block reserves 1 KiB for the system
REGISTERS, SHARED = 65536, 233472


@dataclass(frozen=True)
class Configuration:
    """One compilation: `dtype` is Triton's name of the inputs' type, `cap` the compute capability times ten."""

    kernel: str
    cap: int
    law: str
    dim: int = 128
    dtype: str = "bf16"
    masks: int = 16
    causal: bool = True

    @property
    def id(self) -> str:
        masks = f"-S{self.masks}" if self.law not in ("linear", "distance") else ""
        rows = "causal" if self.causal else "both"
        return f"{self.kernel}-sm{self.cap}-{self.law}{masks}-d{self.dim}-{self.dtype}-{rows}"


def every() -> list[Configuration]:
    """All configurations that are recorded."""
    laws = ("linear", "distance", "count", "sum")
    found = [
        Configuration("forward", cap, law, dim, dtype)
        for cap, law, dim, dtype in itertools.product((80, 90), laws, (64, 80, 96, 112, 128), ("fp16", "bf16"))
    ]
    return found


def build(configuration: Configuration) -> dict:
    """Compile one configuration: registers, spilled bytes of a thread, shared memory of a block, instructions, tensor
    core instructions (`mma`: wgmma on sm_90 where it is used, else mma.sync) and the kind of them."""
    c = configuration
    kernel = KERNELS[c.kernel]
    constants = {
        "LAW": c.law, "CAUSAL": c.causal, "MASKS": 0 if c.law in ("linear", "distance") else c.masks, "DIM": c.dim, "WIDE": width_of(c.dim),
        "TILE": tile_of(c.dtype == "fp32"), "PRECISION": "ieee" if c.dtype == "fp32" else "tf32", "ASM": True,
        "STAGES": STAGES,
    }  # fmt: skip
    constants = {name: value for name, value in constants.items() if name in kernel.arg_names}
    signature, aligned = {}, []
    for name in kernel.arg_names:
        if name in constants:
            signature[name] = "constexpr"
        elif name in TENSORS:
            signature[name] = f"*{c.dtype}"
        elif name in FLOATS:
            signature[name] = "*fp32"
        elif name[0].isupper():
            signature[name] = "*i32"
        else:
            signature[name] = "fp32" if name.startswith("scale") else "i32"
        # as at run time: pointers of torch and strides of whole tensors are multiples of 16
        if signature[name].startswith("*") or re.fullmatch(r"[a-z]+_[bht]|padded", name):
            aligned.append(name)
    index = {name: (i,) for i, name in enumerate(kernel.arg_names)}
    source = ASTSource(
        fn=kernel,
        signature=signature,
        constexprs={index[name]: value for name, value in constants.items()},
        attrs={index[name]: [["tt.divisibility", 16]] for name in aligned},
    )
    options = {"num_warps": warps_of(c.law, c.masks, c.causal, c.dtype == "fp32"), "num_stages": STAGES}
    return _resources(triton.compile(source, target=GPUTarget("cuda", c.cap, 32), options=options))


def blocks_per_sm(found: dict) -> int:
    """Blocks of `WARPS` warps that fit on a multiprocessor of sm_90 with these resources."""
    registers = -(-found["registers"] // 8) * 8 * 32 * WARPS
    return min(REGISTERS // registers, SHARED // (found["shared"] + 1024))


def _resources(compiled) -> dict:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = _cuobjdump("-res-usage", file.name)
        code = _cuobjdump("-sass", file.name)
    instructions = re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ )?([A-Z][A-Z0-9_.]*)", code)
    kinds = [name.split(".")[0] for name in instructions]
    mma = "HGMMA" if "HGMMA" in kinds else "HMMA"
    return {
        "registers": int(re.search(r"REG:(\d+)", usage)[1]),
        "spilled": int(re.search(r"STACK:(\d+)", usage)[1]),
        "shared": compiled.metadata.shared,
        "instructions": len(kinds),
        mma.lower(): kinds.count(mma),
    }


def _cuobjdump(option: str, path: str) -> str:
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    return subprocess.run([tool, option, path], check=True, capture_output=True, text=True).stdout
