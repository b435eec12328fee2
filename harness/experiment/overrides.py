"""Overrides key=value of a command line: how a text is quoted so that Hydra reads it unchanged."""

import functools
import re
import shlex
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from typing import get_args, get_type_hints

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override
from hydra.errors import HydraException

from harness.common.errors import UserError, nearest
from harness.common.paths import CONF
from harness.common.secrets import learn, learn_value
from harness.experiment.config import GROUPS, RunConfig

# one or several values without quotes or brackets
PLAIN_VALUES = re.compile(r"[\w.+-]+(,[\w.+-]+)*", re.ASCII)
FLAGS_WITH_VALUE: tuple[str, ...] = (
    "--config-path",
    "-cp",
    "--config-name",
    "-cn",
    "--config-dir",
    "-cd",
    "--package",
    "-p",
)
FLAGS_WITH_VALUE += ("--cfg", "-c", "--experimental-rerun")


def quote_value(text: str) -> str:
    """Return the text as a value that Hydra reads back unchanged, in quotes only if necessary."""
    return text if _is_plain(text) else _in_quotes(text)


def override_word(name: str, text: str) -> str:
    """Return name=text for a list of arguments; a shell needs `shlex.quote` around it."""
    return f"{name}={quote_value(text)}"


def normalize_arguments(arguments: Sequence[str]) -> list[str]:
    """Return the arguments as Hydra needs them: flags first, overrides by `normalize_override`.

    Hydra does not find a flag that stands between overrides.

    Raises:
        UserError: for an override that cannot be read.
    """
    flags, overrides = [], []
    remaining = list(arguments)
    while remaining:
        argument = remaining.pop(0)
        if not argument.startswith("-"):
            overrides.append(normalize_override(argument))
            continue
        flags.append(argument)
        if argument in FLAGS_WITH_VALUE and remaining:
            flags.append(remaining.pop(0))
    return [*flags, *overrides]


def normalize_override(argument: str) -> str:
    """Return the override with quotes around a text that Hydra would turn into a number.

    For example, model.revision=83e2010 names a commit.

    Raises:
        UserError: if the override cannot be read, deletes an option, or chooses in a group
            something that is not a name.
    """
    learn([argument])
    override = _parse(argument)
    learn_value(override.key_or_group, override.value() if not override.is_sweep_override() else None)
    name, text = override.key_or_group, argument.partition("=")[2]
    if override.is_delete() and not name.startswith("hydra"):
        choices = nearest("", _choices(name)) if name in GROUPS else ""
        raise UserError(f"{argument} takes away what a run needs: write {name}=VALUE.{choices}")
    if name in GROUPS:
        _check_names(name, override)
    elif PLAIN_VALUES.fullmatch(text) and _is_text(name):
        return f"{argument[: -len(text)]}{','.join(map(_literal, text.split(',')))}"
    return argument


def parse_override(argument: str) -> Override:
    """Return an argument, normalized by `normalize_override`, as Hydra's override.

    Raises:
        UserError: as `normalize_override`.
    """
    return _parse(normalize_override(argument))


def is_readable(name: str, text: str) -> bool:
    """Return whether Hydra can parse name=text without further quotes."""
    return _parse_or_none(f"{name}={text}") is not None


def _unreadable_message(name: str, text: str) -> str:
    """The message about a value that Hydra cannot parse, with the quoted form that it can."""
    return (
        f"{name}={text} could not be read. A value with spaces, commas, letters beyond ASCII or any of = ( ) {{ }} [ ] "
        "# ~ in it needs quotes of its own, and on a command line the shell's around them: "
        f"{shlex.quote(override_word(name, text))}"
    )


def _parse(argument: str) -> Override:
    override = _parse_or_none(argument)
    if override is None:
        name, equals, text = argument.partition("=")
        if equals:
            raise UserError(_unreadable_message(name, text))
        raise UserError(f"{argument!r} could not be read: an option is written key=value.")
    return override


# the parser takes milliseconds, and rows of a sweep repeat overrides
@functools.lru_cache(maxsize=1024)
def _parse_or_none(argument: str) -> Override | None:
    try:
        return OverridesParser.create().parse_override(argument)
    except (HydraException, ValueError, RecursionError):  # of a number or a nesting without end, too
        return None


def _check_names(group: str, override: Override) -> None:
    """Raise UserError unless a group is given a name, or for tasks a name or a list of names."""
    value = override.value()
    choices = value.list if isinstance(value, ChoiceSweep) else [value]
    for choice in choices:
        if isinstance(choice, list) and group != "task":
            names = ",".join(map(str, choice))
            raise UserError(f"{group} is one at a time: -m {group}={names} runs a cell with each.")
        for name in choice if isinstance(choice, list) else [choice]:
            if not isinstance(name, (str, dict)):
                text = "null" if name is None else str(name).lower()
                raise UserError(f"There is no {group}={text}.{nearest(text, _choices(group))}")


def _choices(group: str) -> list[str]:
    return sorted(p.stem for p in (CONF / group).glob("*.yaml"))


def _literal(text: str) -> str:
    """The text, in quotes if Hydra would read it as a number or truth value in another form."""
    value = _parse(f"x={text}").value()
    return _in_quotes(text) if isinstance(value, (bool, int, float)) and str(value) != text else text


def _is_plain(text: str) -> bool:
    override = _parse_or_none(f"x={text}")
    return override is not None and override.value() == text and "$" not in text and "\\" not in text


def _in_quotes(text: str) -> str:
    # Hydra unescapes backslashes only before an interpolation, before a quote and at the end
    text = re.sub(r"(\\*)\$\{", lambda match: match[1] * 2 + "\\${", text)
    text = re.sub(r'(\\+)(?="|\Z)', lambda match: match[1] * 2, text)
    return '"' + text.replace('"', '\\"') + '"'


def _is_text(name: str) -> bool:
    """Whether the value of an option is a text."""
    task, _, option = name.removeprefix("task.").partition(".")
    if name.startswith("task.") and option:
        from harness.tasks.registry import TASKS  # slow to import and rarely needed

        return task in TASKS and _texts(TASKS[task].options).get(option, False)
    return _texts(RunConfig).get(name, False)


@functools.cache
def _texts(kind: type) -> dict[str, bool]:
    """Dotted name of each option of a dataclass, nested ones included -> whether it is a text."""
    hints = get_type_hints(kind)
    texts: dict[str, bool] = {}
    for field in fields(kind):
        hint = hints[field.name]
        for part in (hint, *get_args(hint)):
            if isinstance(part, type) and is_dataclass(part):
                texts |= {f"{field.name}.{name}": text for name, text in _texts(part).items()}
        texts[field.name] = hint is str or str in get_args(hint) and getattr(hint, "__origin__", None) is None
    return texts
