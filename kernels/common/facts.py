"""Facts about this machine and this checkout for the record of a measurement."""

import functools
import platform
import subprocess
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT_SECONDS = 20  # of a program that normally answers at once


@functools.cache
def git(*arguments: str) -> str | None:
    """Output of a git command on this checkout; None if this is no checkout, as in an installed
    package, which may lie within somebody else's repository."""
    return answer_of("git", "-C", str(ROOT), *arguments) if (ROOT / ".git").exists() else None


@functools.cache
def version(package: str) -> str | None:
    """The installed version of a package."""
    try:
        return installed(package)
    except PackageNotFoundError:
        return None


def cpu_name() -> str:
    """The processor's name; empty if neither Linux nor Python knows it."""
    try:
        with open("/proc/cpuinfo") as lines:
            name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
    except OSError:
        name = ""
    return name or platform.processor()


@functools.cache
def of_gpu(field: str) -> str | None:
    """A field of nvidia-smi for the first GPU, such as `driver_version`; None if it fails."""
    answer = answer_of("nvidia-smi", f"--query-gpu={field}", "--format=csv,noheader,nounits")
    return answer.split("\n")[0].strip() or None if answer else None


def answer_of(*command: str) -> str | None:
    """Output of a program; None if it is not installed or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
