"""The picture of a verdict: quality against visited pairs, a plot for each model, task and context."""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

from harness.common.stats import Metric
from harness.pareto.record import Point

# by the key of a method's style: a colour of the palette of Okabe and Ito, darkened for white paper
COLOURS = {"exact": "#1a1a1a", "window": "#007f5f", "sliding": "#2f6db5", "other": "#8a5aa8"}
MASKS = "#c44e00"  # of all masks
SHAPES = ("circle", "square", "diamond", "triangle")
TASKS = ("fidelity/kl", "perplexity/bits_per_byte")  # drawn beside every accuracy
WIDE, HIGH, LEFT, GAP, ROW, TOP = 260, 190, 62, 44, 84, 20
LEAST = 1e-5  # lower end of a logarithmic axis


@dataclass(frozen=True)
class Mark:
    """A point of a plot. curve: the method without its size. style: key of its colour."""

    curve: str
    style: str
    pairs: float
    metric: Metric


@dataclass(frozen=True)
class Plot:
    """One plot. log: whether the vertical axis is logarithmic."""

    title: str
    axis: str
    log: bool
    marks: list[Mark]


def plots(points: Sequence[Point]) -> list[list[Plot]]:
    """Return rows of plots: a row for each model and metric, a plot for each context."""
    rows: dict[tuple[str, str], dict[int, list[Mark]]] = defaultdict(lambda: defaultdict(list))
    for p in points:
        for name, metric in p.metrics.items():
            task = name.partition(" (")[0]  # without the words that tell several questions apart
            drawn = task in TASKS or metric.unit in ("fraction", "score")
            if drawn and p.cost.pairs is not None:
                rows[p.model, name][p.context].append(Mark(p.curve, p.style, p.cost.pairs, metric))
    return [
        [
            Plot(
                f"{model}, {context:,} tokens",
                name.replace("/", ": ").replace("_", " "),
                name.startswith(TASKS[0]),
                marks,
            )
            for context, marks in sorted(by_context.items())
        ]
        for (model, name), by_context in rows.items()
    ]


def svg(points: Sequence[Point]) -> str:
    """Return the picture of these points."""
    rows = plots(points)
    curves = list(dict.fromkeys((m.curve, m.style) for row in rows for plot in row for m in plot.marks))
    columns = max((len(row) for row in rows), default=1)
    width = LEFT + columns * (WIDE + GAP)
    legend, lines = _legend(curves, width)
    top = TOP + 20 * lines
    height = top + len(rows) * (HIGH + ROW)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="system-ui, Segoe UI, Roboto, DejaVu Sans, sans-serif" font-size="12" fill="#1a1a1a">',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        *legend,
    ]
    looks = {curve: _look(curve, style, curves) for curve, style in curves}
    for i, row in enumerate(rows):
        for j, plot in enumerate(row):
            parts += _plot(plot, LEFT + j * (WIDE + GAP), top + i * (HIGH + ROW) + 40, looks)
    return "\n".join([*parts, "</svg>", ""])


def _look(curve: str, style: str, curves: Sequence[tuple[str, str]]) -> tuple[str, str, bool]:
    """Colour, shape, and whether a curve is filled: of curves of one colour the shapes differ."""
    colour = COLOURS.get(style, MASKS)
    alike = [name for name, other in curves if COLOURS.get(other, MASKS) == colour]
    return colour, SHAPES[alike.index(curve) % len(SHAPES)], "near" in curve


def _legend(curves: Sequence[tuple[str, str]], width: int) -> tuple[list[str], int]:
    parts, x, line = [], float(LEFT), 0
    for curve, style in curves:
        wide = 40 + 6.6 * len(curve)
        if x + wide > width and x > LEFT:
            x, line = float(LEFT), line + 1
        parts += [_symbol(_look(curve, style, curves), x + 6, 16 + 20 * line), text(x + 18, 20 + 20 * line, curve)]
        x += wide
    return parts, line + 1


