"""The steps of `python -m kernels.gpu`, each in a separate process, and the folder that keeps their
files."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from kernels.bench.record import COMPARED_FIELDS
from kernels.check.calls import COUNT_32_HEADS
from kernels.common.environment import replace_file, written

STATE, LOG = "measure.json", "log.txt"
MAX_TEXT_BYTES = 8 << 20  # of the log and of the profile; the other files hold a few hundred rows
MIN_SHARE = 0.03  # of the minutes: no step starts with less left
GRACE_SECONDS = 40.0  # at most: the bench starts no row so shortly before its limit
MAX_STOPS = 2  # a step that starts over each time has failed after so many stops by its limit
MAX_ROUNDS = 4  # per call: the bench resumes after a row that crashed its process
SECTIONS = ("SpeedOfLight", "WarpStateStats", "Occupancy", "MemoryWorkloadAnalysis")
ATTEND = "kernels.bench.attend"
KERNELS = "regex:causal|forward|tables|decode"
SIZES = {
    "cuda": ("mpt-7b", "32768,131072", "--masks", "16", "--repeats", "5"),
    "cpu": ("2x16", "64,128", "--masks", "4", "--repeats", "1"),
}


@dataclass(frozen=True)
class Step:
    """A module of this package and its arguments.

    share: largest part of the minutes that it takes. file: its result in the folder, in which
    `entry` lists the work that is left. lasting: it resumes where it was stopped, and takes its
    minutes as an argument. profiled: it runs under ncu, whose output is the file.
    """

    name: str
    share: float
    file: str
    module: str
    arguments: tuple[str, ...]
    entry: str | None = None
    lasting: bool = False
    profiled: bool = False

    def command(self, seconds: float) -> list[str] | None:
        """The command to run for at most so many seconds; None if its program is not installed."""
        command_line = [sys.executable, "-m", self.module, *self.arguments]
        if self.lasting:
            command_line += ["--minutes", f"{(seconds - min(GRACE_SECONDS, seconds / 4)) / 60:.3f}"]
        if self.profiled:
            ncu = shutil.which("ncu") or shutil.which("ncu", path="/usr/local/cuda/bin")
            options = [x for section in SECTIONS for x in ("--section", section)]
            options += ["--clock-control", "none", "--target-processes", "all", "-k", KERNELS, "-c", "16"]
            return [ncu, *options, *command_line] if ncu else None
        return command_line

    def left(self, folder: Path) -> list | None:
        """The work that its file lists as left, None if there is no such file."""
        if self.entry is None:
            return []
        try:
            return json.loads((folder / self.file).read_text())[self.entry]
        except (OSError, ValueError, KeyError):
            return None


def steps(device: str, commit: str | None) -> list[Step]:
    """The steps, in order."""
    cuda, (heads, tokens, *sizes) = device == "cuda", SIZES[device]
    where = ("--device", device, *(("--commit", commit) if commit else ()))
    both = "mpt-7b,bloom-7b1" if cuda else heads  # the same heads: measured once under both names
    quick = ("--part", COUNT_32_HEADS if cuda else "alibi", "bfloat16", "--json", "first.json")
    check = (
        *(() if cuda else ("--part", "window", "bfloat16")),
        "--json",
        "check.json",
    )  # the whole check takes minutes on a CPU
    bench = (*where, "--heads", both, "--tokens", tokens, *sizes, "--json", "bench.json", "--calls")
    attend = (*where, "--heads", heads, *sizes[:2], "--tokens")
    few = () if cuda else ("--repeats", "1")

    def measured(name: str, share: float, calls: str) -> Step:
        """A part of the bench, which goes on where it was stopped."""
        arguments = (*bench, calls)
        return Step(name, share, "bench.json", "kernels.bench", arguments, entry="not_reached", lasting=True)

    every = [
        Step("first", 0.12, "first.json", "kernels.check", (*where, *quick), "left"),
        Step("check", 0.33, "check.json", "kernels.check", (*where, *check), "left"),
        measured("forward", 0.45, "forward"),
        Step("attend", 0.15, "attend.json", ATTEND, (*attend, tokens, *few, "--json", "attend.json")),
        Step("profile", 0.12, "profile.txt", ATTEND, (*attend, tokens.split(",")[-1], "--once"), profiled=True),
        measured("decode", 0.25, "decode-1"),
        measured("backward", 1.0, "backward"),
    ]
    return [step for step in every if cuda or step.name not in ("profile", "backward")]


class Measurement:
    """The folder of a measurement: the state of each step, and the minutes of this call. Raises
    ValueError for a folder of another machine or of other code."""

    def __init__(self, folder: Path, about: dict, minutes: float):
        self.folder, self.seconds, self.begin = folder, 60 * minutes, time.monotonic()
        self.content = {"environment": about, "steps": {}}
        folder.mkdir(parents=True, exist_ok=True)
        self.tidy()
        for file in folder.iterdir():
            file.chmod(file.stat().st_mode | 0o200)  # a folder copied from another machine may be read-only
        if (folder / STATE).exists():
            before = json.loads((folder / STATE).read_text())
            if differing := [x for x in COMPARED_FIELDS if before["environment"].get(x) != about[x]]:
                raise ValueError(f"{folder} was measured under another {', '.join(differing)}: name another folder.")
            self.content["steps"] = before["steps"]

    def of(self, step: Step) -> dict:
        """The state of a step: status, seconds, tries and stops."""
        blank = {"status": "left", "seconds": 0.0, "tries": 0, "stops": 0}
        known = self.content["steps"].setdefault(step.name, blank)
        if known["status"] == "left" and not step.lasting and known["stops"] >= MAX_STOPS:
            known["status"] = "failed"
        return known

    def remaining(self) -> float:
        """Seconds left."""
        return self.seconds - (time.monotonic() - self.begin)

    def tidy(self) -> None:
        """Removes the unfinished files of a step that was stopped while writing."""
        for file in self.folder.glob("*.new"):
            file.unlink()

    def save(self) -> None:
        """Writes the state of all steps."""
        replace_file(self.folder / STATE, written(self.content) + "\n")

    def open(self, step: Step) -> bool:
        """Whether the step has not finished and may be tried."""
        return self.of(step)["status"] in ("left", "absent")

    def take(self, step: Step) -> None:
        """Runs the step within its share of the minutes."""
        known, limit = self.of(step), min(step.share * self.seconds, self.remaining())
        command = step.command(limit)
        if command is None:
            known["status"] = "absent"
            return self.save()
        known["tries"], known["stops"] = known["tries"] + 1, known["stops"] + 1  # taken back if it ends by itself
        self.save()
        self.say(f"== {step.name}: at most {limit:.0f} s of {self.remaining():.0f}\n")
        begin = time.monotonic()
        code = run(command, self.folder, limit, self.say if not step.profiled else self.appender(step.file))
        known["seconds"] = round(known["seconds"] + time.monotonic() - begin, 1)
        known["code"] = code
        known["stops"] -= code is not None
        if code is not None:
            left = step.left(self.folder)
            # 2 is a wrong command line; after any other failure a bench resumes behind the row that
            # failed
            again = step.lasting and code != 2 and (code != 0 or left != [])
            known["status"] = "left" if again else "failed" if code or left != [] else "finished"
        self.say(f"== {step.name}: {known['status']}" + (", stopped" if code is None else "") + "\n")
        return self.save()

    def say(self, text: str) -> None:
        """Prints text, and appends it to the log."""
        print(text, end="", flush=True)
        self.appender(LOG)(text)

    def appender(self, name: str) -> Callable[[str], None]:
        """A function that appends text to a file until the file is full."""
        file = self.folder / name

        def add(text: str) -> None:
            if not file.exists() or file.stat().st_size < MAX_TEXT_BYTES:
                with file.open("a") as opened:
                    opened.write(text[: MAX_TEXT_BYTES // 8])

        return add


def run(command: list[str], folder: Path, limit: float, say: Callable[[str], None]) -> int | None:
    """Runs a command, and stops it with all its processes after a time limit.

    Args:
        command: program and arguments.
        folder: working directory.
        limit: in seconds.
        say: gets each line of output.

    Returns:
        The exit code; None if the command was stopped.
    """
    root = str(Path(__file__).parents[2])
    variables = os.environ | {"PYTHONUNBUFFERED": "1"}
    variables["PYTHONPATH"] = os.pathsep.join(filter(None, [root, variables.get("PYTHONPATH")]))
    process = subprocess.Popen(
        command, cwd=folder, env=variables, text=True, errors="replace", start_new_session=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip

    def listen() -> None:
        for line in process.stdout or ():
            say(line)

    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    try:
        return process.wait(limit)
    except subprocess.TimeoutExpired:
        return None
    finally:
        for sign in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, sign)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(5)
        listener.join(5)
