"""What a W&B run holds of a cell, read from the store alone: the same for a run that has just ended
and for `python -m harness.sync` a month later."""

import math
from pathlib import Path
from typing import Any

from harness.analysis.reader import Record, records, view
from harness.common.files import short_hash
from harness.results.schema import Stored

TEXT = {"prediction", "target", "doc_hash", "key", "measurement"}  # the only row fields that are sent as text
LONGEST = 80  # characters of them: an answer, never a document
PRIVATE = ("message", "traceback")  # of an outcome: an error may quote a prompt


def content_of(results: Path, cell_id: str) -> dict | None:
    """The run of a cell as plain JSON; None if the store has nothing of it.

    name, group, job_type, tags, config: as wandb.init takes them. row: the values of the metrics by
    their names in the store, with context and masks beside them as axes. summary: status, samples
    and the ends of the intervals. tables: the rows of each task. files: the record. status: ok,
    error, oom, stopped or unsupported.
    """
    found = [r for r in records(results, [cell_id]) if r.outcome or r.rows]
    if not found:
        return None
    cell, identity = found[0].cell, found[0].identity
    named = _names(found)
    axes = {"context": identity.context, "masks": identity.attn.masks}
    environment = max((r.environment for r in found), key=lambda e: e.start)
    metrics: dict[str, float] = {}
    summary: dict[str, Any] = {}
    tables: dict[str, dict[str, Any]] = {}
    for name, record in named.items():
        summary[f"{name}/status"] = record.status
        summary[f"{name}/samples"] = record.count
        summary[f"{name}/error_type"] = (record.outcome.error or "") if record.status != "ok" else ""
        for full_name, metric in record.metrics.items():
            plain = f"{name}/{full_name.split('/', 1)[1]}"
            metrics[plain] = metric.value
            ends = {f"{plain}_low": metric.low, f"{plain}_high": metric.high}
            summary |= {end: value for end, value in ends.items() if value is not None}
        if record.metrics:
            tables[f"{name}/rows"] = _table(record)
    return {
        "cell_id": cell_id,
        "name": f"{cell.model} {cell.label} {identity.context}",
        "group": f"{cell.model} {identity.context} tokens",
        "job_type": "bench" if all(r.rows_are == "repeats" for r in found) else "eval",
        "tags": [t[:64] for t in (cell.model, identity.attn.name, identity.kernel) if t],
        "config": {
            "cell_id": cell_id,
            **_chosen(cell, "model", "source", "architecture", "label", "pairs_per_row"),
            **axes,
            **_chosen(identity, "attn", "kernel", "dtype", "seed", "draws", "data_seed"),
            "task": {name: record.outcome.options for name, record in named.items()},
            "environment": environment.as_json(),
        },
        "row": {**{k: v for k, v in axes.items() if v is not None}, **metrics} if metrics else {},
        "summary": summary,
        "tables": tables,
        "files": {
            "result.json": view(results, cell_id),
            **{f"{r.store.folder.name}/task.json": _public(r.outcome.as_json()) for r in found if r.outcome},
        },
        "status": _worst([r.status for r in found]),
    }


def _chosen(of: Stored, *names: str) -> dict[str, Any]:
    """These fields as JSON, null where the record lacks one."""
    whole = of.as_json()
    return {name: whole.get(name) for name in names}


def duplicate_of(content: dict, run_id: str) -> dict:
    """What a run holds that a sweep made for a cell which its run `run_id` has already: the cell
    and that run, and no figures, which would stand in every chart twice."""
    config = {**content["config"], "duplicate_of": run_id}
    empty: dict[str, dict] = {"row": {}, "summary": {}, "tables": {}, "files": {}}
    return {**content, **empty, "config": config, "tags": [*content["tags"], "duplicate"]}


def hash_of(content: dict) -> str:
    """Equal for equal contents, group and tags included."""
    return short_hash(content)


def row_hash(content: dict) -> str:
    """Equal if the metrics and the tables are: then a resumed run needs no further row."""
    return short_hash([content["row"], content["tables"]])


def _names(found: list[Record]) -> dict[str, Record]:
    """Records by the name their metrics go by. Where a cell holds a task with several options, the
    newest has the plain name, the others a piece of their id."""
    by_age = sorted(found, key=lambda r: (r.start, r.store.task_id))
    newest = {record.task: record for record in by_age}
    return {
        r.task if newest[r.task] is r else f"{r.task}-{r.store.task_id[:6]}": r
        for r in sorted(found, key=lambda r: (r.task, r.store.task_id))
    }


def _table(record: Record) -> dict[str, Any]:
    """Numbers as they are, the start of short answers, nothing else: a row may hold a prompt."""
    rows = [_flat(row) for row in record.lines.values()]
    columns = [
        name
        for name in dict.fromkeys(name for row in rows for name in row)
        if name in TEXT or all(_number(row.get(name)) for row in rows)
    ]
    return {"columns": columns, "data": [[_short(row.get(name)) for name in columns] for row in rows]}


def _flat(row: dict) -> dict:
    """A row with its fields of several numbers spread out: values.accuracy."""
    return {
        name if part is None else f"{name}.{part}": value
        for name, found in row.items()
        for part, value in (found.items() if isinstance(found, dict) else [(None, found)])
    }


def _number(value: object) -> bool:
    return value is None or isinstance(value, (bool, int)) or (isinstance(value, float) and math.isfinite(value))


def _short(value: object) -> object:
    return value if _number(value) else str(value)[:LONGEST]


def _public(outcome: dict) -> dict:
    return {key: value for key, value in outcome.items() if key not in PRIVATE}


def _worst(statuses: list[str]) -> str:
    return next((s for s in ("conflict", "damaged", "stopped", "error", "oom", "missing") if s in statuses), "ok")
