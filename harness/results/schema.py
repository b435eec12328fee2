"""What the files of a store hold, one type each. docs/records.md explains them.

A record that lacks a field which came later has its default; a file of a later version is refused.
Whoever changes what a field means, or adds one without which the others would be misread, raises
the VERSION of the file's type (of an outcome also for its environment and metrics) and runs

    python -m harness.results.schema --write

which writes the JSON schemas in docs/schema.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import BaseModel, Field, StrictBool, StrictFloat, StrictInt, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from harness.common.command import Parser, command
from harness.common.paths import ROOT
from harness.common.stats import Metric
from harness.common.streams import say_once

FOLDER = ROOT / "docs" / "schema"
Packages = dict[str, str | None]  # versions
# a value stays what it is, so that a record which is written again is the same
Number = StrictInt | StrictFloat
LATER = "a later version of the harness wrote it"  # begins the reason why such a file is left out
MENDED = 20  # times that a record is read again without the fields that cannot be read


class Stored(BaseModel, frozen=True, extra="allow", populate_by_name=True):
    """A piece of a record. Fields that were neither read nor given have their default and are not
    written."""

    VERSION: ClassVar[int] = 1

    @classmethod
    def read(cls, raw: Mapping[str, Any]) -> Self:
        """From JSON. A field whose value is of the wrong kind has its default, and the value is in
        `more`; a note says so.

        Raises ValueError where one is missing, or wrong, that must be there, and where a later
        version has written it.
        """
        if why := later(raw, cls):
            raise ValueError(why)
        try:
            return cls.model_validate(raw)
        except ValidationError:
            return _mended(cls, raw)

    def as_json(self) -> dict[str, Any]:
        """As it is written: what was read or given, in the order of the fields."""
        return self.model_dump(by_alias=True, exclude_unset=True)

    def but(self, **fields: Any) -> Self:
        """The same with other values of these fields."""
        return self.model_copy(update=fields)

    @property
    def more(self) -> Mapping[str, Any]:
        """Fields that this type does not declare."""
        return self.model_extra or {}


class AttentionIdentity(Stored):
    """The attention of a cell: options that every record has, null where the method lacks them; in
    `more` those of the method alone (`harness.attentions.registry.attention_of`)."""

    name: str
    masks: StrictInt | None = None
    sampler: str | None = None
    weights: str | None = None
    cutoff: Number | None = None


class CellIdentity(Stored):
    """What the results depend on; a cell's id is a hash of it.

    model: weights, slopes and tokenizer by hash. draws: of the masks. seed, draws: null for an
    attention without chance; kernel: null for the checkpoint's own attention.
    """

    version: StrictInt = Field(default=0, alias="schema", description="version of the identity, part of the hash")
    model: dict[str, Any]
    dtype: str
    attn: AttentionIdentity
    kernel: str | None = None
    context: StrictInt
    seed: StrictInt | None = None
    draws: StrictInt | None = None
    data_seed: StrictInt


class StoredFile(Stored):
    """A piece that is a file by itself, and says of which version."""

    version: StrictInt = Field(
        default=0, alias="schema", description="version of this file; absent in the first records"
    )


class CellDescription(StoredFile):
    """cell.json: a cell, so that it can be read without this code's objects.

    model: its name; source: its repository, if it has one. label: the attention, for people.
    pairs_per_row: visited pairs (key before query) per row and head by how they are counted:
    "fused", each pair once, and "passes", each mask by itself. What the method says beyond this
    (`Attention.facts`) stands beside them.
    """

    cell_id: str
    identity: CellIdentity
    model: str
    source: str | None = None
    architecture: dict[str, Any] = {}
    label: str
    pairs_per_row: dict[str, Number] = {}


class Environment(Stored):
    """Where an outcome was made.

    no_commit: why git did not tell the commit; source: a hash of the source files in its place.
    start: UTC, as 2026-01-31T23:59:59Z. ranks: processes that shared the work, if several.
    earlier_packages: other versions under which rows of this outcome were computed. weights: what
    was done to the checkpoint's weights. auto_kernel: what kernel=auto chose.
    """

    commit: str | None = None
    dirty: StrictBool | None = None
    no_commit: str | None = None
    source: str | None = None
    python: str | None = None
    packages: Packages = {}
    device: str | None = None
    driver: str | None = None
    tf32: StrictBool | None = None
    threads: StrictInt | None = None
    host: str | None = None
    slurm_job: str | None = None
    start: str = ""
    command: str | None = None
    ranks: StrictInt | None = None
    earlier_packages: list[Packages] = []
    weights: dict[str, Any] | None = None
    auto_kernel: list[str] = []

    def __bool__(self) -> bool:
        return bool(self.model_fields_set)

    @property
    def code(self) -> str:
        """The commit, or what stands in its place."""
        return self.commit or (f"source:{self.source}" if self.source else "unknown")


class TaskOutcome(StoredFile):
    """task.json, the mark of a finished task (status ok or unsupported); attempts/NAME.json, one
    attempt that ended otherwise (error, oom, or stopped while it tries again).

    options: what the task's id holds. rows_are: "samples", or "repeats" of a timing. error,
    message, traceback: of what failed. samples: rows that the metrics are made of; exhausted: there
    are no more. checksums: of these rows in turn, the CRC-32 of each one's line as 8 hexadecimal
    digits. metrics: by TASK/NAME, the one that tables show first. after: attempts that had been
    recorded by then. order: of an attempt, among those of the task.
    """

    VERSION: ClassVar[int] = 2  # 2: with checksums

    task: str = ""
    task_id: str = ""
    attempt: str | None = None
    options: dict[str, Any] | None = None
    rows_are: str = "samples"
    environment: Environment = Environment()
    status: str = ""
    error: str | None = None
    message: str = ""
    traceback: str | None = None
    samples: StrictInt = 0
    exhausted: StrictBool = False
    checksums: str | None = None
    metrics: dict[str, Metric] = {}
    after: StrictInt = 0
    order: StrictInt = 0

    def __bool__(self) -> bool:
        return bool(self.model_fields_set)


class Row(Stored):
    """A line of parts/ATTEMPT.jsonl. A task may add fields of its own."""

    key: int


class SampleRow(Row):
    """One sample of an accuracy task.

    score: what is compared in pairs, more is better; null for a document that was left out
    (too_long). nll: of the true answer, in nats. values: all metrics of lm-eval's. depth: where the
    needle lies, 0 to 1; distance: its tokens from the question. doc_hash: of what was fed; only
    samples of one hash are compared. tokens_short: missing to the context. kv_*: bytes of the cache
    of a sequence. text_share: of the prompt's tokens those of the user's text. seconds: of the
    batch, by sample.
    """

    score: Number | None = None
    nll: Number | None = None
    values: dict[str, Any] = {}
    prediction: str | None = None
    target: str | None = None
    depth: Number | None = None
    distance: StrictInt | None = None
    doc_hash: str | None = None
    tokens_wanted: StrictInt | None = None
    tokens_seen: StrictInt | None = None
    too_long: StrictBool = False
    kv_allocated_bytes: StrictInt | None = None
    kv_used_bytes: StrictInt | None = None
    text_share: Number | None = None
    tokens_short: StrictInt | None = None
    draw: StrictInt = 0
    seconds: Number | None = None


class CountsRow(Row):
    """Row 0 of task=throughput: what is counted once. Peaks are null where they are not known."""

    draw: StrictInt = 0
    measurement: str = "facts"
    error: Number
    error_cached: Number
    alibi_difference: Number
    peak_bytes: Number
    kv_allocated_bytes: Number
    kv_used_bytes: Number
    visited_pairs: Number
    flops: Number
    decode_bytes: Number
    peak_flops: Number | None = None
    peak_bandwidth: Number | None = None
    peak_source: str | None = None


class RepeatRow(Row):
    """One repeat of a measurement of task=throughput: prefill, chunked_prefill, or decode with
    `rows` tokens a step, under the cell's own attention or `exact` ALiBi.

    ms: of the whole, attention_ms within it. slowest_ms: of the steps; packing_ms: of one packing
    of a cache that evicts. tokens: of a lap, all sequences together. error, error_cached: of the
    check that this attempt passed.
    """

    draw: StrictInt = 0
    repeat: StrictInt
    measurement: str
    rows: StrictInt
    exact: StrictBool
    ms: Number
    attention_ms: Number
    slowest_ms: Number | None = None
    packing_ms: Number | None = None
    tokens: StrictInt
    laps: StrictInt
    joules: Number | None = None
    error: Number
    error_cached: Number


TYPES: dict[str, type] = {
    "cell": CellDescription,
    "task": TaskOutcome,
    "environment": Environment,
    "metric": Metric,
    "sample": SampleRow,
    "repeat": RepeatRow,
    "counts": CountsRow,
}


def json_schema(name: str) -> str:
    """The JSON schema of one of TYPES, as docs/schema/NAME.json holds it."""
    kind = TYPES[name]
    about = {"$schema": "https://json-schema.org/draft/2020-12/schema", "version": getattr(kind, "VERSION", 1)}
    return json.dumps({**about, **TypeAdapter(kind).json_schema(by_alias=True)}, indent=1) + "\n"


def _mended(cls: type[Stored], raw: Mapping[str, Any]) -> Any:
    """As `read`, the values aside that are of the wrong kind."""
    whole = deepcopy(dict(raw))
    aside: list[tuple[tuple[str, ...], Any]] = []
    for _ in range(MENDED):
        try:
            found = cls.model_validate(whole)
        except ValidationError as error:
            errors = error.errors(include_url=False, include_input=False)
            wrong = {path: each["msg"] for each in reversed(errors) if (path := _place(whole, each))}
            if not wrong:
                raise
            for path, why in wrong.items():
                aside += [(path, value) for value in _taken(whole, path)]
                named = ".".join(path)
                say_once(f"A {cls.__name__} holds {named}, which cannot be read ({why}): it is left aside.")
        else:
            for path, value in aside:
                holder: Any = found
                for name in path[:-1]:
                    holder = getattr(holder, name, None)
                if isinstance(holder, Stored) and holder.model_extra is not None:
                    holder.model_extra[path[-1]] = value
            return found
    return cls.model_validate(whole)


def _place(whole: dict[str, Any], error: ErrorDetails) -> tuple[str, ...]:
    """Where the error is, names from the outside in; nothing where what is missing must be
    there."""
    inside: Any = whole
    path: list[str] = []
    for name in error["loc"][:-1] if error["type"] == "missing" else error["loc"]:
        if not isinstance(inside, dict) or name not in inside:
            break  # the name of one of several types
        path.append(str(name))
        inside = inside[name]
    return tuple(path)


def _taken(whole: dict[str, Any], path: tuple[str, ...]) -> list[Any]:
    """Take the value at a path out: the value, or nothing where it is gone already."""
    for name in path[:-1]:
        whole = whole.get(name, {})
    return [whole.pop(path[-1])] if path[-1] in whole else []


def later(raw: Mapping[str, Any], kind: type[Stored]) -> str | None:
    """Why a file of a later version than this code's is not read: what it says may mean something
    else."""
    written = raw.get("schema")
    if isinstance(written, int) and written > kind.VERSION:
        return f"{LATER} (schema {written}, known here: {kind.VERSION})"
    return None


@command
def main(arguments: Sequence[str]) -> int:
    """Print the JSON schemas, or write them into docs/schema. Returns 0."""
    parser = Parser(prog="python -m harness.results.schema", description="JSON schemas of records.")
    parser.add_argument("--write", action="store_true", help="write docs/schema/NAME.json instead of printing")
    parser.add_argument("--out", type=Path, default=FOLDER, help="another folder than docs/schema")
    given = parser.parse_args(arguments)
    for name in TYPES:
        if given.write:
            given.out.mkdir(parents=True, exist_ok=True)
            (given.out / f"{name}.json").write_text(json_schema(name))
        else:
            print(json_schema(name), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
