"""Types of the files in a store; docs/records.md explains them.

Fields that a record lacks have their default. A file of a later version is refused. If you change
the meaning of a field, or add one without which others would be misread, raise the VERSION of the
file's type (TaskOutcome's also for Environment and Metric) and write the JSON schemas in
docs/schema anew:

    python -m harness.results.schema --write
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
# strict types, so that reading and writing a record leaves every value as it was
Number = StrictInt | StrictFloat
LATER = "a later version of the harness wrote it"  # begins the reason for leaving such a file out
MAX_READS = 20  # attempts to read a record, each without the fields that the last one refused


class Stored(BaseModel, frozen=True, extra="allow", populate_by_name=True):
    """Part of a record. Fields that were neither read nor given have their default and are not
    written."""

    VERSION: ClassVar[int] = 1

    @classmethod
    def read(cls, raw: Mapping[str, Any]) -> Self:
        """Return the record in `raw`. A value of the wrong type goes to `more` with a note on
        stderr, and its field has the default.

        Raises:
            ValueError: if a required field is missing or has the wrong type, or if a later version
                wrote the record.
        """
        if why := later(raw, cls):
            raise ValueError(why)
        try:
            return cls.model_validate(raw)
        except ValidationError:
            return _mended(cls, raw)

    def as_json(self) -> dict[str, Any]:
        """Return the fields that were read or given, in the order of their declaration."""
        return self.model_dump(by_alias=True, exclude_unset=True)

    def but(self, **fields: Any) -> Self:
        """Return a copy with other values of these fields."""
        return self.model_copy(update=fields)

    @property
    def more(self) -> Mapping[str, Any]:
        """Fields that the type does not declare."""
        return self.model_extra or {}


class AttentionIdentity(Stored):
    """The attention of a cell. The declared options are in every record, null if the method lacks
    them; `more` holds the method's own options (`harness.attentions.registry.attention_of`)."""

    name: str
    masks: StrictInt | None = None
    sampler: str | None = None
    weights: str | None = None
    cutoff: Number | None = None


