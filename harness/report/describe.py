"""The description of a page, independent of any drawing library.

Sections hold figures, tables and sentences. `page` draws them as a file, `wandb_page` as a W&B
report, `markdown` as tables.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from harness.common.table import Table
from harness.report.methods import Method

INTERVAL = "95 % interval"
QUARTILES = "quartiles"


@dataclass(frozen=True)
class Tags:
    """Values for the page's filters.

    An empty tag passes every filter of its kind: exact ALiBi has no sampler.
    """

    model: str = ""
    task: str = ""
    sampler: str = ""
    weights: str = ""


@dataclass(frozen=True)
class Point:
    """A value y and its interval at x.

    note: text shown on hovering.
    x_ends: the interval of x, where x was measured too.
    """

    x: float
    y: float
    low: float | None
    high: float | None
    note: str
    x_ends: tuple[float, float] | None = None


@dataclass(frozen=True)
class Series:
    """Points of one method.

    kind: "line", "dots", or "band" for a level over the whole axis, with its interval.
    remark: how it differs from other series of its method in the same figure.
    size: relative size of the markers.
    """

    method: Method
    points: list[Point]
    kind: str = "line"
    tags: Tags = Tags()
    remark: str = ""
    size: float = 1.0

    @property
    def label(self) -> str:
        """Return the label of the legend."""
        return f"{self.method.name}, {self.remark}" if self.remark else self.method.name


@dataclass(frozen=True)
class Axis:
    title: str
    log: bool = False
    ticks: dict[float, str] = field(default_factory=dict)
    range: tuple[float, float] | None = None


@dataclass(frozen=True)
class Guide:
    """A line without data.

    It goes through (x, y) with this slope in log-log axes, or is vertical at x if slope is None.
    """

    label: str
    x: float
    y: float = 0.0
    slope: float | None = None

    @property
    def dash(self) -> str:
        """Return Plotly's name of the dash, equal in all plots."""
        dashes: dict[float | None, str] = {None: "solid", 0: "dashdot", 1: "dot", 2: "dash"}
        return dashes[self.slope]


@dataclass(frozen=True)
class Panel:
    """One small figure.

    across: a forest plot, with intervals along x and one row for each of `y.ticks`.
    bars: name of the points' intervals.
    """

    title: str
    x: Axis
    y: Axis
    series: list[Series]
    guides: list[Guide] = field(default_factory=list)
    across: bool = False
    bars: str = INTERVAL


@dataclass(frozen=True)
class Heat:
    """Values on a grid of two categories: squares[column, row].y is the value, from 0 to `top`."""

    title: str
    x: str
    y: str
    columns: list[str]
    rows: list[str]
    squares: dict[tuple[int, int], Point]
    tags: Tags = Tags()
    bars: str = INTERVAL
    top: float = 1.0


@dataclass(frozen=True)
class Live:
    """Axes of a plot over a model's runs in a W&B project, as config keys and metric names."""

    x: str
    y: str
    log_x: bool = False
    log_y: bool = False
    model: str = ""


@dataclass(frozen=True)
class Group:
    """Panels with a common legend.

    live: the plot of this metric over the runs of a W&B project.
    """

    title: str
    panels: Sequence[Panel | Heat]
    tags: Tags = Tags()
    live: Live | None = None


@dataclass(frozen=True)
class Grid:
    """A table whose rows can be filtered and sorted.

    tags: of each row. details: of each row, (name, value) pairs that can be opened.
    status: the column to filter by status.
    fold: whether the table starts closed.
    group: tags of the whole table.
    """

    table: Table
    tags: list[Tags]
    details: list[list[tuple[str, str]]] = field(default_factory=list)
    status: int | None = None
    fold: bool = False
    group: Tags = Tags()


@dataclass(frozen=True)
class Text:
    sentence: str
    tags: Tags = Tags()


@dataclass(frozen=True)
class Section:
    """A section of the page.

    look_for: the pattern to look for, in sentences.
    commands: commands that made its records.
    missing: (sentence, command) for each gap.
    """

    key: str
    title: str
    look_for: str
    blocks: Sequence[Group | Grid | Text] = field(default_factory=list)
    commands: list[str] = field(default_factory=list)
    missing: list[tuple[str, str]] = field(default_factory=list)


@dataclass(frozen=True)
class Page:
    title: str
    lead: str
    sections: list[Section]
    choices: dict[str, list[str]]  # values by filter


def points(candidates: Iterable[Point | None]) -> list[Point]:
    """Return the finite points, without intervals that are not finite."""
    drawable = []
    for p in candidates:
        if p is None or not (finite(p.x) and finite(p.y)):
            continue
        bounded = finite(p.low) and finite(p.high)
        drawable.append(p if bounded else replace(p, low=None, high=None))
    return drawable


def finite(value: object) -> bool:
    """Return whether the value is a finite number."""
    return isinstance(value, (int, float)) and math.isfinite(value)
