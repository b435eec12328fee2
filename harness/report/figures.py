"""Panels as Plotly's JSON.

Colours are names of CSS variables, which the page resolves for light, dark and print. All text is
escaped, since Plotly interprets markup in labels.
"""

import html
import math
from dataclasses import replace
from typing import Any

from harness.report.describe import Axis, Heat, Panel, Point, Series

FONT = {"family": "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif", "size": 12, "color": "--ink"}
HOVER = "%{text}<extra></extra>"


def figure(panel: Panel | Heat) -> dict[str, Any]:
    """Return {"data", "layout"} for Plotly.newPlot; the title is left to the page's caption."""
    return _heat(panel) if isinstance(panel, Heat) else _panel(panel)


def escape(text: str) -> str:
    """Return text for a Plotly label, which interprets markup."""
    return html.escape(text, quote=False).replace("\n", "<br>")


def _panel(panel: Panel) -> dict[str, Any]:
    x_range = _range(panel.x)
    data = [trace for series in panel.series for trace in _traces(series, panel, panel.x.range)]
    shapes = [
        {"type": "line", "yref": "paper", "x0": g.x, "x1": g.x, "y0": 0, "y1": 1, "line": _guide_line("solid")}
        for g in panel.guides
        if g.slope is None
    ]
    for guide, slope in ((g, g.slope) for g in panel.guides if g.slope is not None):
        ends = panel.x.range or (guide.x, guide.x * 10)
        ys = [guide.y * (x / guide.x) ** slope for x in ends]
        line = _guide_line(guide.dash)
        data.append({"type": "scatter", "mode": "lines", "x": list(ends), "y": ys, "line": line, "hoverinfo": "skip"})
    layout: dict[str, Any] = {
        "xaxis": {**_axis(panel.x), "range": x_range},
        "yaxis": {**_axis(panel.y), "range": _range(panel.y)},
        "shapes": shapes,
        "margin": {"l": 8 if panel.across else 52, "r": 10, "t": 6, "b": 44},
        "height": 74 + 34 * max(3, len(panel.y.ticks)) if panel.across else 270,
    }
    if panel.across:
        layout["yaxis"] |= {"showgrid": False, "ticklen": 0}
    return {"data": data, "layout": {**_common(), **layout}}


def _traces(series: Series, panel: Panel, ends: tuple[float, float] | None) -> list[dict[str, Any]]:
    colour = f"--c-{series.method.key}"
    meta = {"sampler": series.tags.sampler, "weights": series.tags.weights, "name": series.label}
    common: dict[str, Any] = {"type": "scatter", "meta": meta, "hovertemplate": HOVER}
    if series.kind == "band":
        p, (left, right) = series.points[0], ends or (0.0, 1.0)
        level = {"x": [left, right], "y": [p.y, p.y], "mode": "lines", "line": {"color": colour, "width": 1.6}}
        traces = [{**common, **level, "text": [escape(p.note)] * 2}]
        if p.low is not None:
            area = {"x": [left, right, right, left], "y": [p.low, p.low, p.high, p.high], "fill": "toself"}
            style = {
                "mode": "none",
                "fillcolor": f"{colour}-soft",
                "hoverinfo": "skip",
                "type": "scatter",
                "meta": meta,
            }
            traces.insert(0, {**area, **style})
        return traces
    marker = {"color": colour, "size": round(7 * series.size, 1), "symbol": series.method.symbol}
    bars: dict[str, Any] = {
        "error_x" if panel.across else "error_y": _bars(series.points, across=panel.across, colour=colour)
    }
    if any(p.x_ends for p in series.points):
        measured = [replace(p, low=p.x_ends and p.x_ends[0], high=p.x_ends and p.x_ends[1]) for p in series.points]
        bars["error_x"] = _bars(measured, across=True, colour=colour)
    return [
        {
            **common,
            **bars,
            "mode": "lines+markers" if series.kind == "line" and len(series.points) > 1 else "markers",
            "x": [_round(p.x) for p in series.points],
            "y": [_round(p.y) for p in series.points],
            "text": [escape(p.note) for p in series.points],
            "marker": marker,
            "line": {"color": colour, "width": 1.6, "dash": series.method.dash},
        }
    ]


