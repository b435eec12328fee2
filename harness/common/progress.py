"""Progress on stderr: a bar on a terminal, otherwise an occasional line for logs."""

import sys
import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from harness.common.streams import printable


class Progress:
    """The progress of a run, task after task."""

    PERIOD = 15.0  # seconds between plain lines

    def __init__(self, *, quiet: bool = False):
        """quiet: print nothing, because another process reports."""
        self._quiet = quiet
        self._console = Console(file=sys.stderr)
        self._bar: Bar | None = None
        self.written = 0  # rows of all tasks so far

    def start(self, title: str, total: int, done: int, *, rows_are: str = "samples") -> None:
        """Begin a task.

        Args:
            title: the task in messages.
            total: rows of the task.
            done: rows that exist already.
            rows_are: what a row is, "samples" or "repeats".
        """
        self._title, self._total, self._done, self._rows_are = title, total, done, rows_are
        self._start = self._last = time.monotonic()
        self.fresh = 0  # rows of this task written by this process
        if self._console.is_terminal and not self._quiet:
            columns = (
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
            )
            self._bar = Bar(*columns, console=self._console, transient=True)
            self._bar.start()
            self._row = self._bar.add_task(printable(title), total=total, completed=done)

    def advance(self, count: int) -> None:
        """Count written rows."""
        self._done += count
        self.fresh += count
        self.written += count
        if self._bar:
            self._bar.advance(self._row, count)
        elif time.monotonic() - self._last >= self.PERIOD or self._done >= self._total:
            self._last = time.monotonic()
            seconds = (self._last - self._start) / self.fresh
            self.say(f"{self._title}: {self._done}/{self._total} {self._rows_are}, {seconds:.2f} s each")

    def stop(self) -> None:
        """End the task's bar."""
        if self._bar:
            self._bar.stop()
            self._bar = None

    def say(self, sentence: str) -> None:
        """Print a sentence unless quiet."""
        if not self._quiet:
            print(printable(sentence), file=sys.stderr, flush=True)
