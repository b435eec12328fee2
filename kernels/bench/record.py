"""The record of a bench: what the times depend on, the rows measured so far, and how they
compare."""

import json
from pathlib import Path
from typing import Any

import torch

from kernels.bench.plan import Work
from kernels.common.dtypes import dtype_name
from kernels.common.environment import replace_file, written
from kernels.common.gpus import SCHEDULERS

# what must be the same for rows of two runs to stand in one record
SAME = ("device", "gpu", "cpu", "threads", "torch", "triton", "python", "code")


class Record:
    """`content` is what the file holds: {"environment", "runs", "not_reached"}. A run is one call
    on one head set and length, with one row for each method, and with the numbers of masks that are
    complete, or `failed`, with the reason. Without a file nothing is kept. Raises ValueError, in a
    sentence, for a file that cannot be gone on with."""

    def __init__(self, about: dict, file: Path | None, *, fresh: bool):
        self.file = file
        self.content: dict[str, Any] = {"environment": about, "runs": [], "not_reached": []}
        if file is not None and file.exists() and not fresh:
            before = _read(file)
            differing = [x for x in SAME if before["environment"].get(x) != about[x]]
            if differing:
                raise ValueError(
                    f"{file} holds rows measured under another {', '.join(differing)}: name another file, or use "
                    "--fresh to write it anew."
                )
            self.content["runs"] = before["runs"]

    def run_of(self, work: Work, dtype: torch.dtype) -> dict:
        """The run that `work` is part of, begun if need be."""
        known = self._known(work)
        if known is None:
            heads = work.heads
            known = {
                "heads": work.name,
                "call": work.call,
                "shape": [1, heads.heads, work.tokens, heads.dim],
                "queries": work.queries,
                "bias_max": heads.bias_max,
                "dtype": dtype_name(dtype),
                "itemsize": dtype.itemsize,
                "masks": [],
                "failed": [],
                "started": None,
                "methods": [],
            }
            self.content["runs"].append(known)
        return known

    def complete(self, work: Work) -> bool:
        """Whether the record has all rows of this part, or why it has not."""
        known = self._known(work)
        return known is not None and (work.masks in known["masks"] or self.failure(work) is not None)

    def failure(self, work: Work) -> str | None:
        """Why this part could not be prepared, if it could not."""
        failed = (self._known(work) or {}).get("failed", [])
        return next((x["reason"] for x in failed if x["masks"] == work.masks), None)

    def fail(self, run: dict, work: Work, reason: str) -> None:
        """This part could not be prepared."""
        run["failed"].append({"masks": work.masks, "reason": reason})
        self.save()

    def _known(self, work: Work) -> dict | None:
        shape = [1, work.heads.heads, work.tokens, work.heads.dim]
        same = (r for r in self.content["runs"] if (r["heads"], r["call"], r["shape"]) == (work.name, work.call, shape))
        return next(same, None)

    def begin(self, run: dict, name: str | None) -> None:
        """This row runs from now on, or none does: whoever finds it in the file knows what the
        process died in."""
        run["started"] = name
        self.save()

    def add(self, run: dict, row: dict) -> None:
        """One more row; what all rows are compared to may have changed with it."""
        run["methods"].append(rounded(row))
        run["started"] = None
        about = self.content["environment"]
        relate(run, about["memory_gb_s"], issue_rate(about))
        self.save()

    def save(self) -> None:
        """Replace the file as a whole: whoever stops the bench loses nothing that was measured."""
        if self.file is not None:
            replace_file(self.file, written(self.content) + "\n")


def _read(file: Path) -> dict:
    """What a bench has written before."""
    try:
        before = json.loads(file.read_text())
        sound = isinstance(before["environment"], dict) and all("methods" in run for run in before["runs"])
    except (ValueError, TypeError, KeyError, OSError):
        sound = False
    if not sound:
        raise ValueError(f"{file} is no record of this bench: name another file, or use --fresh to write it anew.")
    return before


