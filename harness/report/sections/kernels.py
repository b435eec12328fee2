"""Kernels alone: time beside error, and beside the bytes that any attention must move."""

import math
from pathlib import Path

from harness.config import ROOT
from harness.reader import Question
from harness.report.describe import Axis, Grid, Group, Guide, Panel, Point, Section, Series, Tags, points
from harness.report.methods import EXACT, WINDOW, WINDOW_FUSED, WINDOW_PASSES, Method
from harness.report.sections.common import decades
from harness.store import read_json
from harness.table import Table

RECORDS = ROOT / "docs" / "results"
FLOAT32 = 4  # bytes: what kernels.bench runs in unless a record says otherwise


def section(questions: list[Question], records: Path = RECORDS) -> Section:
    blocks: list[Group | Grid] = []
    for file in sorted(records.glob("bench_*.json")):
        bench = read_json(file) or {}
        about = bench.get("environment", {})
        device = about.get("gpu") or about.get("cpu") or "unknown device"
        for run in bench.get("runs", []):
            if not {"shape", "methods"} <= run.keys():
                continue  # of another bench
            title = f"{file.name}: {device}, {_shape(run)}"
            blocks += [Group(title, [_panel(run, about)]), _grid(title, run)]
    return Section(
        "kernels",
        "Kernels against the byte floor",
        "One attention call on random input: a method left of another is faster. Its error against the dense oracle "
        "stands behind its name, since a speed without its error says nothing; PLSH's is the error of the "
        "approximation. The floor is reading Q, K and V and writing the output once: no method moves fewer bytes. "
        "Bars run over the middle half of the repeats.",
        blocks,
        ["python -m kernels.bench --device cpu --json docs/results/bench_cpu.json"] if blocks else [],
        [] if blocks else [("No bench record in docs/results.", "make bench")],
    )


def floor_bytes(run: dict) -> int:
    """Q, K, V and the output, once each."""
    return 4 * math.prod(run["shape"]) * run.get("itemsize", FLOAT32)


def _panel(run: dict, about: dict) -> Panel:
    timed = sorted((m for m in run["methods"] if m.get("ms")), key=lambda m: -m["ms"]["median"])
    series: dict[Method, list[Point]] = {}
    for row, m in enumerate(timed):
        ms = m["ms"]
        note = f"{m['name']}\n{ms['median']:.1f} ms, {_rate(run, ms['median'])}, error {_error(m)}"
        p = Point(ms["median"], float(row), ms.get("low"), ms.get("high"), note)
        series.setdefault(_method(m["name"]), []).append(p)
    drawn = [Series(method, points(found), "dots") for method, found in series.items()]
    values = [p.x for s in drawn for p in s.points] or [1.0]
    guides = []
    if rate := about.get("memory_gb_s"):
        floor = floor_bytes(run) / rate / 1e6
        guides, values = [Guide("byte floor", floor)], [*values, floor]
    x = Axis("milliseconds per call", True, decades(values), (min(values) / 1.4, max(values) * 1.4))
    names = {float(row): f"{m['name']} (error {_error(m)})" for row, m in enumerate(timed)}
    rest = "" if rate else ", no memory bandwidth in the record"
    return Panel(
        f"{_shape(run)}; floor: {floor_bytes(run) / 1e6:,.0f} MB{rest}",
        x,
        Axis("", ticks=names, range=(-0.6, len(timed) - 0.4)),
        drawn,
        guides,
        across=True,
    )


def _grid(title: str, run: dict) -> Grid:
    columns = [
        "method",
        "ms (median)",
        "middle half",
        "pairs per row",
        "error (rms, relative)",
        "floor's bytes per time",
    ]
    rows = []
    for m in run["methods"]:
        if ms := m.get("ms"):
            spread = f"{ms['low']:.1f} to {ms['high']:.1f}"
            cost = f"{m['pairs_per_row']:.1f}"
            rows.append([m["name"], f"{ms['median']:.1f}", spread, cost, _error(m), _rate(run, ms["median"])])
    left_out = [f"Left out: {name}: {reason}." for name, reason in (run.get("left_out") or {}).items()]
    return Grid(Table(title, columns, rows, left_out), [Tags()] * len(rows), fold=True)


def _shape(run: dict) -> str:
    batch, heads, tokens, width = run["shape"]
    return f"{tokens} tokens, {batch} x {heads} heads of {width}, {run.get('masks')} masks"


def _error(m: dict) -> str:
    error = m.get("rms_relative_error")
    return "no error recorded" if error is None else f"{error:.1%}" if error >= 1e-3 else f"{error:.0e}"


def _rate(run: dict, ms: float) -> str:
    return f"{floor_bytes(run) / ms / 1e6:.2f} GB/s"


def _method(name: str) -> Method:
    if name.startswith("alibi"):
        return EXACT
    if name.startswith("window"):
        return WINDOW_FUSED if "fused" in name else WINDOW_PASSES if "passes" in name else WINDOW
    weights = next((w for w in ("count", "rb", "exact") if w in name), "")
    return Method(f"plsh-{weights}" if weights else "plsh", f"PLSH {weights}".strip(), "circle")