class CellIdentity(Stored):
    """Everything that the results of a cell depend on. A cell's id is a hash of it.

    Attributes:
        model: hashes of weights and tokenizer, and the slopes.
        seed: null for a deterministic attention.
        draws: number of mask draws; null for a deterministic attention.
        kernel: null for the checkpoint's own attention.
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
    """A record that is a file of its own, with a version."""

    version: StrictInt = Field(
        default=0, alias="schema", description="version of this file; absent in the first records"
    )


class CellDescription(StoredFile):
    """cell.json: a cell, readable without this code.

    Attributes:
        model: name of the model.
        source: its repository, if it has one.
        label: the attention in words.
        pairs_per_row: visited pairs (key before query) per row and head: "fused" counts each pair
            once, "passes" once for every mask that covers it. Further fields of the file are the
            method's `Attention.facts`.
    """

    cell_id: str
    identity: CellIdentity
    model: str
    source: str | None = None
    architecture: dict[str, Any] = {}
    label: str
    pairs_per_row: dict[str, Number] = {}


class Environment(Stored):
    """Code and machine of an outcome.

    Attributes:
        no_commit: reason why git did not tell the commit.
        source: hash of the source files, in place of the commit.
        start: UTC, as 2026-01-31T23:59:59Z.
        ranks: number of processes that shared the work, if there were several.
        earlier_packages: other package versions under which some of the rows were computed.
        weights: changes to the checkpoint's weights at loading.
        auto_kernel: kernels that kernel=auto chose.
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
    """task.json, the mark of a finished task (status ok or unsupported), and attempts/NAME.json, an
    attempt that ended otherwise (error or oom) or was begun after such an end (stopped).

    Attributes:
        options: the content of the task's id.
        rows_are: "samples", or "repeats" of a timing.
        error, message, traceback: the exception of a failed attempt.
        samples: number of rows that the metrics were made of.
        exhausted: the data hold no more samples.
        checksums: CRC-32 of each row's line, as 8 hexadecimal digits, in the order of the samples.
        metrics: by TASK/NAME; the first is the one that tables show.
        after: number of attempts recorded before task.json.
        order: place of an attempt among those of the task.
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
    """A line of parts/ATTEMPT.jsonl. Tasks may add fields.

    Attributes:
        key: number of the sample or repeat, from 0.
    """

    key: int


class SampleRow(Row):
    """One sample of an accuracy task.

    Attributes:
        score: the value that is compared in pairs, higher is better; null for a document that was
            left out (too_long).
        nll: negative log-likelihood of the true answer in nats.
        values: all metrics of lm-eval.
        depth: position of the needle, 0 to 1.
        distance: tokens from the needle to the question.
        doc_hash: hash of the model's input; only samples with equal hashes are compared.
        tokens_short: tokens that the prompt lacks to fill the context.
        kv_allocated_bytes, kv_used_bytes: KV cache of one sequence.
        text_share: share of the prompt's tokens that come from the user's text.
        seconds: time of the batch, divided by its samples.
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
    """Row 0 of task=throughput: figures that are counted once. Unknown peaks are null."""

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
    """One repeat of a measurement of task=throughput.

    Attributes:
        measurement: prefill, chunked_prefill or decode.
        rows: tokens of a decoding step.
        exact: measured under exact ALiBi instead of the cell's attention.
        ms: total time.
        attention_ms: part of `ms` that attention took.
        slowest_ms: time of the slowest step.
        packing_ms: time of one packing of a cache that evicts.
        tokens: tokens of a lap in all sequences.
        error, error_cached: errors of the check that this attempt passed.
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
    """Return the JSON schema of one of TYPES, the content of docs/schema/NAME.json."""
    kind = TYPES[name]
    about = {"$schema": "https://json-schema.org/draft/2020-12/schema", "version": getattr(kind, "VERSION", 1)}
    return json.dumps({**about, **TypeAdapter(kind).json_schema(by_alias=True)}, indent=1) + "\n"


def _mended(cls: type[Stored], raw: Mapping[str, Any]) -> Any:
    """Return what `read` does for a record with values of the wrong type."""
    whole = deepcopy(dict(raw))
    aside: list[tuple[tuple[str, ...], Any]] = []
    reasons: dict[str, str] = {}
    for _ in range(MAX_READS):
        try:
            found = cls.model_validate(whole)
            break
        except ValidationError as error:
            errors = error.errors(include_url=False, include_input=False)
            wrong = {path: each["msg"] for each in reversed(errors) if (path := _place(whole, each))}
            if not wrong:
                raise
            for path, why in wrong.items():
                aside += [(path, value) for value in _taken(whole, path)]
                reasons[".".join(path)] = why
    else:
        found = cls.model_validate(whole)
    for path, value in aside:
        holder: Any = found
        for name in path[:-1]:
            holder = getattr(holder, name, None)
        if isinstance(holder, Stored) and holder.model_extra is not None:
            holder.model_extra[path[-1]] = value
    # a record that cannot be read at all is named by its reader
    whys = "; ".join(dict.fromkeys(reasons.values()))
    are = "it is" if len(reasons) == 1 else "they are"
    say_once(f"A {cls.__name__} holds {', '.join(reasons)}, which cannot be read ({whys}): {are} left aside.")
    return found


def _place(whole: dict[str, Any], error: ErrorDetails) -> tuple[str, ...]:
    """Return the path of an error, names from the outside in; empty if a required field is
    missing."""
    inside: Any = whole
    path: list[str] = []
    for name in error["loc"][:-1] if error["type"] == "missing" else error["loc"]:
        if not isinstance(inside, dict) or name not in inside:
            break  # the name of an alternative of a union of types
        path.append(str(name))
        inside = inside[name]
    return tuple(path)


def _taken(whole: dict[str, Any], path: tuple[str, ...]) -> list[Any]:
    """Remove the value at a path and return it in a list, which is empty if it is gone already."""
    for name in path[:-1]:
        whole = whole.get(name, {})
    return [whole.pop(path[-1])] if path[-1] in whole else []


def later(raw: Mapping[str, Any], kind: type[Stored]) -> str | None:
    """Return the reason for refusing a file of a later version, whose fields may have another
    meaning; None for other files."""
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
