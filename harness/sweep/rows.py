"""The cells of a sweep."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from harness.results.index import Key
from harness.sweep.grid import Grid


@dataclass(frozen=True, slots=True)
class Row:
    """One cell to run. number: of its row in the grid, from 1. overrides: what harness.run gets.
    work: the tasks it computes, its own cell's and those of the references computed beside it.
    samples: how many rows complete each of them."""

    number: int
    overrides: tuple[str, ...]
    work: tuple[Key, ...]
    samples: tuple[int, ...]

    @property
    def cell_id(self) -> str:
        return self.work[0][0]


class Rows(list[Row]):
    """Rows of a grid, in its order.

    same: how many more there are that are the same work as one of these."""

    def __init__(self, grid: Grid, rows: Iterable[Row] = (), *, same: int = 0):
        super().__init__(rows)
        self.grid, self.same = grid, same

    def add(self, number: int, work: Sequence[Key], samples: Sequence[int]) -> None:
        """One more row, in the order of their numbers."""
        self.append(Row(number, self.grid.overrides(number), tuple(work), tuple(samples)))

    def only(self, places: Iterable[int]) -> "Rows":
        """The rows at these places."""
        return Rows(self.grid, (self[place] for place in places))

    def once(self) -> "Rows":
        """The rows without those that ask for no other work than an earlier one."""
        first: dict[tuple, Row] = {}
        for row in self:
            first.setdefault((row.work, row.samples), row)
        return Rows(self.grid, first.values(), same=len(self) - len(first))

    def by_start(self) -> Iterator[tuple[str, list[int]]]:
        """For each beginning of two digits of a cell's id the places of the rows with work in such
        a cell."""
        places: dict[str, list[int]] = {}
        for place, row in enumerate(self):
            for start in {cell_id[:2] for cell_id, _ in row.work}:
                places.setdefault(start, []).append(place)
        return iter(sorted(places.items()))
