"""Run rows as processes of their own, several at a time, each with its log; a failure stops
nothing, a signal is passed on to all."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from harness.common.errors import EXIT_FAILED, EXIT_RETRY
from harness.common.signals import StopRequest
from harness.experiment.overrides import override_word
from harness.sweep.rows import Row

POLL = 0.1  # seconds between looks at the processes


def command(row: Row, results: str) -> list[str]:
    """The arguments of harness.run for this row."""
    return [*row.overrides, override_word("results", results)]


def run_rows(
    rows: Sequence[Row],
    *,
    results: str,
    name: str,
    jobs: int,
    stop: StopRequest,
    tell: Callable[[Row, int | None], None],
) -> dict[int, tuple[int, str | None]]:
    """Run each row once. tell: called with a row and None when it starts, with its exit code when
    it ends.

    Returns for each row that was started its exit code, and what its last line said where that was
    a complaint.
    """
    begun = 0
    running: dict[int, tuple[Row, Path, subprocess.Popen]] = {}
    ended: dict[int, tuple[int, str | None]] = {}
    passed = 0
    try:
        while running or (begun < len(rows) and not stop.requested):
            while begun < len(rows) and len(running) < jobs and not stop.requested:
                row = rows[begun]
                begun += 1
                tell(row, None)
                log = Path(results).expanduser() / "logs" / name / f"{row.number:04d}-{row.cell_id}.log"
                try:
                    running[row.number] = (row, log, _start(command(row, results), log, jobs))
                except OSError as error:
                    ended[row.number] = (EXIT_FAILED, f"could not be started: {error}")
                    tell(row, EXIT_FAILED)
            if stop.count > passed:
                passed = stop.count
                for _, _, process in running.values():
                    process.send_signal(signal.SIGTERM)
            time.sleep(POLL)
            for number, (row, log, process) in list(running.items()):
                code = process.poll()
                if code is not None:
                    del running[number]
                    code = EXIT_RETRY if passed and code == -signal.SIGTERM else code  # before it could listen
                    ended[number] = (code, None if code in (0, EXIT_RETRY) else _complaint(log, code))
                    tell(row, code)
    finally:  # whatever happened to this process, none of them is left behind
        for _, _, process in running.values():
            process.send_signal(signal.SIGTERM)
    return ended


def _start(arguments: Sequence[str], log: Path, jobs: int) -> subprocess.Popen:
    log.parent.mkdir(parents=True, exist_ok=True)
    env = dict(os.environ)
    if jobs > 1:  # together the processes use each core once
        env.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // jobs)))
    with log.open("ab") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "harness.run", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=env,
            start_new_session=True,  # Ctrl-C reaches us alone, and we pass it on once
        )


def _complaint(log: Path, code: int) -> str:
    """Why a run ended, from its JSON line, else its exit code; and where to read more."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 65536))
            lines = file.read().decode(errors="replace").strip().splitlines()
        said = json.loads(lines[-1]).get("message")
    except (OSError, IndexError, ValueError, AttributeError):
        said = None
    if said:
        return said
    ended = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    return f"{ended}, see {log}"
