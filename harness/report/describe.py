"""What a page shows, said once and without a drawing library: sections of figures, tables and
sentences. `page` draws it as a file, `wandb_page` as a W&B report, `markdown` as tables."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from harness.common.table import Table
from harness.report.methods import Method

INTERVAL = "95 % interval"
QUARTILES = "quartiles"


@dataclass(frozen=True)
class Tags:
    """What the page's filters see; an empty tag passes every filter of its kind (exact ALiBi has no
    sampler)."""

    model: str = ""
    task: str = ""
    sampler: str = ""
    weights: str = ""


@dataclass(frozen=True)
class Point:
    """A figure and its interval; `note` is what a reader sees on pointing at it. `x_ends`: the
    interval of x, where x was measured too."""

    x: float
    y: float
    low: float | None
    high: float | None
    note: str
    x_ends: tuple[float, float] | None = None


@dataclass(frozen=True)
class Series:
    """Points of one method. kind: line, dots, or band (a level that holds for the whole axis, with
    its interval)."""

    method: Method
    points: list[Point]
    kind: str = "line"
    tags: Tags = Tags()
    remark: str = ""  # what sets it apart from other series of its method in the same figure
    size: float = 1.0  # of its markers

    @property
    def label(self) -> str:
        return f"{self.method.name}, {self.remark}" if self.remark else self.method.name


@dataclass(frozen=True)
class Axis:
    title: str
    log: bool = False
    ticks: dict[float, str] = field(default_factory=dict)
    range: tuple[float, float] | None = None


@dataclass(frozen=True)
class Guide:
    """A line without data: through (x, y) with this slope in log-log axes, or vertical at x if
    slope is None."""

    label: str
    x: float
    y: float = 0.0
    slope: float | None = None

    @property
    def dash(self) -> str:
        """The line's look, the same in every plot."""
        looks: dict[float | None, str] = {None: "solid", 0: "dashdot", 1: "dot", 2: "dash"}
        return looks[self.slope]


@dataclass(frozen=True)
class Panel:
    """One small figure. `across`: the interval lies along x and the rows of `y.ticks` are compared
    (a forest plot). `bars`: what the interval of a point is."""

    title: str
    x: Axis
    y: Axis
    series: list[Series]
    guides: list[Guide] = field(default_factory=list)
    across: bool = False
    bars: str = INTERVAL


@dataclass(frozen=True)
class Heat:
    """Values on a grid of two categories: squares[column, row].y is the value."""

    title: str
    x: str
    y: str
    columns: list[str]
    rows: list[str]
    squares: dict[tuple[int, int], Point]
    tags: Tags = Tags()
    bars: str = INTERVAL


@dataclass(frozen=True)
class Live:
    """The same question asked of the runs of a model in a W&B project: config keys and metric
    names."""

    x: str
    y: str
    log_x: bool = False
    log_y: bool = False
    model: str = ""


@dataclass(frozen=True)
class Group:
    """Panels with one legend. `live` is the panel of a W&B project that shows the same metric of
    its runs."""

    title: str
    panels: Sequence[Panel | Heat]
    tags: Tags = Tags()
    live: Live | None = None


@dataclass(frozen=True)
class Grid:
    """A table whose rows can be filtered and sorted, each with details that can be opened. `fold`:
    closed at first."""

    table: Table
    tags: list[Tags]
    details: list[list[tuple[str, str]]] = field(default_factory=list)
    status: int | None = None  # the column to filter by status
    fold: bool = False
    group: Tags = Tags()


@dataclass(frozen=True)
class Text:
    sentence: str
    tags: Tags = Tags()


@dataclass(frozen=True)
class Section:
    """`sees` says what to look for; `missing` are sentences with the command that would fill the
    gap."""

    key: str
    title: str
    sees: str
    blocks: Sequence[Group | Grid | Text] = field(default_factory=list)
    commands: list[str] = field(default_factory=list)
    missing: list[tuple[str, str]] = field(default_factory=list)


@dataclass(frozen=True)
class Page:
    title: str
    lead: str
    sections: list[Section]
    choices: dict[str, list[str]]  # filter -> what it offers


def points(candidates: Iterable[Point | None]) -> list[Point]:
    """Those that can be drawn: what is not finite is left to the tables, an interval that is not
    finite is left out."""
    kept = []
    for p in candidates:
        if p is None or not (finite(p.x) and finite(p.y)):
            continue
        whole = finite(p.low) and finite(p.high)
        kept.append(p if whole else replace(p, low=None, high=None))
    return kept


def finite(value: object) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)