def _bars(points: list[Point], *, across: bool, colour: str) -> dict[str, Any]:
    def length(p: Point, end: float | None) -> float:
        return 0.0 if end is None else _round(abs(end - (p.x if across else p.y)))

    up, down = [length(p, p.high) for p in points], [length(p, p.low) for p in points]
    return {"array": up, "arrayminus": down, "symmetric": False, "thickness": 1.2, "width": 3, "color": colour}


def _heat(heat: Heat) -> dict[str, Any]:
    def square(column: int, row: int) -> Point | None:
        return heat.squares.get((column, row))

    grid = [[square(c, r) for c in range(len(heat.columns))] for r in range(len(heat.rows))]
    small = len(heat.columns) > 4
    trace = {
        "type": "heatmap",
        "z": [[p and _round(p.y) for p in row] for row in grid],
        "hovertext": [[escape(p.note) if p else "" for p in row] for row in grid],
        "text": [[_in_square(p, small, heat.top) if p else "" for p in row] for row in grid],
        "x": list(range(len(heat.columns))),
        "y": list(range(len(heat.rows))),
        "zmin": 0,
        "zmax": heat.top,
        "colorscale": "Cividis",
        "showscale": False,
        "hovertemplate": "%{hovertext}<extra></extra>",
        "texttemplate": "%{text}",
        "textfont": {"size": 11},
        "xgap": 1,
        "ygap": 1,
        "meta": {"sampler": heat.tags.sampler, "weights": heat.tags.weights, "name": heat.title},
    }
    layout = {
        "xaxis": _categories(heat.x, heat.columns),
        "yaxis": {**_categories(heat.y, heat.rows), "autorange": "reversed"},
        "margin": {"l": 52, "r": 10, "t": 6, "b": 44},
        "height": 70 + 36 * max(4, len(heat.rows)),
    }
    return {"data": [trace], "layout": {**_common(), **layout}}


def _in_square(p: Point, small: bool, top: float) -> str:
    digits = ".2f" if top == 1 else ".2g"
    if small or p.low is None or p.high is None:
        return format(p.y, digits)
    return f"{p.y:{digits}}<br>{p.low:{digits}} to {p.high:{digits}}"


def _categories(title: str, names: list[str]) -> dict[str, Any]:
    ticks = {"tickmode": "array", "tickvals": list(range(len(names))), "ticktext": [escape(n) for n in names]}
    return {"title": {"text": title, "standoff": 6}, **ticks, "fixedrange": True, "showgrid": False, "zeroline": False}


def _axis(axis: Axis) -> dict[str, Any]:
    layout: dict[str, Any] = {
        "title": {"text": escape(axis.title), "standoff": 6},
        "type": "log" if axis.log else "linear",
    }
    layout |= {"automargin": True, "fixedrange": True, "gridcolor": "--grid", "linecolor": "--line", "zeroline": False}
    if axis.ticks:
        names = [escape(name) for name in axis.ticks.values()]
        layout |= {"tickmode": "array", "tickvals": list(axis.ticks), "ticktext": names}
    return layout


def _range(axis: Axis) -> list[float] | None:
    if axis.range is None:
        return None
    return [math.log10(v) for v in axis.range] if axis.log else list(axis.range)


def _guide_line(dash: str) -> dict[str, Any]:
    return {"color": "--line", "width": 1.2, "dash": dash}


def _common() -> dict[str, Any]:
    return {
        "font": FONT,
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "showlegend": False,
        "hovermode": "closest",
        "dragmode": False,
        "hoverlabel": {"bgcolor": "--paper", "bordercolor": "--line", "font": FONT, "align": "left"},
    }


def _round(value: float) -> float:
    """Round to six digits, which no plot resolves, to save bytes."""
    return float(f"{value:.6g}")
