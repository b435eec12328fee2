"""Stop when asked, at a boundary where nothing is lost."""

import signal


class StopRequest:
    """Set by SIGTERM, SIGUSR1 or Ctrl-C; looked at between batches, so that a sample is written
    whole or not at all."""

    SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)

    def __init__(self):
        self.requested = False
        self.count = 0  # how many signals came

    def __enter__(self) -> "StopRequest":
        self._before = {s: signal.signal(s, self._ask) for s in self.SIGNALS}
        return self

    def __exit__(self, *_) -> None:
        for s, handler in self._before.items():
            signal.signal(s, handler)

    def _ask(self, *_) -> None:
        self.requested = True
        self.count += 1


def ignore_signals() -> None:
    """From now on none of StopRequest's signals does anything: a scheduler may send more than
    one."""
    for s in StopRequest.SIGNALS:
        signal.signal(s, signal.SIG_IGN)
