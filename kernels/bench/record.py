"""The record of a bench: the environment of the times, the rows measured so far, and their
comparison."""

import json
from pathlib import Path
from typing import Any

import torch

from kernels.bench.plan import Work
from kernels.common.dtypes import dtype_name
from kernels.common.environment import replace_file, written
from kernels.common.gpus import SCHEDULERS

# fields of the environment that must agree for rows of two runs to share a record
COMPARED_FIELDS = ("device", "gpu", "cpu", "threads", "torch", "triton", "python", "code")


class Record:
    """`content` is the content of the file: {"environment", "runs", "not_reached"}. A run is one
    call on one head set and length, with a row for each method, the numbers of masks that are
    complete, and those that `failed`, with the reason. Without a file nothing is kept. Raises
    ValueError for a file that cannot be continued."""

    def __init__(self, about: dict, file: Path | None, *, fresh: bool):
        self.file = file
        self.content: dict[str, Any] = {"environment": about, "runs": [], "not_reached": []}
        if file is not None and file.exists() and not fresh:
            before = _read(file)
            differing = [x for x in COMPARED_FIELDS if before["environment"].get(x) != about[x]]
            if differing:
                raise ValueError(
                    f"{file} holds rows measured under another {', '.join(differing)}: name another file, or use "
                    "--fresh to write it anew."
                )
            self.content["runs"] = before["runs"]

    def run_of(self, work: Work, dtype: torch.dtype) -> dict:
        """The run that `work` is part of; a new one if there is none."""
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
        """Whether the record has all rows of this part, or the reason why it has not."""
        known = self._known(work)
        return known is not None and (work.masks in known["masks"] or self.failure(work) is not None)

    def failure(self, work: Work) -> str | None:
        """The reason why this part could not be prepared, if any."""
        failed = (self._known(work) or {}).get("failed", [])
        return next((x["reason"] for x in failed if x["masks"] == work.masks), None)

    def fail(self, run: dict, work: Work, reason: str) -> None:
        """Records that a part could not be prepared.

        Args:
            run: of `run_of`.
            work: the part.
            reason: as `kernels.bench.measure.reason_of` states it.
        """
        run["failed"].append({"masks": work.masks, "reason": reason})
        self.save()

    def _known(self, work: Work) -> dict | None:
        shape = [1, work.heads.heads, work.tokens, work.heads.dim]
        same = (r for r in self.content["runs"] if (r["heads"], r["call"], r["shape"]) == (work.name, work.call, shape))
        return next(same, None)

    def begin(self, run: dict, name: str | None) -> None:
        """Records that the row `name` is running, or none: the file then shows in which row the
        process died."""
        run["started"] = name
        self.save()

    def add(self, run: dict, row: dict) -> None:
        """Adds a row and updates all comparisons, which it may change."""
        run["methods"].append(rounded(row))
        run["started"] = None
        about = self.content["environment"]
        relate(run, about["memory_gb_s"], issue_rate(about))
        self.save()

    def save(self) -> None:
        """Replaces the file atomically: stopping the bench loses no measurement."""
        if self.file is not None:
            replace_file(self.file, written(self.content) + "\n")


def _read(file: Path) -> dict:
    """The content of an earlier bench. Raises ValueError for any other file."""
    try:
        before = json.loads(file.read_text())
        sound = isinstance(before["environment"], dict) and all("methods" in run for run in before["runs"])
    except (ValueError, TypeError, KeyError, OSError):
        sound = False
    if not sound:
        raise ValueError(f"{file} is no record of this bench: name another file, or use --fresh to write it anew.")
    return before


def issue_rate(about: dict) -> float | None:
    """Warp instructions that the GPU issues per ms at its highest clock; None if unknown."""
    if not about.get("multiprocessors") or not about.get("clock_mhz"):
        return None
    return SCHEDULERS * about["multiprocessors"] * about["clock_mhz"] * 1e3


def relate(run: dict, rate: float, issue: float | None = None) -> None:
    """Adds the figures that follow from the times to each timed row:

    * `actual_tflops`, of the visited pairs, and `effective_tflops`, of the pairs of exact ALiBi;
    * `over_floor`: time over the time of the byte floor;
    * `over_issue`: time over the time of the issue floor, where it is known;
    * `speedup`: over the fastest exact method;
    * `equal_error`, for PLSH: comparison with the fastest window of equal error (`against`).

    All figures are of the whole call, building the tables included; `kernel` holds the ratios of
    the kernels alone. Two rows are compared by their times in a CUDA graph if both have one, and a
    row is compared with the floors by its time in a graph if it has one: launching from Python is
    no part of a kernel.

    Args:
        run: of the record; its rows are changed.
        rate: GB/s of the memory.
        issue: warp instructions that the GPU issues per ms; None if unknown.
    """
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
    alone if the call builds tables."""
    begin = "kernel_" if kernel and row.get("kernel_ms") else ""
    return {kind: row[begin + kind] for kind in ("ms", "graph_ms") if row.get(begin + kind)}


def best(row: dict, kernel: bool = False) -> float:
    """Median ms of a row, in a CUDA graph if it has been timed in one."""
    by_kind = times(row, kernel)
    return by_kind.get("graph_ms", by_kind["ms"])["median"]


def pair(row: dict, other: dict, kernel: bool = False) -> tuple[dict, dict]:
    """The times of two rows that can be compared.

    Args:
        row, other: timed rows of a run.
        kernel: whether to compare the kernels alone rather than the whole calls.

    Returns:
        the quartiles of both in ms: `graph_ms` if both have been timed in a CUDA graph, else `ms`.
    """
    first, second = times(row, kernel), times(other, kernel)
    kind = "graph_ms" if "graph_ms" in first and "graph_ms" in second else "ms"
    return first[kind], second[kind]


def ratio(row: dict, other: dict, kernel: bool = False) -> float:
    """How many times as long the call of `row` takes as that of `other`, by their medians.

    Args:
        row, other, kernel: as in `pair`.
    """
    first, second = pair(row, other, kernel)
    return first["median"] / second["median"]


def against(row: dict, window: dict | None, kernel: bool = False) -> dict | None:
    """Compares a PLSH row with the window of equal error, the narrowest whose error is no larger.

    Args:
        row: the PLSH row.
        window: the row of the window, None if there is none.
        kernel: as in `pair`.

    Returns:
        the window's name and error, its time over the time of the row, and the verdict on the row:
        "faster", "slower" or, if the middle halves of the times overlap, "even"; None without a
        window.
    """
    if window is None:
        return None
    plsh, its = pair(row, window, kernel)
    verdict = "faster" if plsh["high"] < its["low"] else "slower" if plsh["low"] > its["high"] else "even"
    error = window["rms_relative_error"]
    return {"window": window["name"], "error": error, "ratio": its["median"] / plsh["median"], "verdict": verdict}


def rounded(value):
    """Floats rounded to five digits, since further digits are noise."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {k: rounded(v) for k, v in value.items()}
    return value
