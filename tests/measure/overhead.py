"""`python -m tests.measure.overhead`: the harness's own time as a share of a ten-minute cell.

Runs the command line on the embedded model with few samples and with many, each in a process of its
own that counts CPU seconds: those within the model (generation and likelihoods), and all others,
which are the harness's: the start with all imports, hashing, the store, progress, reading back, the
table, and the processes that mirror the cell into an offline W&B run. CPU seconds, because another
program on the same cores lengthens everything else; waiting for the disk uses none and is counted
as a share of the run's time. Two sizes give what is paid once and what is paid for each row; ten
minutes hold as many rows as fit. The embedded model answers fast, so that more rows fit than with
any larger one: the share is the worst case.

The prompts are on disk already, as they are for every cell but the first, or after `python -m
harness.data`; what it takes to make them is told by itself.
"""

import argparse
import contextlib
import io
import json
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from harness.common import environment
from harness.common.files import write_atomic
from harness.common.paths import ROOT
from harness.common.table import Table
from harness.results.store import Part

CELL = 600.0  # seconds
LIMIT = 0.03
FILE = ROOT / "docs" / "results" / "overhead.json"


def run(rows: int, folder: Path) -> dict:
    """Seconds of one run of so many rows into this results folder, in a process of its own. Records
    that an earlier run left there are removed, its prompts are kept."""
    for old in [*(cell.parent for cell in folder.glob("*/cell.json")), folder / "wandb"]:
        shutil.rmtree(old, ignore_errors=True)
    command = [sys.executable, "-m", "tests.measure.overhead", "--measure", str(rows), str(folder)]
    done = subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    return json.loads(done.stdout)


def measured_run(rows: int, folder: str) -> dict:
    """Run the command line in this process and count. To be called once, in a fresh process."""
    from harness.run import main as command
    from harness.tasks.retrieval import task as retrieval

    model, disk = [], []
    new = not (Path(folder) / "data").exists()
    retrieval.answer = _counting(retrieval.answer, time.process_time, model)
    Part._sync = _counting(Part._sync, time.perf_counter, disk)
    options = ["references=none", "device=cpu", "tracking=offline"]
    sys.argv = ["harness.run", f"samples={rows}", f"results={folder}", *options]
    begin = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        code = command()
    assert code == 0 and model and disk
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    mirrored = used.ru_utime + used.ru_stime
    spent = {"own_seconds": time.process_time() - sum(model) + mirrored, "model_seconds": sum(model)}
    spent["mirror_seconds"] = mirrored
    return {"rows": rows, "new_prompts": new, **spent, "disk_share": sum(disk) / (time.perf_counter() - begin)}


def _counting(function: Callable, clock: Callable[[], float], spent: list[float]) -> Callable:
    def counted(*arguments, **options):
        begin = clock()
        try:
            return function(*arguments, **options)
        finally:
            spent.append(clock() - begin)

    return counted


def overhead(runs: Sequence[Mapping]) -> dict:
    """What is paid once and for each row, in seconds, and the share of a cell of `CELL` seconds,
    from runs of two sizes: medians of each. `shares`: the same from each pair of runs alone, the
    least and the largest."""
    few, many = sorted({r["rows"] for r in runs})
    warm = [[r for r in runs if r["rows"] == rows and not r["new_prompts"]] for rows in (few, many)]
    new = [r for r in runs if r["new_prompts"]]
    pairs = list(zip(*warm, strict=True))
    shares = [overhead([*new, *pair])["share"] for pair in pairs] if len(pairs) > 1 else []

    def median(name: str, rows: int, *, new_prompts: bool = False) -> float:
        return statistics.median(r[name] for r in runs if r["rows"] == rows and r["new_prompts"] == new_prompts)

    each = max(0.0, (median("own_seconds", many) - median("own_seconds", few)) / (many - few))
    once = median("own_seconds", few) - each * few
    prompt = (median("own_seconds", many, new_prompts=True) - median("own_seconds", many)) / many
    model = median("model_seconds", many) / many
    rows = int((CELL - once) / (model + each))
    disk = median("disk_share", many)
    found = {"once_seconds": once, "row_seconds": each, "prompt_seconds": prompt, "model_row_seconds": model}
    found["mirror_seconds"] = median("mirror_seconds", many)
    share = (once + rows * each) / CELL + disk
    ends = {"least_share": min([share, *shares]), "largest_share": max([share, *shares])}
    return {**found, "disk_share": disk, "rows": rows, "share": share, **ends}


def markdown(record: Mapping) -> str:
    """The record as a table in Markdown."""
    found = record["overhead"]
    values = [
        ["once: start, imports, model, table, W&B", f"{found['once_seconds']:.1f} s"],
        [
            f"of it W&B's offline run, at {max(r['rows'] for r in record['runs'])} rows",
            f"{found['mirror_seconds']:.1f} s",
        ],
        ["for each row: store, progress, hashing, reading", f"{1e3 * found['row_seconds']:.2f} ms"],
        ["of the model, for each row", f"{1e3 * found['model_row_seconds']:.0f} ms"],
        ["rows in ten minutes", f"{found['rows']:,}"],
        ["waiting for the disk", f"{100 * found['disk_share']:.2f} %"],
        ["together, as a share of ten minutes", f"{100 * found['share']:.1f} %"],
        [
            "the same from single pairs of runs",
            f"{100 * found['least_share']:.1f} to {100 * found['largest_share']:.1f} %",
        ],
        ["apart from it: making a new prompt", f"{1e3 * found['prompt_seconds']:.1f} ms"],
    ]
    return Table("", ["the harness's own time", "measured"], values, []).markdown().rstrip()


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, write the record; 1 if the share of any pair of runs is above the limit."""
    parser = argparse.ArgumentParser(prog="python -m tests.measure.overhead", description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, nargs=2, default=[40, 2000], metavar=("FEW", "MANY"))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=FILE)
    parser.add_argument("--measure", nargs=2, metavar=("ROWS", "RESULTS"), help="one run in this process, as JSON")
    given = parser.parse_args(arguments)
    if given.measure:
        print(json.dumps(measured_run(int(given.measure[0]), given.measure[1])))
        return 0
    if not 8 <= given.rows[0] < given.rows[1] or given.repeats < 1:
        parser.error("--rows takes two numbers from 8 on (one for each draw), the smaller first; --repeats at least 1.")
    with tempfile.TemporaryDirectory() as base:  # the first run of each size makes the prompts
        runs = [run(rows, Path(base) / str(rows)) for _ in range(given.repeats + 1) for rows in given.rows]
    asked = f"--rows {given.rows[0]} {given.rows[1]} --repeats {given.repeats}"
    about = environment.describe(torch.device("cpu")) | {"command": f"python -m tests.measure.overhead {asked}"}
    record = {"environment": about, "runs": runs, "overhead": overhead(runs)}
    write_atomic(given.out, record)
    print(markdown(record))
    return int(record["overhead"]["largest_share"] > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
