"""Tables of the page: rows that can be sorted and filtered, each with what it opens to."""

import re
from collections.abc import Iterator

from harness.report.describe import Grid
from harness.report.markup import attributes, escaped

BRIEF = 34  # characters of a cell that is not broken into lines
NUMBER = re.compile(r"[+-]?(\d[\d,.]*|nan|inf)(e[+-]?\d+)?( |$)", re.IGNORECASE)


def drawn_table(grid: Grid) -> str:
    """A table; inside a closed <details> if it folds, with a search field if its rows have a
    status."""
    table, title = grid.table, escaped(grid.table.title)
    numeric = [_numeric(row[i] for row in table.rows) for i in range(len(table.columns))]
    look = {True: " class=number", False: ""}
    heads = [
        f'<th scope="col" aria-sort="none"{look[n]}><button type="button">{escaped(c)}</button></th>'
        for c, n in zip(table.columns, numeric, strict=True)
    ]
    if grid.details:
        heads.append('<th scope="col">record</th>')
    rows = []
    for place, (row, tags) in enumerate(zip(table.rows, grid.tags, strict=True)):
        cells = [f"<td{_look(v, n)}>{escaped(v)}</td>" for v, n in zip(row, numeric, strict=True)]
        if grid.details:
            told = "".join(f"<dt>{escaped(k)}</dt><dd>{escaped(v)}</dd>" for k, v in grid.details[place])
            cells.append(f"<td><details><summary>open</summary><dl>{told}</dl></details></td>" if told else "<td></td>")
        rows.append(f"<tr{attributes(tags)}>{''.join(cells)}</tr>")
    head, body = f"<thead><tr>{''.join(heads)}</tr></thead>", f"<tbody>{''.join(rows)}</tbody>"
    drawn = f'<div class="table" role="region" tabindex="0" aria-label="{title}"><table>{head}{body}</table></div>'
    drawn += "".join(f"<p>{escaped(note)}</p>" for note in table.notes)
    if grid.status is not None:
        drawn = f'<div class="searched" data-status="{grid.status}">{_search(grid)}{drawn}</div>'
    elif not grid.fold:
        drawn = f"<h3>{title}</h3>{drawn}"
    if grid.fold:
        drawn = f"<details><summary>{title}</summary>{drawn}</details>"
    return f"<div{attributes(grid.group)}>{drawn}</div>"


def _search(grid: Grid) -> str:
    statuses = sorted({row[grid.status] for row in grid.table.rows})
    options = "".join(f'<option value="{escaped(s)}">{escaped(s)}</option>' for s in statuses)
    return (
        '<form class="filters"><label>containing<input type="search" data-search></label>'
        f'<label>status<select data-of-status><option value="">all</option>{options}</select></label>'
        f'<output aria-live="polite">{len(grid.table.rows):,} rows</output></form>'
    )


def _look(value: str, number: bool) -> str:
    return " class=number" if number else " class=brief" if len(value) <= BRIEF else ""


def _numeric(column: Iterator[str]) -> bool:
    filled = [value for value in column if value]
    return bool(filled) and all(NUMBER.match(value) for value in filled)
