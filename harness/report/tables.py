"""The appearance of columns in the tables of the page."""

import re
from collections.abc import Iterable

from harness.common.table import Table

MAX_UNBROKEN = 34  # characters of a cell without line breaks
NUMBER = re.compile(r"[+-]?(\d[\d,.]*|nan|inf)(e[+-]?\d+)?( |$)", re.IGNORECASE)


def numeric_columns(table: Table) -> list[bool]:
    """Return for each column whether its cells are all numbers."""
    return [_numeric(row[i] for row in table.rows) for i in range(len(table.columns))]


def cell_class(value: str, number: bool) -> str:
    """Return the CSS class of a cell; empty for none."""
    return "number" if number else "brief" if len(value) <= MAX_UNBROKEN else ""


def _numeric(column: Iterable[str]) -> bool:
    filled = [value for value in column if value]
    return bool(filled) and all(NUMBER.match(value) for value in filled)
