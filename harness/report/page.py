"""The page as a single HTML file.

It opens from disk, needs no network and contains one copy of Plotly's library. Its templates are
page.html.j2, plots.html.j2 and table.html.j2.
"""

import json
from dataclasses import dataclass

from markupsafe import Markup
from plotly.offline import get_plotlyjs

from harness.report.describe import Grid, Group, Heat, Page, Panel, Text
from harness.report.figures import figure
from harness.report.legend import DASHES, SHAPES, Legend, legend
from harness.report.markup import FILTERS, TEMPLATES, template_environment
from harness.report.tables import cell_class, numeric_columns

MAX_OPEN_PANELS = 9  # of a group; the rest can be unfolded


def draw(page: Page, *, drawn_by: str) -> str:
    """Return the HTML of a page; drawn_by: the footer, with the command and the time."""
    drawing = template_environment()
    for name, kind in (("text", Text), ("grid", Grid), ("heat", Heat)):
        drawing.tests[name] = lambda block, kind=kind: isinstance(block, kind)
    drawing.globals |= {"shown": MAX_OPEN_PANELS, "dashes": DASHES, "shapes": SHAPES}
    drawing.globals |= {"cell_class": cell_class, "numeric_columns": numeric_columns}
    return drawing.get_template("page.html.j2").render(
        page=page,
        drawn_by=drawn_by,
        filters=FILTERS,
        plots=Plots(),
        style=Markup((TEMPLATES / "page.css").read_text()),
        script=Markup((TEMPLATES / "page.js").read_text()),
        plotly=Markup(get_plotlyjs()),
    )


@dataclass(frozen=True)
class Plot:
    """The element of one figure: its id, its height in pixels and its accessible label."""

    name: str
    height: int
    label: str


class Plots:
    """The figures of a page, in the order of its template."""

    def __init__(self):
        self._figures: dict[str, dict] = {}

    def add(self, key: str, panel: Panel | Heat) -> Plot:
        """Add a figure to the section of this key and return its element."""
        name = f"{key}-{len(self._figures)}"
        self._figures[name] = figure(panel)
        heat = isinstance(panel, Heat)
        axes = f"{panel.y} and {panel.x}" if heat else f"{panel.y.title or 'rows'} against {panel.x.title}"
        label = f"{panel.title}: {axes}. The values stand in the table below."
        return Plot(name, self._figures[name]["layout"]["height"], label)

    def legend(self, group: Group) -> Legend:
        """Return the legend of a group."""
        return legend(group)

    def json(self) -> Markup:
        """Return all figures as JSON that cannot close its script element."""
        text = json.dumps(self._figures, allow_nan=False, separators=(",", ":"))
        return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))
