"""What a store holds, and how it differs from that of an undisturbed run."""

import json
import math
from collections.abc import Mapping
from dataclasses import astuple, dataclass
from pathlib import Path

from harness.analysis import reader

EXACT = ("key", "draw", "doc_hash", "prediction", "target", "score", "depth", "distance")
NEAR = ("nll",)  # to 1e-4; what is left are seconds and bytes
Task = tuple[str, str]  # cell id, name of the task's folder


@dataclass
class Harm:
    """lost: rows that are missing at the end, or were on disk after the fault and are not counted
    as they were. doubled: rows that count more than once, and runs of W&B that exist more than
    once. changed: rows and metrics that are not those of the undisturbed run. twice: rows that were
    computed again though they were there."""

    lost: int = 0
    doubled: int = 0
    changed: int = 0
    twice: int = 0

    def __add__(self, other: "Harm") -> "Harm":
        return Harm(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))


def on_disk(results: Path) -> dict[Task, list[dict]]:
    """All whole rows of all parts, those that stand there twice included, read without the
    harness."""
    found: dict[Task, list[dict]] = {}
    for part in sorted(results.glob("*/*/parts/*.jsonl")):
        for line in part.read_bytes().split(b"\n"):
            try:
                row = json.loads(line)
                row["key"]
            except (ValueError, KeyError, TypeError):
                continue
            found.setdefault((part.parents[2].name, part.parents[1].name), []).append(row)
    return found


def counted(results: Path) -> dict[Task, tuple[dict[int, dict], dict, str]]:
    """The rows that count, the metrics and the status of each task, as tables get them."""
    return {
        (r.cell_id, r.store.folder.name): (r.lines, r.summary()["metrics"], r.status) for r in reader.records(results)
    }


def harm(results: Path, undisturbed: Mapping[Task, tuple], safe: Mapping[Task, list[dict]]) -> Harm:
    """What the fault did in the end. safe: what was on disk right after it."""
    found, done = counted(results), Harm()
    for task, (rows, metrics, _) in undisturbed.items():
        now, figures, status = found.get(task, ({}, {}, "missing"))
        done.lost += len(rows.keys() - now.keys())
        done.lost += sum(not any(same(row, r) for r in [now.get(row["key"], {})]) for row in safe.get(task, ()))
        done.doubled += len(now.keys() - rows.keys())
        done.doubled += max([0, *(m["n"] - len(rows) for m in figures.values())])
        done.changed += sum(not same(row, now[key]) for key, row in rows.items() if key in now)
        done.changed += figures.keys() != metrics.keys() or status != "ok"
        done.changed += sum(
            not near(m[end], figures[name][end])
            for name, m in metrics.items()
            for end in ("value", "n")
            if name in figures and "kv_bytes" not in name
        )
    done.changed += len(found.keys() - undisturbed.keys())
    written = on_disk(results)
    done.twice = sum(len(rows) - len({row["key"] for row in rows}) for rows in written.values())
    return done


def same(row: Mapping, other: Mapping) -> bool:
    return all(row.get(f) == other.get(f) for f in EXACT) and all(near(row.get(f), other.get(f)) for f in NEAR)


def near(a: float | None, b: float | None) -> bool:
    return a == b or None not in (a, b) and math.isclose(a, b, rel_tol=1e-4, abs_tol=1e-4)
