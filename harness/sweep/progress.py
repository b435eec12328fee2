"""Progress of a sweep on stderr: a live table on a terminal, else a line for each finished row."""

import sys
import time
from collections import Counter

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from harness.common.errors import EXIT_OK, EXIT_RETRY
from harness.common.streams import printable
from harness.sweep.rows import Row

OUTCOMES = {EXIT_OK: "done", EXIT_RETRY: "stopped"}  # any other exit code is a failure


class Progress:
    """Call it with each row that starts (code None) or ends, in a `with` block."""

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
        _, start = self._running.pop(row.number)
        outcome = OUTCOMES.get(code, "failed")
        self._ended[outcome] += 1
        if not self._live:
            seconds = time.monotonic() - start
            status = f"[{self._ended.total()}/{self.total}] row {row.number}: {outcome}, {seconds:.0f} s"
            print(printable(f"{status}: {' '.join(row.overrides)}"), file=sys.stderr, flush=True)

    def _table(self) -> Table:
        counts = ", ".join(f"{count} {end}" for end, count in self._ended.items()) or "none ended"
        table = Table("row", "seconds", "overrides", title=f"{counts} of {self.total}", title_justify="left")
        for row, start in self._running.values():
            table.add_row(str(row.number), f"{time.monotonic() - start:.0f}", Text(printable(" ".join(row.overrides))))
        return table
