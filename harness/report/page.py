"""The page as one file: opens from disk, asks nothing of a network, carries one copy of Plotly's
library."""

import json
from pathlib import Path

from plotly.offline import get_plotlyjs

from harness.report.describe import Grid, Group, Heat, Page, Panel, Section, Text
from harness.report.figures import figure
from harness.report.legend import legend
from harness.report.markup import FILTERS, attributes, escaped
from harness.report.tables import drawn_table

HERE = Path(__file__).parent
SHOWN = 9  # panels of a group; the rest can be opened
# nothing is fetched, whatever a record may hold
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data: blob:"


def draw(page: Page, *, drawn_by: str) -> str:
    """The whole file. `drawn_by` says by which command and when, for the foot of the page."""
    figures: dict[str, dict] = {}
    body = "\n".join(_section(section, figures) for section in page.sections)
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
        '<meta name="color-scheme" content="light dark">',
        f"<title>{escaped(page.title)}</title>",
        f"<style>{(HERE / 'page.css').read_text()}</style></head><body>",
        '<a class="skip" href="#main">To the results</a>',
        f"<header><h1>{escaped(page.title)}</h1><p>{escaped(page.lead)}</p>{_contents(page)}{_filters(page)}</header>",
        "<noscript><p>The plots and filters need JavaScript; the tables do not.</p></noscript>",
        f'<main id="main">{body}</main><footer><p>{escaped(drawn_by)}</p></footer>',
        f'<script type="application/json" id="figures">{_json(figures)}</script>',
        f"<script>{get_plotlyjs()}</script>",
        f"<script>{(HERE / 'page.js').read_text()}</script>",
        "</body></html>\n",
    ]
    return "\n".join(parts)


def _json(value: object) -> str:
    """JSON that cannot end the script element it stands in."""
    told = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return told.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _contents(page: Page) -> str:
    items = "".join(f'<li><a href="#{s.key}">{escaped(s.title)}</a></li>' for s in page.sections)
    return f'<nav aria-label="Contents"><ol>{items}</ol></nav>'


def _filters(page: Page) -> str:
    """One list for each property that has more than one value."""
    fields = []
    for name in FILTERS:
        values = page.choices[name]
        if len(values) > 1:
            options = "".join(f'<option value="{escaped(v)}">{escaped(v)}</option>' for v in values)
            fields.append(
                f'<label>{name}<select data-filter="{name}"><option value="">all</option>{options}</select></label>'
            )
    return f'<form class="filters" aria-label="Filters">{"".join(fields)}</form>' if fields else ""


def _section(section: Section, figures: dict[str, dict]) -> str:
    parts = [f'<section id="{section.key}" aria-labelledby="{section.key}-title">']
    parts.append(f'<h2 id="{section.key}-title">{escaped(section.title)}</h2>')
    if section.blocks:
        parts.append(f'<p class="sees">{escaped(section.sees)}</p>')
    for block in section.blocks:
        if isinstance(block, Text):
            parts.append(f"<p{attributes(block.tags)}>{escaped(block.sentence)}</p>")
        elif isinstance(block, Grid):
            parts.append(drawn_table(block))
        else:
            parts.append(_group(section.key, block, figures))
    for told, command in section.missing:
        parts.append(f'<p class="missing">{escaped(told)} <code>{escaped(command)}</code></p>')
    if section.commands:
        said = escaped("\n".join(section.commands))
        parts.append(
            f'<details class="how"><summary>Commands that made these records</summary><pre>{said}</pre></details>'
        )
    return "\n".join([*parts, "</section>"])


def _group(key: str, group: Group, figures: dict[str, dict]) -> str:
    drawn = [_figure(key, panel, figures) for panel in group.panels]
    kind = "heats" if isinstance(group.panels[0], Heat) else "panels"
    first, more = drawn[:SHOWN], drawn[SHOWN:]
    parts = [f"<div{attributes(group.tags, 'group')}><h3>{escaped(group.title)}</h3>", legend(group)]
    parts.append(f'<div class="{kind}">{"".join(first)}</div>')
    if more:
        parts.append(f'<details class="more"><summary>{len(more)} more plots</summary>')
        parts.append(f'<div class="{kind}">{"".join(more)}</div></details>')
    return "".join([*parts, "</div>"])


def _figure(key: str, panel: Panel | Heat, figures: dict[str, dict]) -> str:
    name = f"{key}-{len(figures)}"
    figures[name] = figure(panel)
    height = figures[name]["layout"]["height"]
    heat = isinstance(panel, Heat)
    what = f"{panel.y} and {panel.x}" if heat else f"{panel.y.title or 'rows'} against {panel.x.title}"
    label = escaped(f"{panel.title}: {what}. The values stand in the table below.")
    return (
        f"<figure{attributes(panel.tags) if heat else ''}><figcaption>{escaped(panel.title)}</figcaption>"
        f'<div class="plot" id="{name}" role="img" aria-label="{label}" style="height:{height}px"></div>'
        f'<details class="values" data-of="{name}" data-bars="{escaped(panel.bars)}">'
        "<summary>Values</summary></details></figure>"
    )
