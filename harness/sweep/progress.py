"""What a running sweep shows on stderr: a table that refreshes on a terminal, a line for each end
in a log."""

import sys
import time
from collections import Counter

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from harness.common.errors import EXIT_OK, EXIT_RETRY
from harness.sweep.rows import Row

ENDS = {EXIT_OK: "done", EXIT_RETRY: "stopped"}  # any other exit code is a failure


class Progress:
    """Call it with each row that starts (code None) or ends; in a `with` block."""

    def __init__(self, total: int):
        self.total = total
        self._ended: Counter[str] = Counter()
        self._running: dict[int, tuple[Row, float]] = {}
        console = Console(file=sys.stderr)
        self._live = Live(get_renderable=self._table, console=console, transient=True) if console.is_terminal else None

    def __enter__(self) -> "Progress":
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_) -> None:
        if self._live:
            self._live.stop()

    def __call__(self, row: Row, code: int | None) -> None:
        if code is None:
            self._running[row.number] = (row, time.monotonic())
            return
        _, began = self._running.pop(row.number)
        end = ENDS.get(code, "failed")
        self._ended[end] += 1
        if not self._live:
            told = f"[{self._ended.total()}/{self.total}] row {row.number}: {end}, {time.monotonic() - began:.0f} s"
            print(f"{told}: {' '.join(row.overrides)}", file=sys.stderr, flush=True)

    def _table(self) -> Table:
        told = ", ".join(f"{count} {end}" for end, count in self._ended.items()) or "none ended"
        drawn = Table("row", "seconds", "overrides", title=f"{told} of {self.total}", title_justify="left")
        for row, began in self._running.values():
            drawn.add_row(str(row.number), f"{time.monotonic() - began:.0f}", Text(" ".join(row.overrides)))
        return drawn
