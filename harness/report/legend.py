"""The legend of a group of plots: each method once, with its marker and line."""

from dataclasses import dataclass, field

from markupsafe import Markup

from harness.report.describe import Group, Panel, Series

SHAPES = {
    "circle": Markup('<circle cx="14" cy="8" r="4"/>'),
    "diamond": Markup('<path d="M14 3L19 8L14 13L9 8Z"/>'),
    "square": Markup('<path d="M10 4H18V12H10Z"/>'),
    "hexagon": Markup('<path d="M14 3L18.3 5.5V10.5L14 13L9.7 10.5V5.5Z"/>'),
    "triangle-up": Markup('<path d="M14 3L19 12H9Z"/>'),
    "triangle-down": Markup('<path d="M14 13L19 4H9Z"/>'),
    "cross": Markup('<path d="M12.5 3H15.5V6.5H19V9.5H15.5V13H12.5V9.5H9V6.5H12.5Z"/>'),
    "x": Markup('<path d="M10 4L18 12M18 4L10 12" stroke-width="2.5"/>'),
    "star": Markup('<path d="M14 3L15.5 6.6L19 7L16.3 9.4L17 13L14 11L11 13L11.7 9.4L9 7L12.5 6.6Z"/>'),
}
DASHES = {"solid": "none", "dash": "6 3", "dot": "2 3", "dashdot": "6 3 2 3"}
DASHES |= {"longdash": "10 3", "longdashdot": "10 3 2 3"}


@dataclass(frozen=True)
class Legend:
    """The entries of a legend; empty for heat maps, which have titles instead.

    series: one for each method and remark.
    guides: dashes by label.
    """

    series: list[Series] = field(default_factory=list)
    guides: dict[str, str] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.series or self.guides)


def legend(group: Group) -> Legend:
    """Return the legend of a group of panels."""
    entries: dict[tuple, Series] = {}
    guides: dict[str, str] = {}
    for panel in group.panels:
        if isinstance(panel, Panel):
            for series in panel.series:
                entries.setdefault((series.method, series.label), series)
            guides |= {g.label: g.dash for g in panel.guides if g.slope is not None}
    return Legend(list(entries.values()), guides)
