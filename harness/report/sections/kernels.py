"""Kernels alone: time and error, and the floor of the bytes that any attention must move."""

from pathlib import Path

from harness.analysis.reader import Comparison
from harness.common.files import read_json
from harness.common.paths import ROOT
from harness.common.table import Table
from harness.report.describe import QUARTILES, Axis, Grid, Group, Guide, Panel, Point, Section, Series, Tags, points
from harness.report.methods import EXACT, WINDOW, WINDOW_FUSED, WINDOW_PASSES, Method
from harness.report.sections.common import decade_ticks
from kernels.bench.plan import COMMAND, FILE
from kernels.bench.table import COLUMNS, LEGEND, cells, figure, gaps, title, verdicts

RECORDS = ROOT / "docs" / "results"
DEVICES = {"cuda": "GPU", "cpu": "CPU"}
WINDOW_ERROR = Method("other", "window of equal error", "star")


def section(comparisons: list[Comparison], records: Path = RECORDS) -> Section:
    """Return the section of the benches in the folder `records`."""
    blocks: list[Group | Grid] = []
    commands, missing = [], []
    benches = {file: read_json(file) or {} for file in sorted(records.glob(FILE.format(device="*")))}
    for file, bench in benches.items():
        environment = bench.get("environment", {})
        device_name = f"{file.name}: {environment.get('gpu') or environment.get('cpu') or 'unknown device'}"
        runs = [run for run in bench.get("runs", []) if "queries" in run]  # an older bench recorded less
        for run in runs:
            blocks += [Group(f"{device_name}, {title(run)}", [_panel(run)]), _grid(f"{device_name}, {title(run)}", run)]
        if runs:
            commands.append(environment["command"])
        if unreached := bench.get("not_reached"):
            first = "; ".join(unreached[:3]) + (" and so on" if len(unreached) > 3 else "")
            missing.append((f"{file.name} lacks {len(unreached)} parts: {first}.", environment["command"]))
    for device, name in DEVICES.items():
        if not any(bench.get("environment", {}).get("device") == device for bench in benches.values()):
            missing.append((f"No bench on a {name} is recorded in docs/results.", COMMAND.format(device=device)))
    return Section(
        "kernels",
        "Kernels against the byte floor",
        "One attention call on random input: a method left of another is faster. Its error against the dense oracle "
        "stands behind its name, since a speed without its error says nothing; PLSH's is the error of the "
        "approximation. The floor is reading what a call must read and writing its output once, at the rate of a copy "
        "on the same machine: no method moves fewer bytes. Our kernels have another, where their machine code is "
        "recorded: to issue their instructions, one a cycle and scheduler; the larger one is the limit. Times are of "
        "whole calls, with the tables that they build. The fair comparison is the window of equal error. Bars run "
        "over the middle half of the repeats.",
        blocks,
        commands,
        missing,
    )


def floor(run: dict) -> float | None:
    """Return the byte floor in milliseconds, or None if methods differ in it, as in decoding."""
    floors = {m["floor_ms"] for m in run["methods"] if m["ms"]}
    return floors.pop() if len(floors) == 1 else None


def _panel(run: dict) -> Panel:
    timed = sorted((m for m in run["methods"] if m["ms"]), key=lambda m: -m["ms"]["median"])
    series: dict[Method, list[Point]] = {}
    for row, m in enumerate(timed):
        ms, floor_text = m["ms"], f"{m['over_floor']:.1f} times its byte floor of {figure(m['floor_ms'])} ms"
        time_text = f"{figure(ms['median'])} ms"
        if graph := m.get("graph_ms"):
            time_text += f", {figure(graph['median'])} ms in a CUDA graph"
        if m.get("issue_ms"):
            floor_text += f", {m['over_issue']:.1f} times its issue floor of {figure(m['issue_ms'])} ms"
        note = f"{m['name']}\n{time_text}, {floor_text}, error {_error(m)}"
        series.setdefault(_method(m), []).append(Point(ms["median"], float(row), ms["low"], ms["high"], note))
    drawn_series = [Series(method, points(method_points), "dots") for method, method_points in series.items()]
    values = [p.x for s in drawn_series for p in s.points] or [1.0]
    guides, floor_title = [], "byte floor by method: point at it"
    if (floor_ms := floor(run)) is not None:
        guides, values = [Guide("byte floor", floor_ms)], [*values, floor_ms]
        floor_title = f"byte floor {figure(floor_ms)} ms"
    return Panel(
        f"{title(run)}; {floor_title}",
        Axis("milliseconds per call", True, decade_ticks(values), (min(values) / 1.4, max(values) * 1.4)),
        Axis("", ticks={float(row): f"{m['name']} (error {_error(m)})" for row, m in enumerate(timed)},
             range=(-0.6, len(timed) - 0.4)),
        drawn_series,
        guides,
        across=True,
        bars=QUARTILES,
    )  # fmt: skip


def _grid(heading: str, run: dict) -> Grid:
    rows = [cells(m) for m in run["methods"] if m["ms"]]
    untimed = [f"{m['name']}: {m['status']}." for m in run["methods"] if not m["ms"]]
    return Grid(
        Table(heading, list(COLUMNS), rows, [LEGEND, *verdicts(run), *gaps(run), *untimed]),
        [Tags()] * len(rows),
        fold=True,
    )


def _error(m: dict) -> str:
    error = m["rms_relative_error"]
    return f"{error:.1%}" if error >= 1e-3 else f"{error:.0e}"


def _method(m: dict) -> Method:
    if m["family"] == "exact":
        return EXACT
    if m["family"] == "window":
        windows = {None: WINDOW, "fused": WINDOW_FUSED, "passes": WINDOW_PASSES}
        return windows.get(m["match"], WINDOW_ERROR)
    weights = next(w for w in ("count", "rb", "exact") if f"plsh {w}" in m["name"])
    return Method(f"plsh-{weights}", f"PLSH {weights}", "circle")