def issue_rate(about: dict) -> float | None:
    """Instructions of warps that the GPU issues in a ms at its highest clock, None where that is
    not known."""
    if not about.get("multiprocessors") or not about.get("clock_mhz"):
        return None
    return SCHEDULERS * about["multiprocessors"] * about["clock_mhz"] * 1e3


def relate(run: dict, rate: float, issue: float | None = None) -> None:
    """Fill in what follows from the times: TFLOP/s, of the pairs that are visited (`actual`) and of
    those that exact ALiBi visits (`effective`); the time over that of the byte floor at `rate`
    GB/s, and over that of the issue floor at `issue` instructions a ms where it is known; the speed
    over that of the fastest exact way and, for PLSH, of the fastest window of equal error. All are
    of the whole call, what it builds included; `kernel` says the ratios of the kernels alone. Two
    rows are compared by their times in a CUDA graph where both have one, and so is a row to the
    floors where it has one: launching from Python is no part of a kernel."""
    timed = [r for r in run["methods"] if r["ms"]]
    exact = [r for r in timed if r["family"] == "exact"]
    windows = [r for r in timed if r["family"] == "window"]
    for row in timed:
        ms = best(row)
        row["actual_tflops"] = row["operations"] / ms / 1e9
        row["effective_tflops"] = row["dense_operations"] / ms / 1e9
        row["floor_ms"] = row["floor_bytes"] / rate / 1e6
        if issue and row.get("issued"):
            row["issue_ms"] = sum(row["issued"].values()) / issue
        equal = [w for w in windows if w["match"] == row["name"]] if row["family"] == "plsh" else []
        window = min(equal, key=best, default=None)
        for into, kernel in ((row, False), (row.setdefault("kernel", {}), True)):
            into["speedup"] = min((ratio(other, row, kernel) for other in exact), default=None)
            into["over_floor"] = best(row, kernel) / row["floor_ms"]
            if issue and row.get("issued"):
                counted = row["issued"]["forward"] if kernel else sum(row["issued"].values())
                into["over_issue"] = best(row, kernel) / (counted / issue)
            if row["family"] == "plsh":
                into["equal_error"] = against(row, window, kernel)
        if not row.get("kernel_ms"):  # nothing is built
            del row["kernel"]
        row.update(rounded({k: row[k] for k in row if k not in ("ms", "name")}))


def times(row: dict, kernel: bool = False) -> dict[str, dict]:
    """The times of a row by kind, `ms` and perhaps `graph_ms`: of the whole call, or of its kernel
    alone, which is the same where nothing is built."""
    begin = "kernel_" if kernel and row.get("kernel_ms") else ""
    return {kind: row[begin + kind] for kind in ("ms", "graph_ms") if row.get(begin + kind)}


def best(row: dict, kernel: bool = False) -> float:
    """ms of a row by itself: in a graph where it has been timed in one."""
    found = times(row, kernel)
    return found.get("graph_ms", found["ms"])["median"]


def pair(row: dict, other: dict, kernel: bool = False) -> tuple[dict, dict]:
    """The times of two rows that may be compared."""
    own, its = times(row, kernel), times(other, kernel)
    kind = "graph_ms" if "graph_ms" in own and "graph_ms" in its else "ms"
    return own[kind], its[kind]


def ratio(row: dict, other: dict, kernel: bool = False) -> float:
    """How many times as long the call of `row` takes as that of `other`."""
    own, its = pair(row, other, kernel)
    return own["median"] / its["median"]


def against(row: dict, window: dict | None, kernel: bool = False) -> dict | None:
    """The window of equal error, the narrowest that errs no more, beside a PLSH row: its name and
    error, how many times as long it takes, and whether the row is "faster", "slower" or, where the
    middle halves of the times overlap, "even"."""
    if window is None:
        return None
    own, its = pair(row, window, kernel)
    verdict = "faster" if own["high"] < its["low"] else "slower" if own["low"] > its["high"] else "even"
    error = window["rms_relative_error"]
    return {"window": window["name"], "error": error, "ratio": its["median"] / own["median"], "verdict": verdict}


def rounded(value):
    """Floats to five digits: what lies beyond is noise."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {k: rounded(v) for k, v in value.items()}
    return value
