"""The faults that can be put into a run on one machine."""

import os
import random
import signal
import time

from tests.faults.bench import Case, Kind, mount, remount
from tests.faults.commands import kill_of_a_command
from tests.faults.hooks import make_writable
from tests.zygote import Running

SIGNALS = ("SIGTERM", "SIGUSR1", "SIGINT")
YEARS = 10 * 365 * 86400.0


def started(case: Case, hook: dict | None = None) -> Running:
    """A run that has put its handlers of signals in place."""
    process = case.start(hook)
    while not process.listens():
        time.sleep(0.001)
    return process


def kill_at_a_moment(case: Case, rng: random.Random) -> list[int] | None:
    process = started(case)
    time.sleep(rng.uniform(0, case.run.seconds))
    process.kill()
    return [-9] if case.end(process) == -9 else None


def kill_at_a_line(case: Case, rng: random.Random) -> list[int] | None:
    process = case.start({"line": rng.randint(1, case.run.lines), "act": "SIGKILL"})
    return [-9] if case.end(process) == -9 else None


def signal_at_a_moment(case: Case, rng: random.Random) -> list[int] | None:
    process = started(case)
    time.sleep(rng.uniform(0, case.run.seconds))
    if process.poll() is not None:
        return None
    process.send_signal(getattr(signal, rng.choice(SIGNALS)))
    return [case.end(process)]


def signal_at_a_line(case: Case, rng: random.Random) -> list[int] | None:
    process = case.start({"line": rng.randint(1, case.run.lines), "act": rng.choice(SIGNALS)})
    return [case.end(process)]


def torn_lines(case: Case, rng: random.Random) -> list[int] | None:
    """A kill, and what a power cut leaves of the newest part: its end cut off, half a line, or
    zeros."""
    process = case.start({"line": rng.randint(case.run.lines // 3, case.run.lines), "act": "SIGKILL"})
    if case.end(process) != -9:
        return None
    parts = [p for p in case.results.glob("*/*/parts/*.jsonl") if p.stat().st_size]
    unfinished = [p for p in parts if not (p.parents[1] / "task.json").exists()]
    if not unfinished:
        return None
    part = max(unfinished, key=lambda p: p.stat().st_mtime_ns)
    size, last = part.stat().st_size, part.read_bytes().rstrip(b"\n").rsplit(b"\n", 1)[-1]
    how = rng.choice(["cut", "half", "zeros", "cut and zeros"])
    if "cut" in how:
        os.truncate(part, size - rng.randint(1, min(size, 2 * len(last))))
    with part.open("ab") as file:
        if how == "half":
            file.write(last[: rng.randint(1, len(last) - 1)])
        if "zeros" in how:
            file.write(b"\0" * rng.randint(1, 4096))
    return [-9]


def full_disk(case: Case, rng: random.Random) -> list[int] | None:
    if rng.random() < 0.7:
        mount(case, f"size={4096 * rng.randint(1, case.run.pages)}")
    else:
        mount(case, f"size=64m,nr_inodes={rng.randint(2, case.run.files)}")
    case.heal.append(lambda: remount(case, "size=64m,nr_inodes=100k"))
    code = case.end(case.start())
    left = os.statvfs(case.results)
    return [code] if code or not left.f_bavail or not left.f_favail else None


def read_only_folder(case: Case, rng: random.Random) -> list[int] | None:
    """The folder refuses from the start, or from some line of the writing on."""
    if os.geteuid() == 0 and rng.random() < 0.25:
        mount(case, "size=64m")
        remount(case, "ro")
        case.heal.append(lambda: remount(case, "rw"))
        return [case.end(case.start())]
    hook = {"line": rng.randint(1, case.run.lines), "act": "read-only", "folder": str(case.results)}
    code = case.end(case.start(hook))
    case.heal.append(lambda: make_writable(case.results))
    views = [cell.with_name("result.json").exists() for cell in case.results.glob("*/cell.json")]
    return [code] if code or not all(views) else None


def two_writers(case: Case, rng: random.Random) -> list[int] | None:
    """A second run of the cell beside the first, which may be halted meanwhile, as on a node that
    comes back."""
    first = started(case)
    time.sleep(rng.uniform(0, 0.7 * case.run.seconds))
    if halted := rng.random() < 0.5:
        first.send_signal(signal.SIGSTOP)
    second = started(case)
    if first.poll() is not None:  # too late: it is done
        second.kill()
        case.end(second)
        return None
    if halted:
        time.sleep(rng.uniform(0, 1.5 * case.run.seconds))
        first.send_signal(signal.SIGCONT)
    return [case.end(first), case.end(second)]


def clock_jump(case: Case, rng: random.Random) -> list[int] | None:
    """The wall clock is wrong and jumps during the run, which is killed; when it is run again the
    clock shows another time, earlier or later, and so do the files."""

    def wrong() -> float:
        return rng.choice([-1, 1]) * 10 ** rng.uniform(0, 8)

    clock = (wrong(), rng.randint(0, 6), wrong())
    line = rng.randint(case.run.lines // 4, case.run.lines)
    code = case.end(case.start({"clock": clock, "line": line, "act": rng.choice(["SIGKILL", "SIGTERM"])}))
    off = wrong()
    for path in case.results.rglob("*"):
        found = path.stat()
        os.utime(path, (max(0, found.st_atime + off), max(0, found.st_mtime + off)))
    case.hook = {"clock": (wrong(), rng.randint(0, 6), wrong())}
    return [code]


def asks_to_be_run_again(codes: list[int], complete: bool) -> bool:
    """75, or 0 if the signal came when all was done."""
    return codes == [75] or codes == [0] and complete


KINDS = (
    Kind("kill -9 at a random moment", 168, kill_at_a_moment, lambda codes, _: codes == [-9]),
    Kind("kill -9 at a line of the writing code", 200, kill_at_a_line, lambda codes, _: codes == [-9]),
    Kind("kill -9 of collect, report and sweep --status", 40, kill_of_a_command, lambda codes, _: codes == [-9]),
    Kind("SIGTERM, SIGUSR1 or SIGINT at a random moment", 110, signal_at_a_moment, asks_to_be_run_again),
    Kind("SIGTERM, SIGUSR1 or SIGINT at a line", 110, signal_at_a_line, asks_to_be_run_again),
    Kind("torn lines after a kill", 110, torn_lines, lambda codes, _: codes == [-9]),
    Kind("full disk", 80, full_disk, lambda codes, complete: codes in ([1], [2]) or codes == [0] and complete, True),
    Kind(
        "read-only folder",
        50,
        read_only_folder,
        lambda codes, complete: codes in ([1], [2]) or codes == [0] and complete,
    ),
    Kind("two writers of one cell", 50, two_writers, lambda codes, _: codes == [0, 0]),
    Kind(
        "clock jumps", 44, clock_jump, lambda codes, complete: codes[0] == -9 or asks_to_be_run_again(codes, complete)
    ),
)

DOCUMENTS = Kind(
    "kill -9 while an lm-eval task makes its documents",
    4,
    kill_at_a_line,
    lambda codes, _: codes == [-9],
    documents=True,
)
