"""The page as one file: opens from disk, asks nothing of a network, carries one copy of Plotly's
library. Its HTML stands in page.html.j2, plots.html.j2 and table.html.j2."""

import json
from dataclasses import dataclass

from markupsafe import Markup
from plotly.offline import get_plotlyjs

from harness.report.describe import Grid, Group, Heat, Page, Panel, Text
from harness.report.figures import figure
from harness.report.legend import DASHES, SHAPES, Legend, legend
from harness.report.markup import FILTERS, HERE, environment
from harness.report.tables import look, numeric_columns

SHOWN = 9  # panels of a group; the rest can be opened


def draw(page: Page, *, drawn_by: str) -> str:
    """The whole file. `drawn_by` says by which command and when, for the foot of the page."""
    drawing = environment()
    for name, kind in (("text", Text), ("grid", Grid), ("heat", Heat)):
        drawing.tests[name] = lambda block, kind=kind: isinstance(block, kind)
    drawing.globals |= {"shown": SHOWN, "dashes": DASHES, "shapes": SHAPES, "look": look}
    drawing.globals |= {"numeric_columns": numeric_columns}
    return drawing.get_template("page.html.j2").render(
        page=page,
        drawn_by=drawn_by,
        filters=FILTERS,
        plots=Plots(),
        style=Markup((HERE / "page.css").read_text()),
        script=Markup((HERE / "page.js").read_text()),
        plotly=Markup(get_plotlyjs()),
    )


@dataclass(frozen=True)
class Plot:
    """The place of one figure on the page. height in pixels; label: what it shows, in a sentence."""

    name: str
    height: int
    label: str


class Plots:
    """The figures of a page, in the order in which its template asks for them."""

    def __init__(self):
        self._figures: dict[str, dict] = {}

    def add(self, key: str, panel: Panel | Heat) -> Plot:
        """One more, in the section of this key."""
        name = f"{key}-{len(self._figures)}"
        self._figures[name] = figure(panel)
        heat = isinstance(panel, Heat)
        what = f"{panel.y} and {panel.x}" if heat else f"{panel.y.title or 'rows'} against {panel.x.title}"
        label = f"{panel.title}: {what}. The values stand in the table below."
        return Plot(name, self._figures[name]["layout"]["height"], label)

    def legend(self, group: Group) -> Legend:
        return legend(group)

    def json(self) -> Markup:
        """All of them, as JSON that cannot end the script element it stands in."""
        text = json.dumps(self._figures, allow_nan=False, separators=(",", ":"))
        return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))