def _plot(plot: Plot, left: float, top: float, looks: dict[str, tuple[str, str, bool]]) -> list[str]:
    bottom = top + HIGH
    values = [v for m in plot.marks for v in (m.metric.value, m.metric.low, m.metric.high) if v is not None]
    share = not plot.log and all(0 <= v <= 1 for v in values)
    low, high = _ends(values, log=plot.log, share=share)
    most = max(m.pairs for m in plot.marks) * 1.05

    def x_of(pairs: float) -> float:
        return left + WIDE * pairs / most

    def y_of(value: float) -> float:
        if plot.log:
            place = (math.log10(max(value, low)) - math.log10(low)) / (math.log10(high) - math.log10(low))
        else:
            place = (value - low) / (high - low)
        return bottom - HIGH * min(1.0, max(0.0, place))

    parts = [text(left, top - 24, plot.title, bold=True), text(left, top - 9, plot.axis, colour="#595959")]
    for tick in _ticks(low, high, log=plot.log):
        y = y_of(tick)
        parts.append(f'<line x1="{left:.1f}" x2="{left + WIDE:.1f}" y1="{y:.1f}" y2="{y:.1f}" stroke="#e7e7e4"/>')
        parts.append(text(left - 6, y + 4, f"{tick:.10g}", anchor="end"))
    for pairs in _ticks(0, most, log=False):
        parts.append(text(x_of(pairs), bottom + 16, f"{pairs:g}", anchor="middle"))
    parts.append(text(left + WIDE / 2, bottom + 32, "visited pairs per row", anchor="middle", colour="#595959"))
    curves: dict[str, list[Mark]] = defaultdict(list)
    for mark in plot.marks:
        if not plot.log or mark.metric.value > 0:
            curves[mark.curve].append(mark)
    for curve, marks in curves.items():
        marks.sort(key=lambda m: m.pairs)
        colour = looks[curve][0]
        path = " ".join(f"{x_of(m.pairs):.1f},{y_of(m.metric.value):.1f}" for m in marks)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-opacity="0.5"/>')
        for m in marks:
            x = x_of(m.pairs)
            if m.metric.low is not None and m.metric.high is not None:
                a, b = y_of(m.metric.low), y_of(m.metric.high)
                parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{a:.1f}" y2="{b:.1f}" stroke="{colour}"/>')
            parts.append(_symbol(looks[curve], x, y_of(m.metric.value)))
    return parts


def _ends(values: Sequence[float], *, log: bool, share: bool) -> tuple[float, float]:
    if share:
        return 0.0, 1.0
    if log:
        positive = [max(v, LEAST) for v in values if v > 0] or [LEAST, 1.0]
        return 10 ** math.floor(math.log10(min(positive))), 10 ** math.ceil(math.log10(max(positive)) + 1e-9)
    low, high = min(values), max(values)
    margin = 0.06 * (high - low) or 0.5
    return low - margin, high + margin


def _ticks(low: float, high: float, *, log: bool) -> Iterable[float]:
    """Round numbers between two ends, at most seven; the decades of a logarithmic axis."""
    if log:
        return [10.0**e for e in range(round(math.log10(low)), round(math.log10(high)) + 1)]
    steps = (m * 10.0**e for e in range(-6, 7) for m in (1, 2, 5))
    step = next(s for s in steps if (high - low) / s <= 6)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 10) for i in range(first, first + 8) if i * step <= high]


def _symbol(look: tuple[str, str, bool], x: float, y: float) -> str:
    colour, shape, filled = look
    drawn = f'fill="{colour if filled else "#ffffff"}" stroke="{colour}" stroke-width="1.5"'
    if shape == "circle":
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" {drawn}/>'
    if shape == "square":
        return f'<rect x="{x - 3.5:.1f}" y="{y - 3.5:.1f}" width="7" height="7" {drawn}/>'
    around = ((0, -5), (5, 0), (0, 5), (-5, 0)) if shape == "diamond" else ((0, -5), (5, 4), (-5, 4))
    return f'<polygon points="{" ".join(f"{x + a:.1f},{y + b:.1f}" for a, b in around)}" {drawn}/>'


def text(x: float, y: float, words: str, *, anchor: str = "start", colour: str = "", bold: bool = False) -> str:
    """Return a text of an SVG picture.

    Args:
        x, y: the place of its anchor.
        words: the text.
        anchor: "start", "middle" or "end" of it.
        colour: of the letters; black without it.
        bold: whether they are bold.
    """
    look = f' fill="{colour}"' * bool(colour) + ' font-weight="600"' * bold
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{look}>{escape(words)}</text>'
