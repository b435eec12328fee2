"""Run rows in processes, several at a time, each with a log.

A failure does not stop other rows; signals are passed on to all processes.
"""

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

POLL_INTERVAL = 0.1  # seconds


def run_arguments(row: Row, results: str) -> list[str]:
    """Return the arguments of harness.run for a row."""
    return [*row.overrides, override_word("results", results)]


def run_rows(
    rows: Sequence[Row],
    *,
    results: str,
    name: str,
    jobs: int,
    stop: StopRequest,
    report: Callable[[Row, int | None], None],
) -> dict[int, tuple[int, str | None]]:
    """Run each row once.

    Args:
        rows: the rows.
        results: the results folder.
        name: name of the sweep, for its logs.
        jobs: number of processes at the same time.
        stop: the user's request to stop.
        report: called with a row and None at its start, and with its exit code at its end.

    Returns:
        exit code, and message of a failure, by the number of each started row.
    """
    started = 0
    running: dict[int, tuple[Row, Path, subprocess.Popen]] = {}
    exits: dict[int, tuple[int, str | None]] = {}
    signals_sent = 0
    try:
        while running or (started < len(rows) and not stop.requested):
            while started < len(rows) and len(running) < jobs and not stop.requested:
                row = rows[started]
                started += 1
                report(row, None)
                log = Path(os.path.expanduser(results)) / "logs" / name / f"{row.number:04d}-{row.cell_id}.log"
                try:
                    running[row.number] = (row, log, _start(run_arguments(row, results), log, jobs))
                except OSError as error:
                    exits[row.number] = (EXIT_FAILED, f"could not be started: {error}")
                    report(row, EXIT_FAILED)
            if stop.count > signals_sent:
                signals_sent = stop.count
                for _, _, process in running.values():
                    process.send_signal(signal.SIGTERM)
            time.sleep(POLL_INTERVAL)
            for number, (row, log, process) in list(running.items()):
                code = process.poll()
                if code is not None:
                    del running[number]
                    if signals_sent and code == -signal.SIGTERM:
                        code = EXIT_RETRY  # it ended before it could handle the signal
                    exits[number] = (code, None if code in (0, EXIT_RETRY) else _failure_message(log, code))
                    report(row, code)
    finally:  # leave no process behind, whatever happens here
        for _, _, process in running.values():
            process.send_signal(signal.SIGTERM)
    return exits


def _start(arguments: Sequence[str], log: Path, jobs: int) -> subprocess.Popen:
    log.parent.mkdir(parents=True, exist_ok=True)
    env = dict(os.environ)
    if jobs > 1:  # share the cores among the processes
        env.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // jobs)))
    with log.open("ab") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "harness.run", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=env,
            start_new_session=True,  # Ctrl-C reaches this process only, which passes it on once
        )


def _failure_message(log: Path, code: int) -> str:
    """Return the message of a run's JSON line, or else its exit code with the path of the log."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 65536))
            lines = file.read().decode(errors="replace").strip().splitlines()
        message = json.loads(lines[-1]).get("message")
    except (OSError, IndexError, ValueError, AttributeError):
        message = None
    if message:
        return message
    description = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    return f"{description}, see {log}"
