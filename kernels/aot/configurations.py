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
from kernels.impl.triton.decode import MERGE_STEP, decode_kernel, merge_kernel, tile_constants
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
# for sm_90 only: the copy engine fetches their tiles, and takes tensor descriptors
STREAMED = {"causal": causal_kernel, "causal_dq": causal_query_kernel, "causal_dkdv": causal_key_kernel}
TABLES = {"tables": tables_kernel}  # independent of head dimension and dtype
LAWLESS = {"delta": delta_kernel, "merge": merge_kernel, "dsinks": sink_kernel}  # independent of the law
ALL_KERNELS = KERNELS | STREAMED | TABLES | LAWLESS
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
TENSORS = {"Q", "K", "V", "Out", "Dout", "Dq", "Dk", "Dv"}
POINTERS = dict.fromkeys(
    ("Lse", "Dlse", "Delta", "Part", "PartDk", "PartDv", "Whole", "Slope", "Bias", "ByteWeights"), "fp32"
) | {
    "Packed": "fp64",
}
# tables that only one law needs: under another law a kernel over tiles gets a table of integers
# instead
USED_BY_LAW = {"Bias": Law.DISTANCE, "ByteWeights": Law.SUM}
# of a multiprocessor of sm_90: registers, and bytes of shared memory, 1 KiB of which each block
# reserves for the system
REGISTERS, SHARED = 65536, 233472
NEAR = 64  # tokens of the near field that is recorded: a tile of sm_90
TOLERANCE = {"registers": 0.05, "shared": 0.0, "instructions": 0.1, "mma": 0.0}


@dataclass(frozen=True)
class Configuration:
    """One compilation of a kernel. `cap`: compute capability times ten. `dtype`: of the inputs, by
    Triton's name."""

    kernel: str
    cap: int
    law: Law
    dim: int = 128
    dtype: str = "bf16"
    masks: int = 16
    causal: bool = True
    sinks: int = 0
    gaps: bool = False
    near: int = 0

    @property
    def id(self) -> str:
        """Name of the configuration in the record."""
        masks = f"-S{self.masks}" if self.law.uses_mask_count else ""
        rows = "" if self.causal else "-both"
        near = f"-near{self.near}" if self.near else ""
        sinks = (f"-sinks{self.sinks}" if self.sinks else "") + near + "-gap" * self.gaps
        if self.kernel in TABLES:
            return f"{self.kernel}-sm{self.cap}-{self.law}{rows}{near}"
        if self.kernel in LAWLESS:
            return f"{self.kernel}-sm{self.cap}-d{self.dim}-{self.dtype}{rows}"
        return f"{self.kernel}-sm{self.cap}-{self.law}{masks}-d{self.dim}-{self.dtype}{rows}{sinks}"


def every() -> list[Configuration]:
    """Returns all configurations that are recorded."""
    caps, both = (80, 90), (True, False)
    linear, rao_blackwell, count, sums = Law.LINEAR, Law.RAO_BLACKWELL, Law.COUNT, Law.SUM
    chosen = []
    for cap, law in itertools.product(caps, Law):
        chosen += [Configuration("forward", cap, law, dim, dtype) for dim in (64, 128) for dtype in ("bf16", "fp16")]
        chosen += [Configuration("forward", cap, law, dim) for dim in (80, 96, 112)]
        chosen += [
            Configuration("forward", cap, law, causal=False),
            Configuration("forward", cap, law, dtype="fp32"),
        ]
        chosen += [Configuration(kernel, cap, law, dim) for kernel in ("decode", "dq", "dkdv") for dim in (64, 128)]
        chosen += [Configuration(kernel, cap, law, causal=False) for kernel in ("dq", "dkdv")]
        chosen += [Configuration(kernel, cap, law, dtype="fp32") for kernel in ("decode", "dq")]
        chosen += [Configuration(kernel, cap, law, sinks=4) for kernel in ("forward", "decode", "dq")]
        chosen.append(
            Configuration("dkdv", cap, law, causal=False, sinks=4)
        )  # the causal kernel does not depend on sinks
        chosen += [Configuration(kernel, cap, law, sinks=70) for kernel in ("forward", "dq")]
        chosen += [Configuration("forward", cap, law, sinks=sinks, gaps=True) for sinks in (0, 4, 70)]
        chosen += [Configuration("dq", cap, law, dtype="fp16")]
    for cap, causal in itertools.product(caps, both):
        many = [("forward", law) for law in (rao_blackwell, count, sums)] + [("dq", count), ("dq", sums)]
        many += [("dkdv", count)] + [("dkdv", sums)] * causal
        chosen += [Configuration(kernel, cap, law, masks=64, causal=causal) for kernel, law in many]
    chosen += [Configuration("decode", cap, count, masks=64) for cap in caps]
    chosen += [Configuration("decode", cap, law, sinks=4, gaps=True) for cap in caps for law in Law]
    chosen += [Configuration(kernel, cap, linear, dim) for kernel in LAWLESS for cap in caps for dim in (64, 128)]
    chosen += [Configuration("dsinks", cap, linear, dtype=dtype) for cap in caps for dtype in ("fp16", "fp32")]
    chosen += [Configuration("dsinks", cap, linear, dim, causal=False) for cap in caps for dim in (64, 128)]
    chosen += [Configuration(kernel, cap, rao_blackwell, masks=1) for cap in caps for kernel in KERNELS]
    counts = {linear: (), rao_blackwell: (1, 4, 32, 64), count: (1, 4, 32)}  # beside 16 masks
    for law in LAWS:
        chosen += [Configuration("causal", 90, law, dim, dtype) for dim in (64, 128) for dtype in ("bf16", "fp16")]
        chosen += [Configuration("causal", 90, law, dim) for dim in (80, 96, 112)]
        chosen += [Configuration("causal", 90, law, sinks=sinks) for sinks in (4, 70)]
        chosen += [Configuration("causal", 90, law, masks=masks) for masks in counts[law]]
        for kernel in ("causal_dq", "causal_dkdv"):
            chosen += [Configuration(kernel, 90, law, dim) for dim in (64, 128)]
            chosen += [Configuration(kernel, 90, law, masks=32)] if counts[law] else []
        chosen.append(Configuration("causal_dq", 90, law, sinks=4))
    for cap, law, causal in itertools.product(caps, (rao_blackwell, count), both):
        chosen.append(Configuration("tables", cap, law, causal=causal))
    for law in (rao_blackwell, count):
        chosen += [Configuration(kernel, 90, law, near=NEAR) for kernel in STREAMED]
        chosen += [Configuration("causal", 90, law, 64, near=NEAR), Configuration("causal", 90, law, near=16)]
        chosen += [Configuration(kernel, 90, law, causal=False, near=NEAR) for kernel in ("forward", "dq", "dkdv")]
        chosen.append(Configuration("tables", 90, law, near=NEAR))
    for cap, law in itertools.product(caps, (rao_blackwell, count, sums)):
        chosen += [Configuration(kernel, cap, law, near=NEAR) for kernel in KERNELS]
        chosen.append(Configuration("forward", cap, law, sinks=4, gaps=True, near=NEAR))
    return chosen


