"""`python -m tests.odd [--out FILE] [WORD ...]`: make odd checkpoints, tokenizers, configurations
and data, run each, and hold the answers to what must come of them. Writes docs/results/odd.json,
unless words choose some of them.

Exit codes: 0, or 1 if a number was wrong or a refusal was missing.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

import datasets
import torch
from transformers.utils.logging import disable_progress_bar

from harness.common import environment
from harness.common.files import write_atomic
from tests.conftest import ROOT
from tests.odd import bench, table
from tests.odd.cases import MODEL_CASES
from tests.odd.data import DATA_CASES
from tests.zygote import Zygote

CASES = (*MODEL_CASES, *DATA_CASES)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.odd", description=__doc__)
    parser.add_argument("words", nargs="*", help="run only what has one of them in its kind or description")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results" / "odd.json", help="file to write")
    given = parser.parse_args(arguments)
    chosen = [case for case in CASES if not given.words or any(w in f"{case.kind} {case.odd}" for w in given.words)]
    disable_progress_bar()
    datasets.disable_progress_bars()
    began, outcomes = time.monotonic(), []
    with tempfile.TemporaryDirectory(prefix="odd-") as folder, Zygote() as zygote:
        for number, case in enumerate(chosen):
            outcomes.append(bench.run(zygote, case, Path(folder) / str(number)))
            told = outcomes[-1].wrong or outcomes[-1].answer
            print(
                f"{'WRONG ' if outcomes[-1].wrong else ''}{case.kind}: {case.odd}: {told}", file=sys.stderr, flush=True
            )
    about = environment.describe(torch.device("cpu"))
    about |= {"command": "python -m tests.odd", "cores": os.cpu_count()}
    record = {"environment": about, "seconds": round(time.monotonic() - began)}
    record["cases"] = [outcome.as_dict() for outcome in outcomes]
    if not given.words:
        write_atomic(given.out, record)
    print(table.markdown(record))
    return int(any(outcome.wrong for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
