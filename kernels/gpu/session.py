"""The steps of `python -m kernels.gpu`, each a process of its own, and the folder that keeps what
they wrote."""

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

from kernels.bench.record import SAME
from kernels.check.calls import MANY
from kernels.common.environment import replace_file, written

STATE, LOG = "measure.json", "log.txt"
LARGEST = 8 << 20  # bytes of text in a file; the others hold some hundred rows
LEAST = 0.03  # share of the minutes: with less left nothing is begun
GRACE = 40.0  # seconds before its limit, at most, in which the bench begins no row
STOPS = 2  # after so many stops by its limit a step that begins anew each time has failed
ROUNDS = 4  # in one call: a bench goes on after a row that took its process down
SECTIONS = ("SpeedOfLight", "WarpStateStats", "Occupancy", "MemoryWorkloadAnalysis")
ATTEND = "kernels.bench.attend"
KERNELS = "regex:causal|forward|tables|decode"
SIZES = {
    "cuda": ("mpt-7b", "32768,131072", "--masks", "16", "--repeats", "5"),
    "cpu": ("2x16", "64,128", "--masks", "4", "--repeats", "1"),
}


@dataclass(frozen=True)
class Step:
    """A module of this package and its arguments. `share`: of the minutes, at most. `file`: what it
    writes into the folder, in which `entry` lists what is left. `lasting`: it goes on where it was
    stopped, and is told its minutes. `profiled`: it runs under ncu, whose words are the file."""

    name: str
    share: float
    file: str
    module: str
    arguments: tuple[str, ...]
    entry: str | None = None
    lasting: bool = False
    profiled: bool = False

    def command(self, seconds: float) -> list[str] | None:
        """What is run within so many seconds; None where its program is not installed."""
        found = [sys.executable, "-m", self.module, *self.arguments]
        if self.lasting:
            found += ["--minutes", f"{(seconds - min(GRACE, seconds / 4)) / 60:.3f}"]
        if self.profiled:
            ncu = shutil.which("ncu") or shutil.which("ncu", path="/usr/local/cuda/bin")
            options = [x for section in SECTIONS for x in ("--section", section)]
            options += ["--clock-control", "none", "--target-processes", "all", "-k", KERNELS, "-c", "16"]
            return [ncu, *options, *found] if ncu else None
        return found

    def left(self, folder: Path) -> list | None:
        """What its file says is left, None if there is no such file."""
        if self.entry is None:
            return []
        try:
            return json.loads((folder / self.file).read_text())[self.entry]
        except (OSError, ValueError, KeyError):
            return None


def steps(device: str, commit: str | None) -> list[Step]:
    """What is done, in this order."""
    cuda, (heads, tokens, *sizes) = device == "cuda", SIZES[device]
    where = ("--device", device, *(("--commit", commit) if commit else ()))
    both = "mpt-7b,bloom-7b1" if cuda else heads  # alike: measured once, named for both
    quick = ("--part", MANY if cuda else "alibi", "bfloat16", "--json", "first.json")
    check = (*(() if cuda else ("--part", "window", "bfloat16")), "--json", "check.json")  # all takes minutes on a CPU
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
    """The folder of a measurement: what has become of each step, and the minutes of this call.
    Raises ValueError, in a sentence, for a folder of another machine or of other code."""

    def __init__(self, folder: Path, about: dict, minutes: float):
        self.folder, self.seconds, self.begin = folder, 60 * minutes, time.monotonic()
        self.content = {"environment": about, "steps": {}}
        folder.mkdir(parents=True, exist_ok=True)
        self.tidy()
        for file in folder.iterdir():
            file.chmod(file.stat().st_mode | 0o200)  # a folder that was brought from elsewhere may be read-only
        if (folder / STATE).exists():
            before = json.loads((folder / STATE).read_text())
            if differing := [x for x in SAME if before["environment"].get(x) != about[x]]:
                raise ValueError(f"{folder} was measured under another {', '.join(differing)}: name another folder.")
            self.content["steps"] = before["steps"]

    def of(self, step: Step) -> dict:
        blank = {"status": "left", "seconds": 0.0, "tries": 0, "stops": 0}
        known = self.content["steps"].setdefault(step.name, blank)
        if known["status"] == "left" and not step.lasting and known["stops"] >= STOPS:
            known["status"] = "failed"
        return known

    def remaining(self) -> float:
        return self.seconds - (time.monotonic() - self.begin)

    def tidy(self) -> None:
        """Remove halves of files that were being written when a step was stopped."""
        for file in self.folder.glob("*.new"):
            file.unlink()

    def save(self) -> None:
        replace_file(self.folder / STATE, written(self.content) + "\n")

    def open(self, step: Step) -> bool:
        """Whether the step has not finished and may still do so."""
        return self.of(step)["status"] in ("left", "absent")

    def take(self, step: Step) -> None:
        """Run the step within its share of the minutes."""
        known, limit = self.of(step), min(step.share * self.seconds, self.remaining())
        command = step.command(limit)
        if command is None:
            known["status"] = "absent"
            return self.save()
        known["tries"], known["stops"] = known["tries"] + 1, known["stops"] + 1  # until it has ended by itself
        self.save()
        self.say(f"== {step.name}: at most {limit:.0f} s of {self.remaining():.0f}\n")
        begin = time.monotonic()
        code = run(command, self.folder, limit, self.say if not step.profiled else self.told_to(step.file))
        known["seconds"] = round(known["seconds"] + time.monotonic() - begin, 1)
        known["code"] = code
        known["stops"] -= code is not None
        if code is not None:
            left = step.left(self.folder)
            # 2 is a wrong command; with anything else a bench goes on after the row that broke it
            again = step.lasting and code != 2 and (code != 0 or left != [])
            known["status"] = "left" if again else "failed" if code or left != [] else "finished"
        self.say(f"== {step.name}: {known['status']}" + (", stopped" if code is None else "") + "\n")
        return self.save()

    def say(self, text: str) -> None:
        print(text, end="", flush=True)
        self.told_to(LOG)(text)

    def told_to(self, name: str) -> Callable[[str], None]:
        """What adds text to a file until it is full."""
        file = self.folder / name

        def add(text: str) -> None:
            if not file.exists() or file.stat().st_size < LARGEST:
                with file.open("a") as opened:
                    opened.write(text[: LARGEST // 8])

        return add


def run(command: list[str], folder: Path, limit: float, say: Callable[[str], None]) -> int | None:
    """How the command ended; None if it was stopped after `limit` seconds, with all that it had
    started."""
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
