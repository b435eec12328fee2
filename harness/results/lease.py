"""An optional lease on a task, so that a second run waits for rows instead of computing them too.

The lease is an optimisation: without it, or with a damaged file, every row still counts once. The
holder touches the file at intervals, and a run that sees no touch for `seconds` takes the lease
over. Clocks of different machines are never compared: the waiting run measures the silence itself.
"""

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

from harness.common.files import read_json, write_atomic

FILE = "lease.json"
POLL = 0.2  # seconds between two checks of another run's lease


class Lease:
    """The lease of one attempt on the task in `folder`.

    seconds: silence after which a holder counts as dead; 0 switches the lease off.
    """

    def __init__(self, folder: Path, attempt: str, seconds: float):
        self._path, self._attempt, self._seconds = folder / FILE, attempt, seconds
        self._own = {"attempt": attempt, "host": socket.gethostname(), "pid": os.getpid()}
        self._released = threading.Event()

    def take(self, give_up: Callable[[], bool]) -> None:
        """Wait until the lease is ours or `give_up()` is true. Return at once if the lease is
        switched off or cannot be written."""
        if not self._seconds:
            return
        seen, since = None, time.monotonic()
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            while True:
                if give_up():
                    return
                with contextlib.suppress(FileExistsError):
                    with self._path.open("x") as file:
                        json.dump(self._own, file)
                    break
                beat = self._beat()
                if beat != seen:
                    seen, since = beat, time.monotonic()
                if self._dead() or time.monotonic() - since > self._seconds:
                    write_atomic(self._path, self._own)
                    time.sleep(POLL)  # if several runs take it over, the last writer holds it
                    if self._ours():
                        break
                time.sleep(POLL)
        threading.Thread(target=self._keep, daemon=True).start()

    def release(self) -> None:
        """Give the lease up, if it is ours. A file that cannot be removed is silent from now on, and
        is taken over."""
        self._released.set()
        if self._seconds and self._ours():
            with contextlib.suppress(OSError):
                self._path.unlink()

    def _keep(self) -> None:
        while not self._released.wait(min(self._seconds / 5, threading.TIMEOUT_MAX)) and self._ours():
            with contextlib.suppress(OSError):
                os.utime(self._path)

    def _ours(self) -> bool:
        return (read_json(self._path, quiet=True) or {}).get("attempt") == self._attempt

    def _beat(self) -> int | None:
        with contextlib.suppress(FileNotFoundError):
            return os.stat(self._path).st_mtime_ns
        return None

    def _dead(self) -> bool:
        """Whether the holder was a process of this machine that has ended."""
        holder = read_json(self._path, quiet=True) or {}
        return holder.get("host") == self._own["host"] and not os.path.exists(f"/proc/{holder.get('pid')}")
