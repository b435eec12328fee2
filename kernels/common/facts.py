"""Facts about this machine and this checkout that a record of a measurement holds."""

import functools
import platform
import subprocess
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 20  # seconds for a program that answers at once where it works


@functools.cache
def git(*arguments: str) -> str | None:
    """What git says of this checkout; None where there is none, as in an installed package, perhaps
    within somebody else's repository."""
    return answer_of("git", "-C", str(ROOT), *arguments) if (ROOT / ".git").exists() else None


@functools.cache
def version(package: str) -> str | None:
    """The installed version of a package."""
    try:
        return installed(package)
    except PackageNotFoundError:
        return None


def cpu_name() -> str:
    """The processor's name; empty where neither Linux nor Python knows it."""
    try:
        with open("/proc/cpuinfo") as lines:
            name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
    except OSError:
        name = ""
    return name or platform.processor()


@functools.cache
def of_gpu(field: str) -> str | None:
    """What nvidia-smi says of the first GPU, `driver_version` for example."""
    answer = answer_of("nvidia-smi", f"--query-gpu={field}", "--format=csv,noheader,nounits")
    return answer.split("\n")[0].strip() or None if answer else None


def answer_of(*command: str) -> str | None:
    """What a program prints; None where there is none or it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
