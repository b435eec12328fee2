"""Tables of the page: how their columns look."""

import re
from collections.abc import Iterable

from harness.common.table import Table

BRIEF = 34  # characters of a cell that is not broken into lines
NUMBER = re.compile(r"[+-]?(\d[\d,.]*|nan|inf)(e[+-]?\d+)?( |$)", re.IGNORECASE)


def numeric_columns(table: Table) -> list[bool]:
    """Of each column whether all that stands in it are numbers."""
    return [_numeric(row[i] for row in table.rows) for i in range(len(table.columns))]


def look(value: str, number: bool) -> str:
    """The class of a cell, or nothing."""
    return "number" if number else "brief" if len(value) <= BRIEF else ""


def _numeric(column: Iterable[str]) -> bool:
    filled = [value for value in column if value]
    return bool(filled) and all(NUMBER.match(value) for value in filled)