def build(configuration: Configuration) -> dict:
    """Compiles one configuration.

    Returns: registers per thread; bytes spilled per thread; bytes of shared memory and warps per
    block; number of instructions; number of tensor core instructions (`mma`) and their kind
    (`unit`: HGMMA is wgmma, HMMA is mma.sync); and the executed `path` (`kernels.aot.sass`).
    """
    return _resources(compiled(configuration))


def compiled(configuration: Configuration) -> CompiledKernel:
    """The kernel that Triton compiles for one configuration, with the same options as at run
    time."""
    c = configuration
    kernel, tile = ALL_KERNELS[c.kernel], tile_of(DTYPES[c.dtype], c.cap // 10)
    if c.kernel in TABLES:
        fixed = table_constants(c.law, c.masks, c.near, c.causal, tile)
    elif c.kernel == "causal":
        fixed = causal_constants(c.law, c.masks, c.sinks, c.near, c.dim, DTYPES[c.dtype], tile)
    elif c.kernel in STREAMED:
        fixed = backward_constants(c.kernel, c.law, c.masks, c.sinks, c.near, c.dim, DTYPES[c.dtype], tile)
    else:
        fixed = constants(c.kernel, c.law, c.masks, c.sinks, c.near, c.causal, c.dim, DTYPES[c.dtype], tile, c.gaps)
    if c.kernel == "decode":
        fixed |= tile_constants(DTYPES[c.dtype]) | {"MASKS": 0 if c.law is Law.LINEAR else c.masks, "NEAR": c.near}
    elif c.kernel == "delta":
        fixed |= {"ROWS": DELTA_ROWS, "num_warps": 4, "num_stages": 3}
    elif c.kernel == "merge":
        fixed |= {"STEP": MERGE_STEP, "num_warps": 4, "num_stages": 3}
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
        elif name in POINTERS and (USED_BY_LAW.get(name, c.law) == c.law or c.kernel == "decode"):
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


def blocks_per_sm(resources: dict) -> int:
    """Number of blocks with these resources that fit on a multiprocessor of sm_90."""
    registers = -(-resources["registers"] // 8) * 8 * 32 * resources["warps"]
    return min(REGISTERS // registers, SHARED // (resources["shared"] + 1024))


def compare(resources: dict, recorded: dict) -> list[str]:
    """The resources that are worse than the record, or differ by more than TOLERANCE, in words."""
    changes = [f"spilled {recorded['spilled']} -> {resources['spilled']} bytes"] * (
        resources["spilled"] > recorded["spilled"]
    )
    changes += [f"unit {recorded['unit']} -> {resources['unit']}"] * (resources["unit"] != recorded["unit"])
    for name, tolerance in TOLERANCE.items():
        if abs(resources[name] - recorded[name]) > tolerance * recorded[name]:
            changes.append(f"{name} {recorded[name]} -> {resources[name]}")
    return changes


def table(kernels: dict) -> str:
    """The table of docs/kernels.md as Markdown: bf16, head dimension 128, sm_90, 16 masks."""
    lines = [
        "| kernel | law | registers | spilled | shared | warps | blocks per SM | instructions |",
        "|---|---|---|---|---|---|---|---|",
    ]
    chosen = [Configuration(kernel, 90, law) for kernel in KERNELS for law in Law]
    chosen += [Configuration("causal", 90, law) for law in LAWS]
    masked = (Law.RAO_BLACKWELL, Law.COUNT)
    chosen += [Configuration(kernel, 90, law, near=NEAR) for kernel in STREAMED for law in masked]
    for c in [*chosen, *(Configuration("tables", 90, law) for law in masked)]:
        k = kernels[c.id]
        near = f", near {c.near}" if c.near else ""
        lines.append(
            f"| {c.kernel}{near} | {c.law} | {k['registers']} | {k['spilled']} B | {k['shared'] // 1024} KB | "
            f"{k['warps']} | {blocks_per_sm(k)} | {k['instructions']} |"
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
