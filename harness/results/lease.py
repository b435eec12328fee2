"""An optional lease on a task: who is computing it, so that a second run waits for the rows instead
of computing them, too. It saves work and nothing else: whatever becomes of the file, every row
counts once.

The holder touches the file; a lease that was not touched for so long is taken over. Nobody compares
clocks: who waits measures on its own how long the file stays as it is.
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
POLL = 0.2  # seconds between two looks at another's lease


class Lease:
    """Of one attempt on the task in `folder`. seconds: of silence, after which a holder is taken
    for dead; 0: none."""

    def __init__(self, folder: Path, attempt: str, seconds: float):
        self._path, self._attempt, self._seconds = folder / FILE, attempt, seconds
        self._own = {"attempt": attempt, "host": socket.gethostname(), "pid": os.getpid()}
        self._released = threading.Event()

    def take(self, give_up: Callable[[], bool]) -> None:
        """Wait until the lease is ours, or `give_up` holds. Where it cannot be written there is
        none to wait for."""
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
                    time.sleep(POLL)  # of several that take it over the last has it
                    if self._ours():
                        break
                time.sleep(POLL)
        threading.Thread(target=self._keep, daemon=True).start()

    def release(self) -> None:
        self._released.set()
        if self._seconds and self._ours():
            self._path.unlink(missing_ok=True)

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
        """Whether the holder was a process of this machine that is no more."""
        holder = read_json(self._path, quiet=True) or {}
        return holder.get("host") == self._own["host"] and not os.path.exists(f"/proc/{holder.get('pid')}")
