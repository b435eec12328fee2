"""Several processes on one cell, started by `torchrun` or `accelerate launch`.

The launcher runs the same command in each process and numbers them by RANK and WORLD_SIZE. Rank 0
leads: it decides what is computed, waits for the other ranks and finishes the task. The other ranks
compute their shares of the samples into part files of their own and report.

Ranks communicate by polling the launcher's key-value store. Each increments a heartbeat there, so
that no rank waits for one that has ended.
"""

import contextlib
import json
import os
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from harness.common.errors import UserError

JOIN_TIMEOUT = 300.0  # seconds until all ranks must have started
HEARTBEAT_PERIOD = 1.0  # seconds
HEARTBEAT_TIMEOUT = 60.0  # seconds without a heartbeat after which a rank is considered dead
STOP_TIMEOUT = 20.0  # seconds that a stopped run waits for other ranks
POLL_PERIOD = 0.05  # seconds


def rank() -> int:
    """Return the number of this process among those on the same cells; 0 if it is alone."""
    return _environment_number("RANK") if ranks() > 1 else 0


def ranks() -> int:
    """Return the number of processes that work on the same cells."""
    return max(1, _environment_number("WORLD_SIZE", 1))


def local_rank() -> int:
    """Return the number of this process among those of its machine."""
    return _environment_number("LOCAL_RANK", rank()) if ranks() > 1 else 0


def _environment_number(name: str, default: int = 0) -> int:
    text = os.environ.get(name) or str(default)
    if not text.isdecimal():
        raise UserError(f"{name}={text} in the environment is no number: unset it, or start with torchrun.")
    return int(text)


class Team:
    """All ranks, or this process alone, for which every method returns at once.

    A job is a configuration, and a turn is a task of one of its cells. All ranks go through the
    same jobs and turns in the same order.
    """

    def __init__(self):
        self.rank, self.size = rank(), ranks()
        self._job = self._turn = 0
        self._store: Any = None  # torch's, which has no type of its own for one that a launcher serves
        self._decided = True
        # rank -> last heartbeat, time of its first sight
        self._heartbeats: dict[int, tuple[bytes, float]] = {}
        self._over = threading.Event()

    def __enter__(self) -> "Team":
        if self.size > 1:
            self._join()
        return self

    def __exit__(self, *_) -> None:
        """Let rank 0 finish printing before other ranks end.

        A launcher ends all processes as soon as one of them fails.
        """
        if self.leads:
            self._set("end")
            for other in range(1, self.size):
                self._wait(other, f"bye/{other}", lambda: True)
        else:
            self._wait(0, "end", lambda: False)
            self._set(f"bye/{self.rank}")
        self._over.set()

    @property
    def leads(self) -> bool:
        """Whether this is rank 0, which records, reports and prints."""
        return self.rank == 0

    def next_job(self) -> None:
        """Begin a configuration, before it is planned."""
        self._job, self._turn = self._job + 1, 0

    def next_turn(self) -> None:
        """Begin a task of a cell, before it is computed or skipped."""
        self._turn += 1
        self._decided = False

    def end_job(self) -> None:
        """End a configuration, however it went: other ranks stop waiting for this one."""
        self._set(self._left_key(self.rank))

    def decide(self, status: str | None) -> None:
        """Publish rank 0's decision about this turn; only the first decision of a turn counts.

        status: None to compute the task, otherwise its status without computation.
        """
        if self.leads and not self._decided:
            self._decided = True
            self._set(self._turn_key("go"), {"status": status})

    def decision(self, stopped: Callable[[], bool]) -> str | None:
        """Wait for rank 0's decision and return its status; "stopped" if rank 0 has ended.

        stopped: whether a stop was requested, after which the wait is short.
        """
        message = self._wait(0, self._turn_key("go"), stopped, self._left_key(0))
        return message["status"] if message else "stopped"

    def report(self, **outcome: object) -> None:
        """Publish the outcome of this turn as another rank than 0.

        outcome: `status`, `rows` (number of rows written) and `failure` (None if there is none).
        """
        self._set(f"{self._turn_key('report')}/{self.rank}", outcome)

    def reports(self, stopped: Callable[[], bool]) -> list[dict]:
        """Wait for the other ranks' reports and return them, with "stopped" for ranks that ended.

        stopped: whether a stop was requested, after which the wait is short.
        """
        reports = []
        for other in range(1, self.size):
            message = self._wait(other, f"{self._turn_key('report')}/{other}", stopped, self._left_key(other))
            reports.append({"rank": other, "failure": None, **(message or {"status": "stopped", "rows": 0})})
        return reports

    def _turn_key(self, name: str) -> str:
        return f"{name}/{self._job}/{self._turn}"

    def _left_key(self, other: int) -> str:
        return f"left/{self._job}/{other}"

    def _join(self) -> None:
        from torch.distributed import rendezvous

        try:
            self._store, _, _ = next(rendezvous("env://", timeout=timedelta(seconds=JOIN_TIMEOUT)))
        except (RuntimeError, ValueError) as error:
            raise UserError(
                f"WORLD_SIZE={self.size} in the environment, and the other processes cannot be found ({error}): start "
                "with torchrun or accelerate launch, or unset WORLD_SIZE and RANK."
            ) from None
        threading.Thread(target=self._beat, daemon=True).start()

    def _beat(self) -> None:
        beats = 0
        with contextlib.suppress(RuntimeError):  # the launcher has ended
            while not self._over.is_set():
                beats += 1
                self._store.set(f"beat/{self.rank}", str(beats))
                self._over.wait(HEARTBEAT_PERIOD)

    def _set(self, key: str, value: object = None) -> None:
        if self._store is not None:
            # the launcher has ended, and will end this process
            with contextlib.suppress(RuntimeError):
                self._store.set(key, json.dumps(value))

    def _wait(self, other: int, key: str, stopped: Callable[[], bool], left_key: str = "") -> dict | None:
        """The message of a rank under a key; None if the rank has ended or left the job.

        Once `stopped` returns true the wait ends after STOP_TIMEOUT, also with None.
        """
        stop_time = None
        self._heartbeats.pop(other, None)
        try:
            while True:
                ended = (left_key and self._store.check([left_key])) or self._is_silent(other)
                if self._store.check([key]):
                    return json.loads(self._store.get(key)) or {}
                if ended:
                    return None
                if stopped():
                    stop_time = stop_time or time.monotonic()
                    if time.monotonic() - stop_time > STOP_TIMEOUT:
                        return None
                time.sleep(POLL_PERIOD)
        except RuntimeError:  # the launcher, which serves the store, has ended
            return None

    def _is_silent(self, other: int) -> bool:
        beat = self._store.get(f"beat/{other}") if self._store.check([f"beat/{other}"]) else b""
        now = time.monotonic()
        previous, since = self._heartbeats.get(other, (None, now))
        self._heartbeats[other] = (beat, since if beat == previous else now)
        return beat == previous and now - since > (HEARTBEAT_TIMEOUT if beat else JOIN_TIMEOUT)
