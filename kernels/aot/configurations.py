"""The configurations of the Triton kernels, and what the compiler says of each, without a GPU."""

import itertools
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, CompiledKernel

from kernels.aot.sass import path
from kernels.impl.triton.causal import LAWS, causal_constants, causal_kernel
from kernels.impl.triton.causal_backward import backward_constants, causal_key_kernel, causal_query_kernel
from kernels.impl.triton.decode import MERGED, decode_kernel, merge_kernel, tile_constants
from kernels.impl.triton.delta import ROWS as DELTA_ROWS
from kernels.impl.triton.delta import delta_kernel
from kernels.impl.triton.dkdv import key_kernel
from kernels.impl.triton.dq import query_kernel
from kernels.impl.triton.dsinks import sink_constants, sink_kernel
from kernels.impl.triton.forward import forward_kernel
from kernels.impl.triton.launch import constants, tile_of
from kernels.impl.triton.tables import table_constants, tables_kernel
from kernels.methods.laws import Law

RECORD = Path(__file__).parents[2] / "docs/results/aot.json"
KERNELS = {"forward": forward_kernel, "decode": decode_kernel, "dq": query_kernel, "dkdv": key_kernel}
# on sm_90 alone: their tiles are fetched by its copy engine, which takes tensor descriptors
STREAMED = {"causal": causal_kernel, "causal_dq": causal_query_kernel, "causal_dkdv": causal_key_kernel}
TABLES = {"tables": tables_kernel}  # knows no head dimension, and no dtype but its own
UNLAWFUL = {"delta": delta_kernel, "merge": merge_kernel, "dsinks": sink_kernel}  # know no law
ALL = KERNELS | STREAMED | TABLES | UNLAWFUL
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
TENSORS = {"Q", "K", "V", "Out", "Dout", "Dq", "Dk", "Dv"}
POINTERS = dict.fromkeys(
    ("Lse", "Dlse", "Delta", "Part", "PartDk", "PartDv", "Whole", "Slope", "Bias", "Share"), "fp32"
) | {
    "Numbers": "fp64",
}
# tables that only one law has: under another law a kernel over tiles gets a table of integers in
# their place
USED = {"Bias": Law.DISTANCE, "Share": Law.SUM}
# a multiprocessor of sm_90: registers, and bytes of shared memory of which every block reserves 1
# KiB for the system
REGISTERS, SHARED = 65536, 233472
TOLERANCE = {"registers": 0.05, "shared": 0.0, "instructions": 0.1, "mma": 0.0}


@dataclass(frozen=True)
class Configuration:
    """One compilation: `cap` is the compute capability times ten, `dtype` Triton's name of the
    inputs' type."""

    kernel: str
    cap: int
    law: Law
    dim: int = 128
    dtype: str = "bf16"
    masks: int = 16
    causal: bool = True
    sinks: int = 0
    gaps: bool = False

    @property
    def id(self) -> str:
        masks = f"-S{self.masks}" if self.law.uses_mask_count else ""
        rows = "" if self.causal else "-both"
        sinks = (f"-sinks{self.sinks}" if self.sinks else "") + "-gap" * self.gaps
        if self.kernel in TABLES:
            return f"{self.kernel}-sm{self.cap}-{self.law}{rows}"
        if self.kernel in UNLAWFUL:
            return f"{self.kernel}-sm{self.cap}-d{self.dim}-{self.dtype}{rows}"
        return f"{self.kernel}-sm{self.cap}-{self.law}{masks}-d{self.dim}-{self.dtype}{rows}{sinks}"


