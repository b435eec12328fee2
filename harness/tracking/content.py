"""The content of a cell's W&B run, read from the store alone.

It is equal right after a run and in a later `python -m harness.sync`.
"""

import math
from pathlib import Path
from typing import Any

from harness.analysis.reader import Record, records, view
from harness.common.files import short_hash
from harness.results.schema import Stored

TEXT_FIELDS = {"prediction", "target", "doc_hash", "key", "measurement"}  # row fields that are sent as text
MAX_TEXT = 80  # characters of a text field: enough for an answer, too few for a document
PRIVATE = ("message", "traceback")  # fields of an outcome: errors may quote a prompt


def content_of(results: Path, cell_id: str) -> dict | None:
    """Return the run of a cell as JSON; None if the store has no records of it.

    name, group, job_type, tags, config: arguments of wandb.init.
    row: metrics by their names in the store, and context and masks as axes.
    summary: status, samples and interval bounds.
    tables: rows of each task.
    files: the record.
    status: ok, error, oom, stopped or unsupported.
    """
    cell_records = [r for r in records(results, [cell_id]) if r.outcome or r.rows]
    if not cell_records:
        return None
    cell, identity = cell_records[0].cell, cell_records[0].identity
    by_name = _names(cell_records)
    axes = {"context": identity.context, "masks": identity.attn.masks}
    environment = max((r.environment for r in cell_records), key=lambda e: e.start)
    metrics: dict[str, float] = {}
    summary: dict[str, Any] = {}
    tables: dict[str, dict[str, Any]] = {}
    for name, record in by_name.items():
        summary[f"{name}/status"] = record.status
        summary[f"{name}/samples"] = record.count
        summary[f"{name}/error_type"] = (record.outcome.error or "") if record.status != "ok" else ""
        for full_name, metric in record.metrics.items():
            metric_name = f"{name}/{full_name.split('/', 1)[1]}"
            metrics[metric_name] = metric.value
            bounds = {f"{metric_name}_low": metric.low, f"{metric_name}_high": metric.high}
            summary |= {bound: value for bound, value in bounds.items() if value is not None}
        if record.metrics:
            tables[f"{name}/rows"] = _table(record)
    return {
        "cell_id": cell_id,
        "name": f"{cell.model} {cell.label} {identity.context}",
        "group": f"{cell.model} {identity.context} tokens",
        "job_type": "bench" if all(r.rows_are == "repeats" for r in cell_records) else "eval",
        "tags": [t[:64] for t in (cell.model, identity.attn.name, identity.kernel) if t],
        "config": {
            "cell_id": cell_id,
            **_fields(cell, "model", "source", "architecture", "label", "pairs_per_row"),
            **axes,
            **_fields(identity, "attn", "kernel", "dtype", "seed", "draws", "data_seed"),
            "task": {name: record.outcome.options for name, record in by_name.items()},
            "environment": environment.as_json(),
        },
        "row": {**{k: v for k, v in axes.items() if v is not None}, **metrics} if metrics else {},
        "summary": summary,
        "tables": tables,
        "files": {
            "result.json": view(results, cell_id),
            **{f"{r.store.folder.name}/task.json": _public(r.outcome.as_json()) for r in cell_records if r.outcome},
        },
        "status": _worst([r.status for r in cell_records]),
    }


def _fields(source: Stored, *names: str) -> dict[str, Any]:
    """Return fields of a record as JSON, null if missing."""
    values = source.as_json()
    return {name: values.get(name) for name in names}


def duplicate_of(content: dict, run_id: str) -> dict:
    """Return the content of a sweep's run whose cell was already logged as `run_id`.

    It points to that run and has no metrics, to keep charts free of duplicates.
    """
    config = {**content["config"], "duplicate_of": run_id}
    empty: dict[str, dict] = {"row": {}, "summary": {}, "tables": {}, "files": {}}
    return {**content, **empty, "config": config, "tags": [*content["tags"], "duplicate"]}


def hash_of(content: dict) -> str:
    """Return a hash of the content, with group and tags."""
    return short_hash(content)


def row_hash(content: dict) -> str:
    """Return a hash of metrics and tables; a resumed run logs a row only if it changed."""
    return short_hash([content["row"], content["tables"]])


def _names(cell_records: list[Record]) -> dict[str, Record]:
    """Return the records by the prefix of their metrics.

    If a cell has a task with several sets of options, the newest has the task's name, and the
    others add a part of their id.
    """
    by_age = sorted(cell_records, key=lambda r: (r.start, r.store.task_id))
    newest = {record.task: record for record in by_age}
    return {
        r.task if newest[r.task] is r else f"{r.task}-{r.store.task_id[:6]}": r
        for r in sorted(cell_records, key=lambda r: (r.task, r.store.task_id))
    }


def _table(record: Record) -> dict[str, Any]:
    """Return numbers and shortened answers of rows; other text may be a prompt and is left out."""
    rows = [_flat(row) for row in record.lines.values()]
    columns = [
        name
        for name in dict.fromkeys(name for row in rows for name in row)
        if name in TEXT_FIELDS or all(_is_number(row.get(name)) for row in rows)
    ]
    return {"columns": columns, "data": [[_shorten(row.get(name)) for name in columns] for row in rows]}


def _flat(row: dict) -> dict:
    """Return a row with dicts flattened to dotted names, as values.accuracy."""
    return {
        name if key is None else f"{name}.{key}": value
        for name, field in row.items()
        for key, value in (field.items() if isinstance(field, dict) else [(None, field)])
    }


def _is_number(value: object) -> bool:
    return value is None or isinstance(value, (bool, int)) or (isinstance(value, float) and math.isfinite(value))


def _shorten(value: object) -> object:
    return value if _is_number(value) else str(value)[:MAX_TEXT]


def _public(outcome: dict) -> dict:
    return {key: value for key, value in outcome.items() if key not in PRIVATE}


def _worst(statuses: list[str]) -> str:
    return next((s for s in ("conflict", "damaged", "stopped", "error", "oom", "missing") if s in statuses), "ok")
