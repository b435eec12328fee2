"""Faults at an exact place of a run: after so many lines of the code that writes, and under a clock
that jumps."""

import ctypes
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.conftest import ROOT
from tests.faults.places import writing

CAP_DAC_OVERRIDE = 1  # by which root writes where it may not
CAPABILITIES = 0x20080522  # version 3 of the kernel's interface


def install(
    *,
    line: int | None = None,
    act: str | None = None,
    folder: str | None = None,
    count: str | None = None,
    clock: Sequence[float] | None = None,
) -> Callable[[], None]:
    """line: before this line of the writing code (tests.faults.places; lines are counted as they
    are reached, from 1, in whatever thread) `act` is done: the name of a signal to this process, or
    "read-only", by which nothing can be made in `folder` any more. count: a file for the number of
    lines and the places that were reached, as JSON. clock: (seconds that the clock is off, calls
    after which it jumps, seconds it is off then).

    Returns what is to be called when the program has ended.
    """
    if clock is not None:
        shift_clock(*clock)
    if line is not None or count is not None:
        tracer = _Tracer(line, lambda: _act(act, folder))
        threading.settrace(tracer.call)
        sys.settrace(tracer.call)

    def ended() -> None:
        sys.settrace(None)
        if count is not None:
            reached = sorted(f"{file}:{name}" for file, name in tracer.reached)
            Path(count).write_text(json.dumps({"lines": tracer.lines, "reached": reached}))

    return ended


class _Tracer:
    def __init__(self, line: int | None, act: Callable[[], None]):
        self.lines, self.reached, self._line, self._act = 0, set(), line, act
        self._places = {(str(ROOT / file), name): (file, name) for file, name in writing()}

    def call(self, frame, event: str, _):
        place = self._places.get((frame.f_code.co_filename, frame.f_code.co_qualname))
        if place is None:
            return None
        self.reached.add(place)
        return self._count

    def _count(self, frame, event: str, _):
        if event == "line":
            self.lines += 1
            if self.lines == self._line:
                self._act()
        return self._count


def _act(name: str, folder: str | None) -> None:
    if name == "read-only":
        lose_override()
        make_read_only(Path(folder))
    else:
        os.kill(os.getpid(), getattr(signal, name))


def make_read_only(folder: Path) -> None:
    for place in [folder, *(p for p in folder.rglob("*") if p.is_dir())]:
        place.chmod(0o555)


def make_writable(folder: Path) -> None:
    folder.chmod(0o755)
    for place in folder.rglob("*"):
        if place.is_dir():
            place.chmod(0o755)


def lose_override() -> None:
    """From now on permissions hold for this process even if it is root's."""
    if os.geteuid() == 0:
        libc = ctypes.CDLL(None, use_errno=True)
        header = (ctypes.c_uint32 * 2)(CAPABILITIES, 0)
        sets = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable: the low words, then the high ones
        if libc.capget(header, sets):
            raise OSError(ctypes.get_errno(), "capget")
        sets[0] &= ~(1 << CAP_DAC_OVERRIDE)
        if libc.capset(header, sets):
            raise OSError(ctypes.get_errno(), "capset")


def shift_clock(off: float, calls: int, then: float) -> None:
    """What this process's Python reads of the wall clock is wrong by `off` seconds, and after so
    many readings by `then`. The monotonic clock never jumps."""
    real, gmtime, localtime = time.time, time.gmtime, time.localtime
    read = 0

    def wrong() -> float:
        nonlocal read
        read += 1
        return real() + (off if read <= calls else then)

    time.time = wrong
    time.time_ns = lambda: int(wrong() * 1e9)
    time.gmtime = lambda seconds=None: gmtime(wrong() if seconds is None else seconds)
    time.localtime = lambda seconds=None: localtime(wrong() if seconds is None else seconds)