def every() -> list[Configuration]:
    """Returns all configurations that are recorded."""
    caps, both = (80, 90), (True, False)
    linear, rao_blackwell, count, sums = Law.LINEAR, Law.RAO_BLACKWELL, Law.COUNT, Law.SUM
    found = []
    for cap, law in itertools.product(caps, Law):
        found += [Configuration("forward", cap, law, dim, dtype) for dim in (64, 128) for dtype in ("bf16", "fp16")]
        found += [Configuration("forward", cap, law, dim) for dim in (80, 96, 112)]
        found += [Configuration("forward", cap, law, causal=False), Configuration("forward", cap, law, dtype="fp32")]
        found += [Configuration(kernel, cap, law, dim) for kernel in ("decode", "dq", "dkdv") for dim in (64, 128)]
        found += [Configuration(kernel, cap, law, causal=False) for kernel in ("dq", "dkdv")]
        found += [Configuration(kernel, cap, law, dtype="fp32") for kernel in ("decode", "dq")]
        found += [Configuration(kernel, cap, law, sinks=4) for kernel in ("forward", "decode", "dq")]
        found.append(Configuration("dkdv", cap, law, causal=False, sinks=4))  # causal it does not know of them
        found += [Configuration(kernel, cap, law, sinks=70) for kernel in ("forward", "dq")]
        found += [Configuration("forward", cap, law, sinks=sinks, gaps=True) for sinks in (0, 4, 70)]
        found += [Configuration("dq", cap, law, dtype="fp16")]
    for cap, causal in itertools.product(caps, both):
        many = [("forward", law) for law in (rao_blackwell, count, sums)] + [("dq", count), ("dq", sums)]
        many += [("dkdv", count)] + [("dkdv", sums)] * causal
        found += [Configuration(kernel, cap, law, masks=64, causal=causal) for kernel, law in many]
    found += [Configuration("decode", cap, count, masks=64) for cap in caps]
    found += [Configuration("decode", cap, law, sinks=4, gaps=True) for cap in caps for law in Law]
    found += [Configuration(kernel, cap, linear, dim) for kernel in UNLAWFUL for cap in caps for dim in (64, 128)]
    found += [Configuration("dsinks", cap, linear, dtype=dtype) for cap in caps for dtype in ("fp16", "fp32")]
    found += [Configuration("dsinks", cap, linear, dim, causal=False) for cap in caps for dim in (64, 128)]
    found += [Configuration(kernel, cap, rao_blackwell, masks=1) for cap in caps for kernel in KERNELS]
    counts = {linear: (), rao_blackwell: (1, 4, 32, 64), count: (1, 4, 32)}  # beside 16 masks
    for law in LAWS:
        found += [Configuration("causal", 90, law, dim, dtype) for dim in (64, 128) for dtype in ("bf16", "fp16")]
        found += [Configuration("causal", 90, law, dim) for dim in (80, 96, 112)]
        found += [Configuration("causal", 90, law, sinks=sinks) for sinks in (4, 70)]
        found += [Configuration("causal", 90, law, masks=masks) for masks in counts[law]]
        for kernel in ("causal_dq", "causal_dkdv"):
            found += [Configuration(kernel, 90, law, dim) for dim in (64, 128)]
            found += [Configuration(kernel, 90, law, masks=32)] if counts[law] else []
        found.append(Configuration("causal_dq", 90, law, sinks=4))
    for cap, law, causal in itertools.product(caps, (rao_blackwell, count), both):
        found.append(Configuration("tables", cap, law, causal=causal))
    return found


def build(configuration: Configuration) -> dict:
    """Compile one configuration: registers of a thread, bytes that it spills, shared memory and
    warps of a block, instructions, and those of the tensor cores (`mma`), of the kind `unit`: HGMMA
    is wgmma, HMMA mma.sync; and the executed `path` (`kernels.aot.sass`)."""
    return _resources(compiled(configuration))


