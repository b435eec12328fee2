"""`python -m harness.bench_overhead`: the harness's own time as a share of a ten-minute cell.

Runs the command line on the embedded model with few samples and with many, each in a process of its own that counts
CPU seconds: those within the model (generation and likelihoods), and all others, which are the harness's: the start
with all imports, prompts, hashing, the store, progress, reading back, the table. Waiting for the disk uses no CPU and
is added. CPU seconds, because another program on the same cores lengthens everything else. Two sizes give what is paid
once and what is paid for each row; ten minutes hold as many rows as fit. The embedded model answers fast, so that more
rows fit than with any larger one: the share is the worst case.
"""

import argparse
import contextlib
import io
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from harness import environment
from harness.config import ROOT
from harness.store import Part, write_atomic
from harness.table import Table

CELL = 600.0  # seconds
LIMIT = 0.03
FILE = ROOT / "docs" / "results" / "overhead.json"


def run(rows: int) -> dict:
    """Seconds of one run of so many rows, in a process of its own: the harness's and the model's."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "harness.bench_overhead", "--measure", str(rows), folder]
        done = subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    return json.loads(done.stdout)


def measured_run(rows: int, folder: str) -> dict:
    """Run the command line in this process and count. To be called once, in a fresh process."""
    from harness.run import main as command
    from harness.tasks import retrieval

    model, disk = [], []
    retrieval.answer = _counting(retrieval.answer, time.process_time, model)
    Part._sync = _counting(Part._sync, time.perf_counter, disk)
    sys.argv = ["harness.run", f"samples={rows}", f"results={folder}", "references=none", "device=cpu"]
    with contextlib.redirect_stdout(io.StringIO()):
        code = command()
    assert code == 0 and model and disk
    own = time.process_time() - sum(model) + sum(disk)
    return {"rows": rows, "own_seconds": own, "disk_seconds": sum(disk), "model_seconds": sum(model)}


def _counting(function: Callable, clock: Callable[[], float], spent: list[float]) -> Callable:
    def counted(*arguments, **options):
        begin = clock()
        try:
            return function(*arguments, **options)
        finally:
            spent.append(clock() - begin)

    return counted


def overhead(runs: Sequence[Mapping]) -> dict:
    """What is paid once and for each row, in seconds, and the share of a cell of `CELL` seconds, from runs of two
    sizes: medians of each."""
    few, many = sorted({r["rows"] for r in runs})
    own = {size: statistics.median(r["own_seconds"] for r in runs if r["rows"] == size) for size in (few, many)}
    each = max(0.0, (own[many] - own[few]) / (many - few))
    once = own[few] - each * few
    model = statistics.median(r["model_seconds"] / many for r in runs if r["rows"] == many)
    rows = int((CELL - once) / (model + each))
    spent = once + rows * each
    found = {"once_seconds": once, "row_seconds": each, "model_row_seconds": model, "rows": rows}
    return {**found, "share": spent / (spent + rows * model)}


def markdown(record: Mapping) -> str:
    """The record as a table in Markdown."""
    found = record["overhead"]
    values = [
        ["once: start, imports, model, report", f"{found['once_seconds']:.1f} s"],
        ["for each row", f"{1e3 * found['row_seconds']:.2f} ms"],
        ["of the model, for each row", f"{1e3 * found['model_row_seconds']:.0f} ms"],
        ["rows in ten minutes", f"{found['rows']:,}"],
        ["share of ten minutes", f"{100 * found['share']:.1f} %"],
    ]
    return Table("", ["the harness's own time", "measured"], values, []).markdown().rstrip()


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, write the record; 1 if the share is above the limit."""
    parser = argparse.ArgumentParser(prog="python -m harness.bench_overhead", description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, nargs=2, default=[40, 400], metavar=("FEW", "MANY"))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=FILE)
    parser.add_argument("--measure", nargs=2, metavar=("ROWS", "RESULTS"), help="one run in this process, as JSON")
    given = parser.parse_args(arguments)
    if given.measure:
        print(json.dumps(measured_run(int(given.measure[0]), given.measure[1])))
        return 0
    if not 8 <= given.rows[0] < given.rows[1] or given.repeats < 1:
        parser.error("--rows takes two numbers from 8 on (one for each draw), the smaller first; --repeats at least 1.")
    runs = [run(rows) for _ in range(given.repeats) for rows in given.rows]
    about = environment.describe(torch.device("cpu")) | {"command": "python -m harness.bench_overhead"}
    record = {"environment": about, "runs": runs, "overhead": overhead(runs)}
    write_atomic(given.out, record)
    print(markdown(record))
    return int(record["overhead"]["share"] > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
