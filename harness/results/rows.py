"""Rows of a task: merged by sample from all its parts, compared with one another and with the
checksums in task.json."""

import contextlib
import json
import math
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.common.files import parse_json, say_odd

# Fields that two attempts at one sample must agree on. Likelihoods and times are left out, because
# another batch size rounds them differently.
COMPARED = ("draw", "doc_hash", "score", "prediction", "target")
SCORE_TOLERANCE = 1e-4  # scores that differ by no more are equal
DIGITS = 8  # hexadecimal digits of one row in `checksums`
MAX_NAMED = 5  # samples that a sentence names


@dataclass(frozen=True)
class Version:
    """One row of a sample: the attempt that wrote it, its content and its line."""

    attempt: str
    row: dict[str, Any]
    line: bytes


@dataclass
class Found:
    """All rows of a task.

    Attributes:
        rows: the row that counts for each sample, in the order of the samples.
        others: all rows of a sample, for samples with several different rows.
        conflicts: samples whose rows disagree.
        damaged: samples whose row has another checksum than task.json.
        missing: number of rows that task.json was made of and that are gone.
        sums: the checksums of task.json, by sample.
    """

    rows: dict[int, dict] = field(default_factory=dict)
    others: dict[int, list[Version]] = field(default_factory=dict)
    conflicts: list[int] = field(default_factory=list)
    damaged: list[int] = field(default_factory=list)
    missing: int = 0
    sums: dict[int, str] = field(default_factory=dict)

    def believed(self, line: bytes) -> bool:
        """Return whether a line of a part holds a row that can be trusted: task.json was made of
        it, or no other row contradicts it."""
        row = row_of(line)
        if row is None:
            return False
        key = row["key"]
        if key in self.sums:
            return key not in (*self.conflicts, *self.damaged) or _fits(Version("", row, line), self.sums[key])
        return key not in self.conflicts

    @property
    def trouble(self) -> tuple[str, None, str] | None:
        """The status, no outcome, and the reason, if these rows cannot be trusted."""
        if self.conflicts:
            attempts = sorted({v.attempt for key in self.conflicts for v in self.others[key]})
            return "conflict", None, f"{' and '.join(attempts)} disagree on {_samples(self.conflicts)}"
        if self.damaged:
            return "damaged", None, f"{_samples(self.damaged)} not as it was when the task was finished"
        return None


def read_rows(parts: Iterable[tuple[Path, bytes]], finished: Mapping | None = None) -> Found:
    """Merge the rows of several files; a sample's first row counts unless task.json names another.

    Args:
        parts: (path, content) of each file.
        finished: the content of task.json, if there is one.
    """
    sums, samples = _sums(finished), finished["samples"] if finished else 0
    firsts: dict[int, Version] = {}
    found = Found(sums=sums)
    for part, text in parts:
        lines, strange = text.split(b"\n"), 0
        for place, line in enumerate(lines):
            row = row_of(line) if line.strip() else None
            if row is None:
                strange += bool(line.strip()) and place < len(lines) - 1  # a kill may tear the last line
                continue
            first = firsts.setdefault(row["key"], version := Version(part.stem, row, line))
            if first is not version and first.row != row:
                found.others.setdefault(row["key"], [first]).append(version)
        if strange:
            say_odd(part, f"{strange} of its lines are no rows")
    for key, versions in found.others.items():
        fitting = [v for v in versions if key in sums and _fits(v, sums[key])]
        chosen = firsts[key] = (fitting or versions)[0]
        if any(_disagree(chosen.row, v.row) for v in versions):
            found.conflicts.append(key)
    found.rows = {key: firsts[key].row for key in sorted(firsts)}
    found.damaged = [key for key, digits in sums.items() if key in firsts and not _fits(firsts[key], digits)]
    found.missing = sum(key not in firsts for key in range(samples)) if samples <= len(firsts) else samples
    return found


def row_of(line: bytes) -> dict | None:
    """Return the row that a line of a part holds; None if it holds none."""
    with contextlib.suppress(ValueError):
        row = parse_json(line)
        if isinstance(row, dict) and type(key := row.get("key")) is int and key >= 0:
            return row
    return None


def line_of(row: Mapping) -> bytes:
    """Return the line of a row.

    Raises:
        ValueError: for NaN and infinity.
    """
    return json.dumps(row, allow_nan=False).encode()


def checksums(rows: Iterable[Mapping]) -> str:
    """Return the CRC-32 of each row's line as 8 hexadecimal digits, concatenated in order."""
    return "".join(_digits(line_of(row)) for row in rows)


def _digits(line: bytes) -> str:
    return f"{zlib.crc32(line):0{DIGITS}x}"


def _sums(finished: Mapping | None) -> dict[int, str]:
    """The checksum of each sample, if task.json has them."""
    text = (finished or {}).get("checksums") or ""
    return {key: text[key * DIGITS : (key + 1) * DIGITS] for key in range(len(text) // DIGITS)}


def _fits(version: Version, digits: str) -> bool:
    """Return whether a row has this checksum. Line ends and white space do not matter."""
    return _digits(version.line) == digits or _digits(line_of(version.row)) == digits


def _disagree(a: Mapping, b: Mapping) -> bool:
    return any(not _same(a.get(name), b.get(name)) for name in COMPARED)


def _same(a: object, b: object) -> bool:
    if isinstance(a, (int, float)) and isinstance(b, (int, float)):
        return math.isclose(a, b, rel_tol=SCORE_TOLERANCE, abs_tol=SCORE_TOLERANCE)
    return a == b


def _samples(keys: list[int]) -> str:
    """Name samples in words, the first few by number."""
    more = f" and {len(keys) - MAX_NAMED} more" if len(keys) > MAX_NAMED else ""
    return f"sample{'s' * (len(keys) > 1)} {', '.join(map(str, sorted(keys)[:MAX_NAMED]))}{more}"