def compiled(configuration: Configuration) -> CompiledKernel:
    """What Triton makes of one configuration, as at run time."""
    c = configuration
    kernel, tile = ALL[c.kernel], tile_of(DTYPES[c.dtype], c.cap // 10)
    if c.kernel in TABLES:
        fixed = table_constants(c.law, c.masks, c.causal, tile)
    elif c.kernel == "causal":
        fixed = causal_constants(c.law, c.masks, c.sinks, c.dim, DTYPES[c.dtype], tile)
    elif c.kernel in STREAMED:
        fixed = backward_constants(c.kernel, c.law, c.masks, c.sinks, c.dim, DTYPES[c.dtype], tile)
    else:
        fixed = constants(c.kernel, c.law, c.masks, c.sinks, c.causal, c.dim, DTYPES[c.dtype], tile, c.gaps)
    if c.kernel == "decode":
        fixed |= tile_constants(DTYPES[c.dtype]) | {"MASKS": 0 if c.law is Law.LINEAR else c.masks}
    elif c.kernel == "delta":
        fixed |= {"ROWS": DELTA_ROWS, "num_warps": 4, "num_stages": 3}
    elif c.kernel == "merge":
        fixed |= {"STEP": MERGED, "num_warps": 4, "num_stages": 3}
    elif c.kernel == "dsinks":
        fixed |= sink_constants(c.causal, c.dim, DTYPES[c.dtype])
    fixed |= {"GAPS": c.gaps, "GRID": False}
    chosen = ("num_warps", "num_stages", "maxnreg", "enable_fp_fusion")
    options = {name: fixed.pop(name) for name in chosen if name in fixed}
    signature, attributes = {}, {}
    for i, name in enumerate(kernel.arg_names):
        if name in fixed:
            signature[name] = "constexpr"
        elif c.kernel in STREAMED and name in TENSORS:
            of_keys = c.kernel == "causal_dkdv"
            rows = tile if (name in ("K", "V", "Dk", "Dv")) == of_keys else fixed["STEP"]
            signature[name] = f"tensordesc<{c.dtype}[1, 1, {rows}, {fixed['WIDE']}]>"
        elif name in (*TENSORS, "OutRows"):
            signature[name] = f"*{c.dtype}"
        elif name in POINTERS and (USED.get(name, c.law) == c.law or c.kernel == "decode"):
            signature[name] = f"*{POINTERS[name]}"
        elif name[0].isupper():
            signature[name] = "*i32"
        else:
            signature[name] = "fp32" if name.startswith("scale") else "i32"
        # as at run time: torch aligns memory, and strides of whole tensors are multiples of 16
        if signature[name].startswith("*") or re.fullmatch("[qkvod]_[bht]|padded|origin", name):
            attributes[(i,)] = [["tt.divisibility", 16]]
    places = {(i,): fixed[name] for i, name in enumerate(kernel.arg_names) if name in fixed}
    source = ASTSource(fn=kernel, signature=signature, constexprs=places, attrs=attributes)
    return triton.compile(source, target=GPUTarget("cuda", c.cap, 32), options=options)


def blocks_per_sm(found: dict) -> int:
    """Blocks that fit on a multiprocessor of sm_90 with these resources."""
    registers = -(-found["registers"] // 8) * 8 * 32 * found["warps"]
    return min(REGISTERS // registers, SHARED // (found["shared"] + 1024))


def compare(found: dict, recorded: dict) -> list[str]:
    """What has become worse or different than the record by more than TOLERANCE, in words."""
    changes = [f"spilled {recorded['spilled']} -> {found['spilled']} bytes"] * (found["spilled"] > recorded["spilled"])
    changes += [f"unit {recorded['unit']} -> {found['unit']}"] * (found["unit"] != recorded["unit"])
    for name, tolerance in TOLERANCE.items():
        if abs(found[name] - recorded[name]) > tolerance * recorded[name]:
            changes.append(f"{name} {recorded[name]} -> {found[name]}")
    return changes


def table(kernels: dict) -> str:
    """The recorded kernels of docs/kernels.md as Markdown: bf16, head dimension 128, sm_90, S =
    16."""
    lines = [
        "| kernel | law | registers | spilled | shared | warps | blocks per SM | instructions |",
        "|---|---|---|---|---|---|---|---|",
    ]
    chosen = [Configuration(kernel, 90, law) for kernel in KERNELS for law in Law]
    chosen += [Configuration("causal", 90, law) for law in LAWS]
    for c in [*chosen, *(Configuration("tables", 90, law) for law in (Law.RAO_BLACKWELL, Law.COUNT))]:
        k = kernels[c.id]
        lines.append(
            f"| {c.kernel} | {c.law} | {k['registers']} | {k['spilled']} B | {k['shared'] // 1024} KB | {k['warps']} | "
            f"{blocks_per_sm(k)} | {k['instructions']} |"
        )
    return "\n".join(lines)


def _resources(compiled) -> dict:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = _cuobjdump("-res-usage", file.name)
        code = _cuobjdump("-sass", file.name)
    kinds = re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ )?([A-Z][A-Z0-9_]*)", code)
    unit = "HGMMA" if "HGMMA" in kinds else "HMMA" if "HMMA" in kinds else "none"
    return {
        "registers": int(re.findall(r"REG:(\d+)", usage)[0]),
        "spilled": int(re.findall(r"STACK:(\d+)", usage)[0]),
        "shared": compiled.metadata.shared,
        "warps": compiled.metadata.num_warps,
        "instructions": len(kinds),
        "mma": kinds.count(unit),
        "unit": unit,
        "path": path(code),
    }


def _cuobjdump(option: str, path: str) -> str:
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    return subprocess.run([tool, option, path], check=True, capture_output=True, text=True).stdout
