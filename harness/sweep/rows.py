"""The cells of a sweep."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from harness.results.index import Key
from harness.sweep.grid import Grid


@dataclass(frozen=True, slots=True)
class Row:
    """One cell to run.

    number: number of its row in the grid, from 1.
    overrides: arguments of harness.run.
    work: the tasks of the cell and of the references computed with it.
    samples: the number of samples that completes each of them.
    """

    number: int
    overrides: tuple[str, ...]
    work: tuple[Key, ...]
    samples: tuple[int, ...]

    @property
    def cell_id(self) -> str:
        """The id of the cell."""
        return self.work[0][0]


class Rows(list[Row]):
    """Rows of a grid, in its order.

    duplicates: the number of rows left out because their work repeats an earlier row.
    """

    def __init__(self, grid: Grid, rows: Iterable[Row] = (), *, duplicates: int = 0):
        super().__init__(rows)
        self.grid, self.duplicates = grid, duplicates

    def add(self, number: int, overrides: tuple[str, ...], work: Sequence[Key], samples: Sequence[int]) -> None:
        """Append a row.

        Args:
            number: number of the row in the grid, from 1.
            overrides: arguments of harness.run.
            work: its tasks.
            samples: the number of samples that completes each task.
        """
        self.append(Row(number, overrides, tuple(work), tuple(samples)))

    def select(self, positions: Iterable[int]) -> "Rows":
        """Return the rows at these positions."""
        return Rows(self.grid, (self[position] for position in positions))

    def without_duplicates(self) -> "Rows":
        """Return the rows without those whose work repeats an earlier row."""
        unique: dict[tuple, Row] = {}
        for row in self:
            unique.setdefault((row.work, row.samples), row)
        return Rows(self.grid, unique.values(), duplicates=len(self) - len(unique))

    def by_prefix(self) -> Iterator[tuple[str, list[int]]]:
        """Yield two-digit prefixes of cell ids, with the positions of rows that have such cells."""
        positions: dict[str, list[int]] = {}
        for position, row in enumerate(self):
            for prefix in {cell_id[:2] for cell_id, _ in row.work}:
                positions.setdefault(prefix, []).append(position)
        return iter(sorted(positions.items()))
