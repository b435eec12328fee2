"""Build commands from records: the command that made one, and those of its missing neighbours."""

import functools
import re
import shlex
from collections.abc import Sequence

import yaml

from harness.analysis.reader import Record
from harness.attentions.base import RUN_OPTIONS, Attention
from harness.common.paths import CONF
from harness.experiment.overrides import override_word
from harness.tasks.lmeval.catalogue import RULER

# options that a neighbour's command takes over from the recorded command
INHERITED = ("model.", "device=", "batch=", "results=", "task.")
# functions by which Hydra sweeps over several values
SWEEP_FUNCTION = re.compile(r"(choice|range|interval|glob|shuffle|sort|tag)\(")


def recorded_commands(records: Sequence[Record]) -> list[str]:
    """Return the distinct commands that made these records, as the store has them."""
    commands = (record.environment.command for record in records)
    return list(dict.fromkeys(command for command in commands if command))


def neighbour_command(record: Record, attention: Attention, context: int | None = None) -> str:
    """Return the command for another attention or context under the conditions of a record.

    Args:
        record: the record whose model, seeds and task are used.
        attention: the attention to compute.
        context: tokens; the record's own if None.
    """
    identity = record.identity
    words = ["python", "-m", "harness.run", *model_words(record), f"attn={attention.name}"]
    for option, value in attention.identity.items():
        if option != "name" and value not in (None, False):
            words.append(f"{'' if option in RUN_OPTIONS else 'attn.'}{option}={_value_text(value)}")
    words += [f"context={context or identity.context}", *_task_words(record), f"dtype={identity.dtype}"]
    if record.rows_are == "samples" and record.count:
        words.append(f"samples={record.count}")
    words.append(f"data_seed={identity.data_seed}")
    if attention.name == record.attention.name and identity.seed is not None:
        words += [f"seed={identity.seed}", f"draws={identity.draws}"]
    if identity.kernel not in (None, "auto"):
        words.append(f"kernel={identity.kernel}")
    names = {word.split("=")[0] for word in words}
    inherited = [word for word in _single_overrides(record) if word.startswith(INHERITED)]
    return shlex.join([*words, *(word for word in inherited if word.split("=")[0] not in names)])


def model_words(record: Record) -> list[str]:
    """Return the overrides that choose the record's model, its options included."""
    overrides = _single_overrides(record)
    name = record.cell.model.split(",")[0]
    default = override_word("model", _config_names().get(name, name))
    model = next((word for word in overrides if word.startswith("model=")), default)
    return [model, *(word for word in overrides if word.startswith("model."))]


def _task_words(record: Record) -> list[str]:
    """The overrides that choose the record's task; a task of lm-eval is chosen by its family."""
    if words := [word for word in _single_overrides(record) if word.startswith("task=")]:
        return words
    lm_eval = "lm_eval" in record.options
    family = "ruler" if record.task in RULER else "lm_eval" if lm_eval else None
    return [f"task={family}", f"task.{family}.names=[{record.task}]"] if family else [f"task={record.task}"]


def _single_overrides(record: Record) -> list[str]:
    """The overrides of the record's command that hold a single value.

    A list in brackets is a single value, the comma-separated list of a multirun is not.
    """
    commands = recorded_commands([record])
    try:
        words = shlex.split(commands[0]) if commands else []
    except ValueError:  # a quote without its end: nobody has typed this
        words = []
    return [word for word in words if "=" in word and _is_single(word.split("=", 1)[1])]


def _is_single(value: str) -> bool:
    return value[:1] in ("[", "{", '"', "'") or ("," not in value and not SWEEP_FUNCTION.match(value))


@functools.cache
def _config_names() -> dict[str, str]:
    """Names of files in conf/model by the name of the model that they configure."""
    files = sorted((CONF / "model").glob("*.yaml"))
    return {yaml.safe_load(file.read_text()).get("name", file.stem): file.stem for file in files}


def _value_text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
