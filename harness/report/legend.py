"""The legend of a group of plots: each method once, with the marker and the line that its plots
use."""

from harness.report.describe import Group, Panel, Series
from harness.report.markup import attributes, escaped

SHAPES = {
    "circle": '<circle cx="14" cy="8" r="4"/>',
    "diamond": '<path d="M14 3L19 8L14 13L9 8Z"/>',
    "square": '<path d="M10 4H18V12H10Z"/>',
    "triangle-up": '<path d="M14 3L19 12H9Z"/>',
    "triangle-down": '<path d="M14 13L19 4H9Z"/>',
    "cross": '<path d="M12.5 3H15.5V6.5H19V9.5H15.5V13H12.5V9.5H9V6.5H12.5Z"/>',
    "x": '<path d="M10 4L18 12M18 4L10 12" stroke-width="2.5"/>',
    "star": '<path d="M14 3L15.5 6.6L19 7L16.3 9.4L17 13L14 11L11 13L11.7 9.4L9 7L12.5 6.6Z"/>',
}
DASHES = {"solid": "none", "dash": "6 3", "dot": "2 3", "dashdot": "6 3 2 3"}


def legend(group: Group) -> str:
    """A list; empty for heat-maps, which name themselves."""
    entries: dict[tuple, Series] = {}
    guides: dict[str, str] = {}
    for panel in group.panels:
        if isinstance(panel, Panel):
            for series in panel.series:
                entries.setdefault((series.method, series.label), series)
            guides |= {g.label: g.dash for g in panel.guides if g.slope is not None}
    items = [f"<li{attributes(s.tags)}>{_swatch(s)}{escaped(s.label)}</li>" for s in entries.values()]
    for label, dash in guides.items():
        items.append(f"<li>{_svg(_line('--line', DASHES[dash]))}{escaped(label)}</li>")
    return f'<ul class="legend">{"".join(items)}</ul>' if items else ""


def _swatch(series: Series) -> str:
    method, colour = series.method, f"--c-{series.method.key}"
    if series.kind == "band":
        return _svg(f'<path d="M1 3H27V13H1Z" fill="var({colour}-soft)"/>{_line(colour, "none")}')
    line = _line(colour, DASHES[method.dash]) if series.kind == "line" else ""
    shape = SHAPES.get(method.symbol.removesuffix("-open"), SHAPES["circle"])
    fill = "var(--paper)" if method.symbol.endswith("-open") else f"var({colour})"
    look = f'fill="{fill}" stroke="var({colour})" stroke-width="1.2"'
    scaled = f' transform="translate(14 8) scale({series.size:.2g}) translate(-14 -8)"' if series.size != 1 else ""
    return _svg(f"{line}<g {look}{scaled}>{shape}</g>")


def _line(colour: str, dash: str) -> str:
    return f'<path d="M1 8H27" stroke="var({colour})" stroke-width="1.6" stroke-dasharray="{dash}"/>'


def _svg(inside: str) -> str:
    return f'<svg width="28" height="16" viewBox="0 0 28 16" aria-hidden="true">{inside}</svg>'
