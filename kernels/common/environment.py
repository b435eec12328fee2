"""What a measurement depends on, for the record of it, and how a record is written."""

import hashlib
import json
import math
import os
import platform
import sys
from pathlib import Path

import torch

from kernels.common.facts import cpu_name, git, of_gpu, version


def environment(device: str, program: str, commit: str | None = None) -> dict:
    """Device, versions, commit and command of `program` as it was called. `code` is a hash of this
    package, which also names what is no checkout; `commit` is the checkout's unless given."""
    files = sorted(Path(__file__).parents[1].rglob("*.py"))
    status = git("status", "--porcelain", "--untracked-files=no")
    cuda = device == "cuda"
    clock = of_gpu("clocks.max.sm") if cuda else None
    return {
        "device": device,
        "gpu": torch.cuda.get_device_name() if cuda else None,
        "driver": of_gpu("driver_version") if cuda else None,
        "cuda": torch.version.cuda if cuda else None,
        "multiprocessors": torch.cuda.get_device_properties(0).multi_processor_count if cuda else None,
        "clock_mhz": float(clock) if clock and clock.isdecimal() else None,  # the highest
        "cpu": cpu_name(),
        "threads": torch.get_num_threads(),
        "load": [round(x, 2) for x in os.getloadavg()],
        "torch": torch.__version__,
        "triton": version("triton"),
        "python": platform.python_version(),
        "commit": commit or git("rev-parse", "HEAD"),
        "dirty": None if status is None else bool(status),
        "code": hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:12],
        "command": " ".join([f"python -m {program}", *sys.argv[1:]]),
    }


def unwritable(file: Path) -> str | None:
    """Why a record cannot be written to this file, in a sentence; None if it can. To be asked
    before anything is measured."""
    folder = file.parent
    if file.is_dir():
        return f"{file} is a folder: name a file in it."
    if not folder.is_dir():
        return f"there is no folder {folder}: make it, or name another."
    if not os.access(folder, os.W_OK | os.X_OK) or (file.exists() and not os.access(file, os.W_OK)):
        return f"{file} may not be written: name another file."
    return None


def written(value: object, depth: int = 0) -> str:
    """`value` as JSON in which each row of figures has a line of its own."""
    inner = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
    rows = any(isinstance(x, list) and any(isinstance(y, dict) for y in x) for x in [value, *inner])
    if not inner or (depth > 1 and not rows):
        return json.dumps(_finite(value), allow_nan=False)
    names = [f"{json.dumps(name)}: " for name in value] if isinstance(value, dict) else [""] * len(inner)
    lines = [f"{' ' * (depth + 1)}{name}{written(x, depth + 1)}" for name, x in zip(names, inner, strict=True)]
    begin, end = "{}" if isinstance(value, dict) else "[]"
    return f"{begin}\n" + ",\n".join(lines) + f"\n{' ' * depth}{end}"


def replace_file(file: Path, text: str) -> None:
    """Write a file as a whole: whoever stops the program keeps the text before or this one."""
    new = file.with_name(file.name + ".new")
    new.write_text(text)
    new.replace(file)


def _finite(value: object) -> object:
    """The same with null for what JSON has no number for."""
    if isinstance(value, dict):
        return {name: _finite(x) for name, x in value.items()}
    if isinstance(value, list):
        return [_finite(x) for x in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
