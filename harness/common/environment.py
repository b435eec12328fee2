"""Where a record was made: enough to judge it and to make it again."""

import functools
import hashlib
import importlib.metadata
import os
import platform
import shlex
import socket
import subprocess
import sys
import time

import torch

from harness.common.paths import ROOT
from harness.common.secrets import without_secrets

PACKAGES = ("torch", "triton", "transformers", "tokenizers", "datasets", "lm-eval", "numpy", "hydra-core")


def describe(device: torch.device) -> dict:
    """Commit, packages, device, precision flags, host, start and command, as plain JSON."""
    return {
        "commit": _git("rev-parse", "HEAD"),
        "dirty": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "device": _device_name(device),
        "driver": _driver(device),
        "tf32": torch.backends.cuda.matmul.allow_tf32,
        "threads": torch.get_num_threads(),
        "host": socket.gethostname(),
        "slurm_job": os.environ.get("SLURM_JOB_ID"),
        "start": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": without_secrets(shlex.join(["python", "-m", "harness.run", *sys.argv[1:]])),
    }


def machine(device: torch.device) -> dict:
    """What a time depends on beside the cell: device (and threads of a CPU), versions and code, a
    change that is not committed included."""
    commit, changed = _git("rev-parse", "HEAD"), _git("diff", "HEAD", "--", "harness", "kernels")
    if changed:
        commit = f"{commit}+{hashlib.sha256(changed.encode()).hexdigest()[:8]}"
    versions = {name: _version(name) for name in ("torch", "triton")}
    threads = torch.get_num_threads() if device.type == "cpu" else None
    return {"device": _device_name(device), "threads": threads, **versions, "commit": commit}


@functools.cache
def _git(*arguments: str) -> str | None:
    if not (ROOT / ".git").exists():  # installed, perhaps into somebody else's repository
        return None
    try:
        done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


@functools.cache
def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        here = (device.index or 0) < torch.cuda.device_count()
        return torch.cuda.get_device_name(device) if here else f"{device} of another machine"
    try:
        with open("/proc/cpuinfo") as lines:
            name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
    except OSError:
        name = ""
    return f"cpu {name or platform.processor() or platform.machine()}".strip()


@functools.cache
def _driver(device: torch.device) -> str | None:
    if device.type != "cuda":
        return None
    try:
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        done = subprocess.run(query, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.split("\n")[0].strip() or None
