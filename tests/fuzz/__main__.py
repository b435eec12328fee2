"""`python -m tests.fuzz [--examples N] [--seed S] [--out FILE]`: draw odd command lines, checkpoints and
stores, and hold what the commands answer to what is promised. Writes docs/results/fuzz.json.

Exit codes: 0, or 1 if a promise was broken, which is then on stderr.
"""

import argparse
import concurrent.futures
import multiprocessing
import os
import sys
from pathlib import Path

os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "WANDB_MODE": "disabled"}

import torch

from harness.common import environment
from harness.common.files import write_atomic
from tests.conftest import ROOT
from tests.fuzz import sessions, table


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--examples", type=int, default=10_000, help="of all sessions together (10,000)")
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn (0)")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results" / "fuzz.json", help="file to write")
    parser.add_argument("words", nargs="*", help="only sessions with one of them in their names")
    given = parser.parse_args(arguments)
    about = environment.describe(torch.device("cpu"))
    about |= {
        "command": f"python -m tests.fuzz --examples {given.examples} --seed {given.seed}",
        "cores": os.cpu_count(),
    }
    chosen = [s.name for s in sessions.SESSIONS if not given.words or any(word in s.name for word in given.words)]
    # processes of their own, since a session changes its current folder and its environment
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(len(chosen), mp_context=spawn) as pool:
        reports = list(pool.map(sessions.report_of, chosen, [given.examples] * len(chosen), [given.seed] * len(chosen)))
    record = {"environment": about, "sessions": reports}
    if not given.words:
        write_atomic(given.out, record)
    print(table.markdown(record))
    return int(any(report["broken"] for report in reports))


if __name__ == "__main__":
    sys.exit(main())
