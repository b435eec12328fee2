"""Where a record was made: enough to judge it and to make it again."""

import hashlib
import os
import platform
import shlex
import socket
import sys
import time

import torch

from harness.common.secrets import without_secrets
from harness.common.streams import say_once
from kernels.common.facts import cpu_name, git, no_commit, of_gpu, source_hash, version

PACKAGES = ("torch", "triton", "transformers", "tokenizers", "datasets", "lm-eval", "numpy", "hydra-core")


def describe(device: torch.device) -> dict:
    """Commit, packages, device, precision flags, host, start and command, as plain JSON.

    Where git does not tell the commit, it is said on stderr and in the record why, and a hash of the
    source files stands beside it.
    """
    commit, why = git("rev-parse", "HEAD"), no_commit()
    status = git("status", "--porcelain", "--untracked-files=no")
    if why:
        say_once(f"The commit of this code is not known, and a hash of its files is recorded instead: {why}")
    return {
        "commit": commit,
        "dirty": None if status is None else bool(status),
        **({"no_commit": why, "source": source_hash()} if why else {}),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
        "device": _device_name(device),
        "driver": of_gpu("driver_version") if device.type == "cuda" else None,
        "tf32": torch.backends.cuda.matmul.allow_tf32,
        "threads": torch.get_num_threads(),
        "host": socket.gethostname(),
        "slurm_job": os.environ.get("SLURM_JOB_ID"),
        "start": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": shlex.join(["python", "-m", "harness.run", *map(without_secrets, sys.argv[1:])]),
    }


def machine(device: torch.device) -> dict:
    """What a time depends on beside the cell: device (and threads of a CPU), versions and code, a
    change that is not committed included. Where git does not tell the commit, a hash of the source
    files takes its place."""
    commit, changed = git("rev-parse", "HEAD"), git("diff", "HEAD", "--", "harness", "kernels")
    if commit is None:
        commit = f"source:{source_hash()}"
    elif changed:
        commit = f"{commit}+{hashlib.sha256(changed.encode()).hexdigest()[:8]}"
    versions = {name: version(name) for name in ("torch", "triton")}
    threads = torch.get_num_threads() if device.type == "cpu" else None
    return {"device": _device_name(device), "threads": threads, **versions, "commit": commit}


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        here = (device.index or 0) < torch.cuda.device_count()
        return torch.cuda.get_device_name(device) if here else f"{device} of another machine"
    return f"cpu {cpu_name() or platform.machine()}".strip()
