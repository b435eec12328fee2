"""The command that makes a record, or one that is missing beside it."""

import functools
import re
import shlex
from collections.abc import Sequence

import yaml

from harness.analysis.reader import Record
from harness.attentions.base import RUN, Attention
from harness.common.paths import CONF
from harness.experiment.overrides import word
from harness.tasks.lmeval.catalogue import RULER

KEPT = ("model.", "device=", "batch=", "results=", "task.")  # of a recorded command, for its neighbours
SWEPT = re.compile(r"(choice|range|interval|glob|shuffle|sort|tag)\(")  # Hydra's functions of several values


def recorded(found: Sequence[Record]) -> list[str]:
    """The distinct commands that made these records, as the store has them."""
    given = (r.environment.command for r in found)
    return list(dict.fromkeys(command for command in given if command))


def beside(record: Record, attention: Attention, context: int | None = None) -> str:
    """The command for another attention or context under the conditions of this record: same model,
    seeds, task."""
    identity = record.identity
    words = ["python", "-m", "harness.run", *model(record), f"attn={attention.name}"]
    for option, value in attention.identity.items():
        if option != "name" and value not in (None, False):
            words.append(f"{'' if option in RUN else 'attn.'}{option}={_value(value)}")
    given = _given(record)
    words += [f"context={context or identity.context}", *_task(record), f"dtype={identity.dtype}"]
    if record.rows_are == "samples" and record.count:
        words.append(f"samples={record.count}")
    words.append(f"data_seed={identity.data_seed}")
    if attention.name == record.attention.name and identity.seed is not None:
        words += [f"seed={identity.seed}", f"draws={identity.draws}"]
    if identity.kernel not in (None, "auto"):
        words.append(f"kernel={identity.kernel}")
    named = {word.split("=")[0] for word in words}
    words += [w for w in given if w.startswith(KEPT) and w.split("=")[0] not in named]
    return shlex.join(words)


def model(record: Record) -> list[str]:
    """The words that choose the record's model, its options included."""
    given = _given(record)
    name = record.cell.model.split(",")[0]
    chosen = next((w for w in given if w.startswith("model=")), word("model", _choices().get(name, name)))
    return [chosen, *(w for w in given if w.startswith("model."))]


def _task(record: Record) -> list[str]:
    """The words that choose the record's task: one of lm-eval's is chosen by its family."""
    if given := [w for w in _given(record) if w.startswith("task=")]:
        return given
    lm_eval = "lm_eval" in record.options
    family = "ruler" if record.task in RULER else "lm_eval" if lm_eval else None
    return [f"task={family}", f"task.{family}.names=[{record.task}]"] if family else [f"task={record.task}"]


def _given(record: Record) -> list[str]:
    """The words of the record's command that hold one value: a list in brackets is one, a
    multirun's list is not."""
    said = recorded([record])
    words = shlex.split(said[0]) if said else []
    return [w for w in words if "=" in w and _single(w.split("=", 1)[1])]


def _single(value: str) -> bool:
    return value[:1] in ("[", "{", '"', "'") or ("," not in value and not SWEPT.match(value))


@functools.cache
def _choices() -> dict[str, str]:
    """The configuration that a model's name comes from."""
    files = sorted((CONF / "model").glob("*.yaml"))
    return {yaml.safe_load(file.read_text()).get("name", file.stem): file.stem for file in files}


def _value(option: object) -> str:
    return str(option).lower() if isinstance(option, bool) else str(option)
