"""Several processes on one cell: `torchrun` and `accelerate launch` start the same command in each
and number them by RANK and WORLD_SIZE.

Rank 0 leads: it says what is computed, waits for the others and finishes. The others compute their
share of the samples into part files of their own and report. They talk through the store of keys
that the launcher serves, by polling it, so that nobody waits for one that has ended: who is alive
counts up in it.
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

JOIN = 300.0  # seconds for all ranks to come
BEAT = 1.0  # seconds between two signs of life
SILENCE = 60.0  # seconds without one, after which a rank is taken for dead
HASTE = 20.0  # seconds that a stopped run waits for the others
POLL = 0.05


def rank() -> int:
    """This process among those that work on the same cells; 0 if it is alone."""
    return _number("RANK") if ranks() > 1 else 0


def ranks() -> int:
    """How many processes work on the same cells."""
    return max(1, _number("WORLD_SIZE", 1))


def local_rank() -> int:
    """This process among those of its machine."""
    return _number("LOCAL_RANK", rank()) if ranks() > 1 else 0


def _number(name: str, default: int = 0) -> int:
    text = os.environ.get(name) or str(default)
    if not text.isdecimal():
        raise UserError(f"{name}={text} in the environment is no number: unset it, or start with torchrun.")
    return int(text)


class Team:
    """All ranks. Alone, every method says so at once. A job is one configuration, a turn one task
    of one of its cells: all ranks go through the same ones in the same order."""

    def __init__(self):
        self.rank, self.size = rank(), ranks()
        self._job = self._turn = 0
        self._store: Any = None  # torch's, which has no type of its own for one that a launcher serves
        self._decided = True
        self._seen: dict[int, tuple[bytes, float]] = {}  # of other ranks the last sign of life, and since when
        self._over = threading.Event()

    def __enter__(self) -> "Team":
        if self.size > 1:
            self._join()
        return self

    def __exit__(self, *_) -> None:
        """Rank 0 ends what it has to print before another leaves: a launcher ends all as soon as
        one fails."""
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
        return self.rank == 0

    def next_job(self) -> None:
        """Before a configuration is planned."""
        self._job, self._turn = self._job + 1, 0

    def next_turn(self) -> None:
        """Before a task of a cell is begun, or passed over."""
        self._turn += 1
        self._decided = False

    def end_job(self) -> None:
        """After a configuration, however it ended: nobody is to wait for this rank in it."""
        self._set(self._left(self.rank))

    def decide(self, status: str | None) -> None:
        """As rank 0: whether this turn is computed (None), or what became of it without that. What
        was said first holds."""
        if self.leads and not self._decided:
            self._decided = True
            self._set(self._here("go"), {"status": status})

    def decision(self, stopped: Callable[[], bool]) -> str | None:
        """What rank 0 has decided; "stopped" if it is gone, or if everything stops."""
        found = self._wait(0, self._here("go"), stopped, self._left(0))
        return found["status"] if found else "stopped"

    def report(self, **outcome: object) -> None:
        """As another rank: what became of this turn. status, rows (how many were written) and
        failure, if any."""
        self._set(f"{self._here('report')}/{self.rank}", outcome)

    def reports(self, stopped: Callable[[], bool]) -> list[dict]:
        """The reports of the others, once all have reported; "stopped" of one that is gone."""
        found = []
        for other in range(1, self.size):
            told = self._wait(other, f"{self._here('report')}/{other}", stopped, self._left(other))
            found.append({"rank": other, "failure": None, **(told or {"status": "stopped", "rows": 0})})
        return found

    def _here(self, what: str) -> str:
        return f"{what}/{self._job}/{self._turn}"

    def _left(self, other: int) -> str:
        return f"left/{self._job}/{other}"

    def _join(self) -> None:
        from torch.distributed import rendezvous

        try:
            self._store, _, _ = next(rendezvous("env://", timeout=timedelta(seconds=JOIN)))
        except (RuntimeError, ValueError) as error:
            raise UserError(
                f"WORLD_SIZE={self.size} in the environment, and the other processes cannot be found ({error}): start "
                "with torchrun or accelerate launch, or unset WORLD_SIZE and RANK."
            ) from None
        threading.Thread(target=self._live, daemon=True).start()

    def _live(self) -> None:
        beats = 0
        with contextlib.suppress(RuntimeError):  # the launcher has ended
            while not self._over.is_set():
                beats += 1
                self._store.set(f"beat/{self.rank}", str(beats))
                self._over.wait(BEAT)

    def _set(self, key: str, value: object = None) -> None:
        if self._store is not None:
            with contextlib.suppress(RuntimeError):  # the launcher has ended, and us next
                self._store.set(key, json.dumps(value))

    def _wait(self, other: int, key: str, hurried: Callable[[], bool], left: str = "") -> dict | None:
        """What a rank says under this key; None if it is gone, has said that it left, or takes too
        long where everything is hurried."""
        since = None
        self._seen.pop(other, None)
        try:
            while True:
                gone = (left and self._store.check([left])) or self._silent(other)
                if self._store.check([key]):
                    return json.loads(self._store.get(key)) or {}
                if gone:
                    return None
                if hurried():
                    since = since or time.monotonic()
                    if time.monotonic() - since > HASTE:
                        return None
                time.sleep(POLL)
        except RuntimeError:  # the launcher, which serves the store, has ended
            return None

    def _silent(self, other: int) -> bool:
        beat = self._store.get(f"beat/{other}") if self._store.check([f"beat/{other}"]) else b""
        now = time.monotonic()
        before, since = self._seen.get(other, (None, now))
        self._seen[other] = (beat, since if beat == before else now)
        return beat == before and now - since > (SILENCE if beat else JOIN)
