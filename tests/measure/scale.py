"""`python -m tests.measure.scale [--cells N] [--out FILE]`: how long it takes to expand and check a
large sweep, to read its status and to collect its records, on a store made for the purpose, and how
much memory that takes: the first two on a tenth of the cells, too. Writes docs/results/scale.json.
Linux with glibc only."""

import argparse
import ctypes
import gc
import itertools
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil
import torch

from harness.collect import collect
from harness.common import environment
from harness.common.files import read_json, write_atomic
from harness.common.paths import ROOT
from harness.common.table import Table
from harness.sweep.cells import expand, plans
from harness.sweep.grid import Grid
from harness.sweep.rows import Rows
from harness.sweep.status import DONE, FAILED, MISSING, STOPPED, counts, states

CELLS = 100_000
KEPT = 10_204  # of the store for the table: with what is missing, 10,000 records
# of each hundred cells of the store: the first 90 are done, and so on
MIX = [DONE] * 90 + [FAILED] * 5 + [STOPPED] * 3 + [MISSING] * 2
RESET = Path("/proc/self/clear_refs")  # 5 written to it makes the peak of memory that of now
TEMPLATE = ROOT / "docs" / "results" / "first"


def grid_of(cells: int) -> Grid:
    """A grid of so many different cells, in six combinations of groups."""
    axes = {
        "attn": ["plsh"],
        "attn.sampler": ["gamma", "systematic"],
        "attn.weights": ["count", "rb", "exact"],
        "context": ["256", "512", "1024", "2048"],
        "dtype": ["float32"],
        "kernel": ["auto", "exact", "sdpa"],
        "masks": ["4", "8", "16", "32", "64"],
        "model": ["tiny", "tiny-plain"],
        "references": ["none"],
        "samples": ["8"],
    }
    others = Grid("", axes)
    axes["seed"] = [str(seed) for seed in range(-(-cells // len(others)))]
    return Grid("scale", {name: tuple(axes[name]) for name in sorted(axes)})


def fill(results: Path, rows: Rows) -> None:
    """A store with these rows in the states of MIX. Records are copies of a committed one, with
    eight of its rows, and the first KEPT have an identity of their own."""
    source = min(TEMPLATE.glob("*/*/task.json"))
    cell, task = read_json(source.parents[1] / "cell.json"), read_json(source)
    lines = next(source.parent.glob("parts/*.jsonl")).read_text().splitlines()[:8]
    part = "".join(json.dumps({**json.loads(line), "key": key}) + "\n" for key, line in enumerate(lines))
    identities = {
        plan.cell.cell_id: plan.cell.identity
        for _, _, plan in itertools.islice(plans(rows.grid, results=str(results), on_this_machine=False), KEPT)
    }
    attempt = json.dumps({"status": "error", "error": "RuntimeError", "message": "made up", "attempt": "a"})
    for i, row in enumerate(rows):
        state = MIX[i % len(MIX)]
        if state == MISSING:
            continue
        (cell_id, name), *_ = row.work
        folder = results / cell_id / name
        (folder / "parts").mkdir(parents=True)
        (folder / "parts" / "a.jsonl").write_text(part)
        own = {**cell, "cell_id": cell_id, "identity": identities.get(cell_id, cell["identity"])}
        (results / cell_id / "cell.json").write_text(json.dumps(own, indent=1))
        if state == DONE:
            own = {**task, "task_id": name.rpartition("-")[2], "samples": row.samples[0]}
            (folder / "task.json").write_text(json.dumps(own, indent=1))
        if state == FAILED:
            (folder / "attempts").mkdir()
            (folder / "attempts" / "a.json").write_text(attempt)


def measure(cells: int, folder: Path) -> dict:
    """All figures as plain JSON."""
    figures = []
    about = environment.describe(torch.device("cpu")) | {"command": "python -m tests.measure.scale"}
    about |= {"file_system": _file_system(folder), "cores": os.cpu_count(), "load": [round(os.getloadavg()[0], 1)]}

    def timed(what: str, count: int, work: Callable):
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)  # or what earlier work has freed would hide what this needs
        RESET.write_text("5")
        wall, cpu = time.perf_counter(), time.process_time()
        found = work()
        figure = {"what": what, "count": count, "seconds": round(time.perf_counter() - wall, 2)}
        figure["cpu_seconds"] = round(time.process_time() - cpu, 2)
        figure["peak_mib"] = _peak_mib()
        figures.append(figure)
        print(f"{what}: {figure['seconds']} s, {figure['cpu_seconds']} s of CPU", file=sys.stderr, flush=True)
        return found

    def looked_at(cells: int, folder: Path) -> Rows:
        grid = grid_of(cells)
        options = {"results": str(folder), "on_this_machine": False}
        rows = timed("cells expanded and checked", len(grid), lambda: expand(grid, **options))
        assert len(rows) == len(grid)
        fill(folder, rows)
        timed("status without an index", len(rows), lambda: states(rows, folder))
        found = timed("status from the index", len(rows), lambda: states(rows, folder))
        assert counts(found) == counts_of_mix(len(rows))
        return rows

    expand(grid_of(1), results=str(folder), on_this_machine=False)  # imports and the reading of models are not counted
    looked_at(cells // 10, folder / "tenth")
    folder /= "all"
    rows = looked_at(cells, folder)
    for row in itertools.islice(rows, KEPT, None):
        (folder / row.cell_id / "cell.json").unlink(missing_ok=True)
    count = sum((folder / row.cell_id / "cell.json").exists() for row in itertools.islice(rows, KEPT))
    table, _ = timed("records collected", count, lambda: collect(folder))
    again, read = timed("records collected again", table.num_rows, lambda: collect(folder))
    assert again.num_rows == table.num_rows == count and read == 0
    about["load"].append(round(os.getloadavg()[0], 1))
    return {"environment": about, "figures": figures}


def _peak_mib() -> int:
    """Most memory of this process since the last RESET, in MiB."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:")]
    return round(int(line.split()[1]) / 1024)


def growth(figures: Sequence[dict]) -> dict[str, float]:
    """KiB that each further cell adds to the peak, by what was measured at two sizes."""
    found = {}
    for few, many in itertools.combinations(figures, 2):
        if few["what"] == many["what"]:
            more = (many["peak_mib"] - few["peak_mib"]) * 1024
            found[few["what"]] = more / (many["count"] - few["count"])
    return found


def counts_of_mix(cells: int) -> dict[str, int]:
    """What the status of a store made by `fill` must be."""
    names = [MIX[i % len(MIX)] for i in range(cells)]
    return {name: names.count(name) for name in (DONE, FAILED, STOPPED, MISSING)}


def _file_system(folder: Path) -> str:
    """Its type, ext4 or tmpfs for example."""
    mounts = [p for p in psutil.disk_partitions(all=True) if folder.resolve().is_relative_to(p.mountpoint)]
    return max(mounts, key=lambda p: len(p.mountpoint)).fstype if mounts else "unknown"


def markdown(record: dict) -> str:
    """The figures as a table, and where they were measured."""
    rows = [
        [f["what"], f"{f['count']:,}", f"{f['seconds']:.1f}", f"{f['cpu_seconds']:.1f}", f"{f['peak_mib']:,}"]
        for f in record["figures"]
    ]
    about = record["environment"]
    note = f"One process on {about['device']}, Python {about['python']}, the store on {about['file_system']}, "
    note += f"{about['cores']} cores under a load of {about['load'][0]} before and {about['load'][1]} after. "
    grown = ", ".join(f"{kib:.1f} KiB ({what})" for what, kib in growth(record["figures"]).items())
    note += f"Each further cell adds to the peak: {grown}."
    return Table("", ["", "how many", "seconds", "CPU seconds", "peak MiB"], rows, [note]).markdown()


def main() -> int:
    """Returns 0."""
    parser = argparse.ArgumentParser(prog="python -m tests.measure.scale", description=__doc__)
    parser.add_argument("--cells", type=int, default=CELLS, help=f"cells of the sweep ({CELLS})")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results" / "scale.json", help="file to write")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="scale-") as name:
        record = measure(given.cells, Path(name))
    write_atomic(given.out, record)
    print(markdown(record))
    return 0


if __name__ == "__main__":
    sys.exit(main())
