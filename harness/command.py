"""The command that makes a record, or one that is missing beside it."""

import shlex
from collections.abc import Sequence

from harness.reader import Record

KEPT = ("model.", "device=", "batch=", "results=", "task.")  # of a recorded command, for its neighbours


def recorded(found: Sequence[Record]) -> list[str]:
    """The distinct commands that made these records, as the store has them."""
    given = (r.outcome.get("environment", {}).get("command") for r in found)
    return list(dict.fromkeys(command for command in given if command))


def beside(record: Record, attention: dict, context: int | None = None) -> str:
    """The command for another attention or context under the conditions of this record: same model, seeds, task."""
    identity = record.cell["identity"]
    words = ["python", "-m", "harness.run", f"model={record.cell['model']}", f"attn={attention['name']}"]
    if attention.get("masks"):
        words.append(f"masks={attention['masks']}")
    for option in ("sampler", "weights", "cutoff", "sinks"):
        if attention.get(option) is not None:
            words.append(f"attn.{option}={attention[option]}")
    words += [f"context={context or identity['context']}", f"task={record.task}", f"dtype={identity['dtype']}"]
    words += [f"samples={max(len(record.rows), 1)}", f"data_seed={identity['data_seed']}"]
    if attention["name"] == "plsh" and identity.get("seed") is not None:
        words += [f"seed={identity['seed']}", f"draws={identity['draws']}"]
    if identity.get("kernel") not in (None, "auto"):
        words.append(f"kernel={identity['kernel']}")
    said = recorded([record])
    if said:
        options = [w for w in shlex.split(said[0]) if w.startswith(KEPT) and "," not in w]
        words += [w for w in options if w.split("=")[0] not in {x.split("=")[0] for x in words}]
    return shlex.join(words)
