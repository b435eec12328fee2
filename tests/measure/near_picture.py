"""`python -m tests.measure.near_picture`: draw docs/pictures/near.svg from near_text.json and
near_retrieval.json in docs/results.

Loss against visited pairs, on text and on retrieval: Positional LSH, slope window and sliding
window. An arrow leads from a method without a near field to the same with one.
"""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from harness.attentions.base import TILE
from harness.common.files import read_json
from harness.common.paths import ROOT
from harness.pareto import picture
from harness.pareto.picture import text
from tests.measure.near import FILES

PICTURE = ROOT / "docs" / "pictures" / "near.svg"
MODEL, CONTEXT = "tiny-plain", 1024  # of the retrieval that is drawn
# model, form of its text, and title
TEXTS = (("tiny-books", "paragraphs", "Moby-Dick"), ("tiny-code", "file", "held-out source code"))
COLOURS = {**{name: picture.COLOURS[name] for name in ("sliding", "window")}, "plsh": picture.MASKS}
ASIDE = {"sliding": 6.0, "window": 0.0, "plsh": -6.0}  # so that marks of equal pairs do not hide one another
NAMES = {"plsh": "PLSH, 16 masks, rb", "window": "slope window", "sliding": "sliding window"}
WIDTH, HEIGHT, TOP, BOTTOM, LEFT, GAP = 1000, 360, 74, 48, 62, 62
PAIRS = (40.0, 190.0)  # the axis of pairs


class Mark(NamedTuple):
    """A loss with its interval. method: a key of COLOURS. near: whether it has a near field."""

    method: str
    near: bool
    pairs: float
    loss: float
    low: float
    high: float


@dataclass(frozen=True)
class Plot:
    title: str
    axis: str
    marks: list[Mark]


def plots() -> list[Plot]:
    """Return the plots of the committed figures: each of TEXTS, then retrieval."""
    on_text, retrieval = (read_json(FILES[part]) for part in ("text", "retrieval"))
    assert on_text is not None and retrieval is not None, "the figures are missing"
    found = [
        Plot(
            f"{model}, {title}",
            "bits per byte above exact ALiBi",
            [
                mark
                for row in on_text["models"][model]["forms"][form]
                if row["minus_exact"] and (mark := _text_mark(row))
            ],
        )
        for model, form, title in TEXTS
    ]
    rows = [r for r in retrieval["rows"] if (r["model"], r["context"]) == (MODEL, CONTEXT)]
    marks = [_retrieval_mark(row) for row in rows if row["name"] != "exact"]
    return [*found, Plot(f"{MODEL}, retrieval, {CONTEXT:,} tokens", "accuracy below exact ALiBi", marks)]


def _text_mark(row: dict) -> Mark | None:
    label, change = row["label"], row["minus_exact"]
    if " count" in label:
        return None
    method = "plsh" if label.startswith("PLSH") else "sliding" if label.startswith("sliding") else "window"
    near = f"+{TILE} near" in label
    return Mark(method, near, row["pairs_per_row"]["fused"], change["value"], change["low"], change["high"])


def _retrieval_mark(row: dict) -> Mark:
    change = row["minus"]["exact"]
    method, _, near = row["name"].partition(" ")
    method = "sliding" if method == "tile" else method
    near_field = method != "sliding" and near == str(TILE)
    return Mark(method, near_field, row["pairs_per_row"], -change["value"], -change["high"], -change["low"])


def svg(drawn: list[Plot]) -> str:
    """Return the picture of these plots, side by side."""
    wide = (WIDTH - LEFT - GAP * (len(drawn) - 1) - 14) / len(drawn)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        'font-family="system-ui, Segoe UI, Roboto, DejaVu Sans, sans-serif" font-size="12" fill="#1a1a1a">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        *_legend(),
    ]
    for i, plot in enumerate(drawn):
        parts += _plot(plot, LEFT + i * (wide + GAP), wide)
    return "\n".join([*parts, "</svg>", ""])


def _legend() -> list[str]:
    parts, x = [], float(LEFT)
    for method, name in NAMES.items():
        parts += [_symbol(Mark(method, False, 0, 0, 0, 0), x + 6, 20), text(x + 18, 24, name)]
        x += 34 + 6.6 * len(name)
    return [*parts, text(x + 6, 24, f"filled: with a near field of {TILE} tokens", colour="#595959")]


