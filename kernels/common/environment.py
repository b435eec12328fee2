"""The environment of a measurement, for its record, and the writing of records."""

import hashlib
import json
import math
import os
import platform
import sys
from pathlib import Path

import torch

from kernels.common.facts import cpu_name, git, no_commit, of_gpu, version


def environment(device: str, program: str, commit: str | None = None) -> dict:
    """Returns device, versions, commit and command line of a measurement.

    Args:
        device: "cuda" or "cpu".
        program: module that was called.
        commit: of the code, if it is no git checkout. `code`, a hash of this package, identifies
            the code in any case.
    """
    files = sorted(Path(__file__).parents[1].rglob("*.py"))
    status = git("status", "--porcelain", "--untracked-files=no")
    cuda = device == "cuda"
    why = None if commit else no_commit()
    if why:
        print(f"The commit of this code is not known, its hash is recorded: {why}", file=sys.stderr)
    clock = of_gpu("clocks.max.sm") if cuda else None
    return {
        "device": device,
        "gpu": torch.cuda.get_device_name() if cuda else None,
        "driver": of_gpu("driver_version") if cuda else None,
        "cuda": torch.version.cuda if cuda else None,
        "multiprocessors": torch.cuda.get_device_properties(0).multi_processor_count if cuda else None,
        "clock_mhz": float(clock) if clock and clock.isdecimal() else None,  # the highest clock
        "cpu": cpu_name(),
        "threads": torch.get_num_threads(),
        "load": [round(x, 2) for x in os.getloadavg()],
        "torch": torch.__version__,
        "triton": version("triton"),
        "python": platform.python_version(),
        "commit": commit or git("rev-parse", "HEAD"),
        **({"no_commit": why} if why else {}),
        "dirty": None if status is None else bool(status),
        "code": hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:12],
        "command": " ".join([f"python -m {program}", *sys.argv[1:]]),
    }


def unwritable(file: Path) -> str | None:
    """The reason why a record cannot be written to this file, in a sentence; None if it can. Call
    it before the measurement."""
    folder = file.parent
    if file.is_dir():
        return f"{file} is a folder: name a file in it."
    if not folder.is_dir():
        return f"there is no folder {folder}: make it, or name another."
    if not os.access(folder, os.W_OK | os.X_OK) or (file.exists() and not os.access(file, os.W_OK)):
        return f"{file} may not be written: name another file."
    return None


def written(value: object, depth: int = 0) -> str:
    """`value` as JSON with each row of figures on its own line."""
    inner = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
    rows = any(isinstance(x, list) and any(isinstance(y, dict) for y in x) for x in [value, *inner])
    if not inner or (depth > 1 and not rows):
        return json.dumps(_finite(value), allow_nan=False)
    names = [f"{json.dumps(name)}: " for name in value] if isinstance(value, dict) else [""] * len(inner)
    lines = [f"{' ' * (depth + 1)}{name}{written(x, depth + 1)}" for name, x in zip(names, inner, strict=True)]
    begin, end = "{}" if isinstance(value, dict) else "[]"
    return f"{begin}\n" + ",\n".join(lines) + f"\n{' ' * depth}{end}"


def replace_file(file: Path, text: str) -> None:
    """Replaces a file atomically: a stopped program leaves the old text or the new one."""
    new = file.with_name(file.name + ".new")
    new.write_text(text)
    new.replace(file)


def _finite(value: object) -> object:
    """`value` with None for numbers that JSON does not have."""
    if isinstance(value, dict):
        return {name: _finite(x) for name, x in value.items()}
    if isinstance(value, list):
        return [_finite(x) for x in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
