"""A table: one description of the columns, drawn for a terminal or as Markdown."""

import io
import sys
from dataclasses import dataclass

from rich.console import Console, Group
from rich.table import Table as RichTable
from rich.text import Text


@dataclass(frozen=True)
class Table:
    title: str
    columns: list[str]
    rows: list[list[str]]
    notes: list[str]
    words: int = 1  # columns from the left that hold words; the others hold numbers

    def print(self) -> None:
        """To stdout; a pipe gets lines as wide as they need to be."""
        console, drawn = _stdout(), self._drawn()
        if not console.is_terminal:
            console = _stdout(width=Console(width=1000).measure(drawn).maximum)
        console.print(drawn)
        say(*self.notes)

    def drawn(self) -> Group:
        """For a display that refreshes itself."""
        return Group(self._drawn(), *map(Text, self.notes))

    def _drawn(self) -> RichTable:
        drawn = RichTable(title=self.title, title_justify="left", title_style="bold")
        for i, column in enumerate(self.columns):
            drawn.add_column(column, justify="left" if i < self.words else "right", overflow="fold")
        for row in self.rows:
            drawn.add_row(*map(Text, row))  # brackets are the text's own
        return drawn

    def markdown(self) -> str:
        lines = [f"**{_in_markdown(self.title)}**", ""] if self.title else []
        lines += ["| " + " | ".join(self.columns) + " |"]
        lines += ["|" + "|".join(["---"] * self.words + ["---:"] * (len(self.columns) - self.words)) + "|"]
        lines += ["| " + " | ".join(_in_markdown(cell) for cell in row) + " |" for row in self.rows]
        return "\n".join([*lines, "", *self.notes])


def _stdout(width: int | None = None) -> Console:
    """stdout in a notebook too, where a console would display by itself, and in colours wherever
    stdout goes."""
    kept = isinstance(sys.stdout, io.StringIO)
    return Console(file=sys.stdout, width=width, force_jupyter=False, force_terminal=False if kept else None)


def say(*sentences: str) -> None:
    """Sentences to stdout, broken between words on a terminal and whole in a pipe."""
    console = _stdout()
    for sentence in sentences:
        console.print(sentence, highlight=False, markup=False, soft_wrap=not console.is_terminal)


def _in_markdown(cell: str) -> str:
    """A cell that stays one cell: names and messages may hold anything."""
    return cell.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")
