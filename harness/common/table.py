"""Tables that can be drawn on a terminal or written as Markdown."""

import io
import sys
from dataclasses import dataclass

from rich.console import Console, Group
from rich.table import Table as RichTable
from rich.text import Text

from harness.common.streams import printable


@dataclass(frozen=True)
class Table:
    """A table of texts; an empty title is left out."""

    title: str
    columns: list[str]
    rows: list[list[str]]
    notes: list[str]
    words: int = 1  # number of left-aligned columns of words; the other columns hold numbers

    def print(self) -> None:
        """Print the table and its notes to stdout; in a pipe lines are not wrapped."""
        console, table = _stdout(), self._rich_table()
        if not console.is_terminal:
            console = _stdout(width=Console(width=1000).measure(table).maximum)
        console.print(table)
        say(*self.notes)

    def renderable(self) -> Group:
        """Return the table and its notes for one of rich's live displays."""
        return Group(self._rich_table(), *(Text(printable(note)) for note in self.notes))

    def _rich_table(self) -> RichTable:
        title = Text(printable(self.title)) if self.title else None
        table = RichTable(title=title, title_justify="left", title_style="bold")
        for i, column in enumerate(self.columns):
            table.add_column(Text(printable(column)), justify="left" if i < self.words else "right", overflow="fold")
        for row in self.rows:
            table.add_row(*(Text(printable(cell)) for cell in row))  # as Text, because brackets would be read as markup
        return table

    def markdown(self) -> str:
        """Return the table and its notes in Markdown."""
        lines = [f"**{_in_markdown(self.title)}**", ""] if self.title else []
        lines += ["| " + " | ".join(map(_in_markdown, self.columns)) + " |"]
        lines += ["|" + "|".join(["---"] * self.words + ["---:"] * (len(self.columns) - self.words)) + "|"]
        lines += ["| " + " | ".join(_in_markdown(cell) for cell in row) + " |" for row in self.rows]
        return "\n".join([*lines, "", *map(_without_links, self.notes)])


def _stdout(width: int | None = None) -> Console:
    """A console on stdout that writes text in notebooks, too, and no colours into a StringIO."""
    captured = isinstance(sys.stdout, io.StringIO)
    return Console(file=sys.stdout, width=width, force_jupyter=False, force_terminal=False if captured else None)


def say(*sentences: str) -> None:
    """Print sentences to stdout, wrapped between words on a terminal and unwrapped in a pipe."""
    console = _stdout()
    for sentence in sentences:
        console.print(printable(sentence), highlight=False, markup=False, soft_wrap=not console.is_terminal)


def _in_markdown(cell: str) -> str:
    """The text escaped for a cell, because names and messages may contain any characters."""
    return _without_links(cell.replace("\\", "\\\\")).replace("|", "\\|").replace("\n", " ")


def _without_links(text: str) -> str:
    """Escape images, links and HTML elements of Markdown, and control characters."""
    return printable(text).replace("<", "&lt;").replace("![", "!\\[").replace("](", "]\\(").replace("][", "]\\[")
