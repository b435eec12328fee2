"""The cells of a sweep, packed: 16 bytes for each task of a cell and 24 more, so that there may be
very many. A row is made when it is asked for."""

import hashlib
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from harness.results.index import Key
from harness.sweep.grid import Grid

ID = 8  # bytes of an id of 16 hexadecimal digits
KEY = 2 * ID  # of a cell and a task


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


class Rows(Sequence[Row]):
    """The rows of a grid, in its order; `once` leaves out those that are the same work as an
    earlier one.

    same: how many were left out."""

    def __init__(self, grid: Grid):
        self.grid = grid
        self.same = 0
        self._numbers = array("q")
        self._kinds = array("q")  # places in _known: names and samples of the tasks, which many rows have in common
        self._known: list[tuple[tuple[str, ...], tuple[int, ...]]] = []
        self._place_of: dict[tuple, int] = {}  # in _known
        self._starts = array("q", [0])  # of each row's keys in _keys, and the end of the last one's
        self._keys = bytearray()

    def append(self, number: int, work: Sequence[Key], samples: Sequence[int]) -> None:
        """One more row, in the order of their numbers."""
        names = []
        for cell_id, folder in work:
            name, _, task_id = folder.rpartition("-")
            self._keys += bytes.fromhex(cell_id) + bytes.fromhex(task_id)
            names.append(name)
        kind = (tuple(names), tuple(samples))
        if kind not in self._place_of:
            self._place_of[kind] = len(self._known)
            self._known.append(kind)
        self._numbers.append(number)
        self._kinds.append(self._place_of[kind])
        self._starts.append(len(self._keys))

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, place: int) -> Row:
        place = range(len(self))[place]
        names, samples = self._known[self._kinds[place]]
        packed = self._keys[self._starts[place] : self._starts[place + 1]]
        ids = [packed[at : at + ID].hex() for at in range(0, len(packed), ID)]
        work = tuple((ids[2 * i], f"{name}-{ids[2 * i + 1]}") for i, name in enumerate(names))
        number = self._numbers[place]
        return Row(number, self.grid.overrides(number), work, samples)

    def only(self, places: Sequence[int]) -> "Rows":
        """The rows at these places."""
        found = Rows(self.grid)
        found._known, found._place_of = self._known, self._place_of
        for place in places:
            found._numbers.append(self._numbers[place])
            found._kinds.append(self._kinds[place])
            found._keys += self._keys[self._starts[place] : self._starts[place + 1]]
            found._starts.append(len(found._keys))
        return found

    def once(self) -> "Rows":
        """The rows without those that ask for no other work than an earlier one."""
        digests = bytearray()
        for a, b, kind in zip(self._starts, self._starts[1:], self._kinds, strict=False):
            digests += hashlib.blake2b(self._keys[a:b], digest_size=16, key=kind.to_bytes(8)).digest()
        _, places = np.unique(np.frombuffer(digests, dtype="V16"), return_index=True)
        if len(places) == len(self):
            return self
        found = self.only(np.sort(places).tolist())
        found.same = len(self) - len(found)
        return found

    def by_start(self) -> Iterator[tuple[str, list[int]]]:
        """For each beginning of two digits of a cell's id the places of the rows with work in such
        a cell."""
        first = np.frombuffer(self._keys, dtype=np.uint8)[::KEY]
        place = np.repeat(np.arange(len(self)), np.diff(np.asarray(self._starts)) // KEY)
        for start in np.unique(first):
            yield f"{start:02x}", np.unique(place[first == start]).tolist()
