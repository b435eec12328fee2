"""Facts about this machine and this checkout for the record of a measurement."""

import functools
import hashlib
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
def no_commit() -> str | None:
    """Why git does not tell the commit of this code; None if it does."""
    if git("rev-parse", "HEAD"):
        return None
    if not (ROOT / ".git").exists():
        return "this is no clone"
    try:
        asked = ("git", "-C", str(ROOT), "rev-parse", "HEAD")
        done = subprocess.run(asked, capture_output=True, text=True, timeout=TIMEOUT_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"git does not run ({error})"
    return " ".join(done.stderr.split())[:300] or "git says nothing"


@functools.cache
def source_hash() -> str:
    """16 hexadecimal digits over names and contents of this code: the .py and .yaml files of kernels,
    harness and conf."""
    total = hashlib.sha256()
    folders = (ROOT / name for name in ("conf", "harness", "kernels"))
    for file in sorted(f for folder in folders for f in folder.rglob("*") if f.suffix in (".py", ".yaml")):
        name = file.relative_to(ROOT).as_posix()
        total.update(f"{name} {hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode())
    return total.hexdigest()[:16]


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
