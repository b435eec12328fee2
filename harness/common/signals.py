"""Stop on a signal, between two batches."""

import signal


class StopRequest:
    """A request to stop by SIGTERM, SIGUSR1 or Ctrl-C.

    It is checked between batches, so that a sample is written completely or not at all.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)

    def __init__(self):
        self.requested = False
        self.count = 0  # signals received

    def __enter__(self) -> "StopRequest":
        self._previous = {s: signal.signal(s, self._handle) for s in self.SIGNALS}
        return self

    def __exit__(self, *_) -> None:
        for s, handler in self._previous.items():
            signal.signal(s, handler)

    def _handle(self, *_) -> None:
        self.requested = True
        self.count += 1


def ignore_signals() -> None:
    """Ignore StopRequest's signals from now on, because a scheduler may send more than one."""
    for s in StopRequest.SIGNALS:
        signal.signal(s, signal.SIG_IGN)