def _plot(plot: Plot, left: float, wide: float) -> list[str]:
    high = max([mark.high for mark in plot.marks] + [0.0])
    low = min([mark.low for mark in plot.marks] + [0.0])
    margin = 0.06 * (high - low)
    low, high = low - margin, high + margin
    bottom = HEIGHT - BOTTOM

    def x_of(pairs: float) -> float:
        return left + wide * (pairs - PAIRS[0]) / (PAIRS[1] - PAIRS[0])

    def y_of(loss: float) -> float:
        return bottom - (bottom - TOP) * (loss - low) / (high - low)

    parts = [text(left, TOP - 24, plot.title, bold=True), text(left, TOP - 9, plot.axis, colour="#595959")]
    for tick in _ticks(low, high):
        y = y_of(tick)
        colour = "#767676" if tick == 0 else "#e7e7e4"
        parts.append(f'<line x1="{left:.1f}" x2="{left + wide:.1f}" y1="{y:.1f}" y2="{y:.1f}" stroke="{colour}"/>')
        parts.append(text(left - 6, y + 4, f"{tick:.4g}".replace("-", "\u2212"), anchor="end"))
    for pairs in (50, 100, 150):
        parts.append(text(x_of(pairs), bottom + 17, str(pairs), anchor="middle"))
    parts.append(text(left + wide / 2, bottom + 35, "visited pairs per row", anchor="middle", colour="#595959"))
    for method, colour in COLOURS.items():
        marks = sorted((m for m in plot.marks if m.method == method), key=lambda m: (m.near, m.pairs))
        points = [(x_of(m.pairs) + ASIDE[method], y_of(m.loss)) for m in marks]
        if method == "sliding":
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
            parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-opacity="0.5"/>')
        elif len(points) == 2:
            parts += _arrow(*points, colour)
        for mark, (x, y) in zip(marks, points, strict=True):
            ends = y_of(mark.low), y_of(mark.high)
            parts.append(
                f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{ends[0]:.1f}" y2="{ends[1]:.1f}" stroke="{colour}" '
                'stroke-width="1.5"/>'
            )
            parts.append(_symbol(mark, x, y))
    return parts


def _symbol(mark: Mark, x: float, y: float) -> str:
    colour = COLOURS[mark.method]
    look = f'fill="{colour if mark.near else "#ffffff"}" stroke="{colour}" stroke-width="2"'
    if mark.method == "plsh":
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" {look}/>'
    if mark.method == "window":
        return f'<rect x="{x - 4.5:.1f}" y="{y - 4.5:.1f}" width="9" height="9" {look}/>'
    corners = " ".join(f"{x + dx:.1f},{y + dy:.1f}" for dx, dy in ((0, -6), (6, 0), (0, 6), (-6, 0)))
    return f'<polygon points="{corners}" {look}/>'


def _arrow(start: tuple[float, float], end: tuple[float, float], colour: str) -> list[str]:
    """A line that ends in a tip before the mark at its end; none between marks that touch."""
    dx, dy = end[0] - start[0], end[1] - start[1]
    length = (dx * dx + dy * dy) ** 0.5
    if length < 24:
        return []
    ux, uy = dx / length, dy / length
    tip = end[0] - 9 * ux, end[1] - 9 * uy
    base = tip[0] - 8 * ux, tip[1] - 8 * uy
    corners = [tip, (base[0] - 4 * uy, base[1] + 4 * ux), (base[0] + 4 * uy, base[1] - 4 * ux)]
    return [
        f'<line x1="{start[0]:.1f}" y1="{start[1]:.1f}" x2="{base[0]:.1f}" y2="{base[1]:.1f}" stroke="{colour}"/>',
        f'<polygon points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in corners)}" fill="{colour}"/>',
    ]


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers between two ends, at most seven."""
    steps = (m * 10.0**e for e in range(-6, 3) for m in (1, 2, 5))
    step = next(s for s in steps if (high - low) / s <= 7)
    first = -int(-low // step) if low < 0 else 0
    return [round(i * step, 10) for i in range(first - 1, int(high / step) + 2) if low <= i * step <= high]


def main(arguments: list[str] | None = None) -> int:
    """Return 0."""
    parser = argparse.ArgumentParser(prog="python -m tests.measure.near_picture", description=__doc__.split("\n\n")[0])
    parser.add_argument("--out", type=Path, default=PICTURE, metavar="FILE.svg")
    given = parser.parse_args(arguments)
    given.out.write_text(svg(plots()))
    print(given.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
