"""`python -m tests.faults [--faults N] [--seed N] [--out FILE]`: break runs in every way that a
machine, W&B and Slurm know, run each again to its end, and compare it with an undisturbed run.
Writes docs/results/faults.json; stopped by a signal, with the faults that were injected until then.

Exit codes: 0, or 1 if a row was lost, doubled or changed, or a promise was broken.
"""

import argparse
import os
import queue
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from harness.common import environment
from harness.common.files import write_atomic
from harness.common.signals import StopRequest
from tests.conftest import ROOT
from tests.faults import slurm, table
from tests.faults.bench import Bench, Kind, Tally
from tests.faults.kinds import DOCUMENTS, KINDS
from tests.faults.outages import OUTAGE
from tests.faults.places import writing
from tests.slurm.cluster import missing

ALL = 1000


def shares(kinds: Sequence[Kind], faults: int) -> list[int]:
    """How many of each kind, in proportion and at least one, the rounding left to the largest."""
    counts = [max(1, kind.share * faults // ALL) for kind in kinds]
    while (left := faults - sum(counts)) != 0:
        largest = max(range(len(kinds)), key=lambda i: kinds[i].share * faults / ALL - counts[i] * (left > 0))
        if left < 0:
            largest = counts.index(max(counts))
        counts[largest] += 1 if left > 0 else -1
    return counts


def inject(bench: Bench, wanted: Sequence[tuple[Kind, int]], jobs: int, stop: StopRequest) -> list[Tally]:
    """So many faults of each kind, `jobs` at a time; fewer if it is to stop."""
    waiting: queue.SimpleQueue = queue.SimpleQueue()
    tallies = [Tally(kind.name) for kind, _ in wanted]
    rounds = max(count for _, count in wanted)
    for number in range(rounds):  # by turns, so that an interrupted measurement has some of each
        for (kind, count), tally in zip(wanted, tallies, strict=True):
            if number < count:
                waiting.put((kind, number, tally))
    total = waiting.qsize()

    def work() -> None:
        while not stop.requested:
            try:
                kind, number, tally = waiting.get_nowait()
            except queue.Empty:
                return
            bench.inject(kind, number, tally)
            if (begun := total - waiting.qsize()) % 50 == 0:
                print(f"{begun} of {total} faults", file=sys.stderr, flush=True)

    threads = [threading.Thread(target=work) for _ in range(jobs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return tallies


def measure(faults: int, seed: int, jobs: int, stop: StopRequest) -> dict:
    """All of them, or those until `stop`, as plain JSON. Those of Slurm, which wait most of their
    time, run beside."""
    began = time.monotonic()
    kinds = [kind for kind in (*KINDS, DOCUMENTS, OUTAGE) if os.geteuid() == 0 or not kind.needs_root]
    skipped = [f"{kind.name}: needs root" for kind in KINDS if kind not in kinds]
    clustered = {name: share * faults // ALL for name, _, share, _ in slurm.FAULTS}
    if why := missing():
        skipped.append(f"Slurm: {why}")
        clustered = {}
    counts = shares(kinds, faults - sum(clustered.values()))
    with Bench(seed) as bench, ThreadPoolExecutor(1) as beside:
        there, others = None, [Tally(name) for name in clustered]
        if any(clustered.values()):
            there = beside.submit(slurm.inject, bench.zygote, clustered, others, seed, stop)
        tallies = inject(bench, list(zip(kinds, counts, strict=True)), jobs, stop)
        try:
            if there:
                there.result()
        except Exception as error:
            skipped.append(f"Slurm from there on: {error!r}")
        tallies += others
    if stop.requested:
        skipped.append(f"what was left after {sum(tally.injected for tally in tallies)}, when a signal came")
    about = environment.describe(torch.device("cpu"))
    about |= {"command": f"python -m tests.faults --faults {faults} --seed {seed}", "cores": os.cpu_count()}
    figures = {"environment": about, "seconds": round(time.monotonic() - began), "skipped": skipped}
    figures["writing_code"] = {"functions": len(writing()), "reached": sorted(bench.reached)}
    return {**figures, "kinds": [tally.as_dict() for tally in tallies]}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--faults", type=int, default=ALL, help=f"how many ({ALL})")
    parser.add_argument("--seed", type=int, default=0, help="of where they hit (0)")
    parser.add_argument("--jobs", type=int, default=2, help="at a time (2)")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results" / "faults.json", help="file to write")
    given = parser.parse_args(arguments)
    with StopRequest() as stop:
        record = measure(given.faults, given.seed, given.jobs, stop)
    write_atomic(given.out, record)
    print(table.markdown(record))
    for told in record["skipped"]:
        print(f"skipped: {told}", file=sys.stderr)
    for kind in record["kinds"]:
        for told in kind["broken_promises"]:
            print(f"{kind['kind']}: {told}", file=sys.stderr)
    return int(any(kind["broken_promises"] for kind in record["kinds"]))


if __name__ == "__main__":
    sys.exit(main())
