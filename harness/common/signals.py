"""Stop on a signal where nothing is lost."""

import contextlib
import signal
from collections.abc import Iterator


class Stopped(KeyboardInterrupt):
    """Raised by a signal during work that may be abandoned at any point."""


class StopRequest:
    """A request to stop by SIGTERM, SIGUSR1 or Ctrl-C.

    It is checked between batches, so that a sample is written completely or not at all. A second
    Ctrl-C raises KeyboardInterrupt at once.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)

    def __init__(self):
        self.requested = False
        self.count = 0  # signals received
        self._keyboard_count = 0  # of these by Ctrl-C
        self._interruptible = 0  # active blocks of `interrupts`

    def __enter__(self) -> "StopRequest":
        self._previous = {s: signal.signal(s, self._handle) for s in self.SIGNALS}
        return self

    def __exit__(self, *_) -> None:
        for s, handler in self._previous.items():
            signal.signal(s, handler)

    @contextlib.contextmanager
    def interrupts(self) -> Iterator[None]:
        """Let signals interrupt the `with` block, for long work that leaves nothing half done.

        Raises:
            Stopped: on a signal, and at the start of the block if there was one before.
        """
        self._interruptible += 1
        try:
            if self.requested:
                raise Stopped
            yield
        finally:
            self._interruptible -= 1

    def _handle(self, number: int | None = None, _: object = None) -> None:
        self.requested = True
        self.count += 1
        self._keyboard_count += number == signal.SIGINT
        if self._keyboard_count > 1:
            raise KeyboardInterrupt
        if self._interruptible:
            raise Stopped


def ignore_signals() -> None:
    """Ignore StopRequest's signals from now on, because a scheduler may send more than one."""
    for s in StopRequest.SIGNALS:
        signal.signal(s, signal.SIG_IGN)
