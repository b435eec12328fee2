"""Words of a command line, key=value, as Hydra reads them: how a text is quoted for it, and what a
person has typed."""

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
from harness.experiment.config import GROUPS, RunConfig

PLAIN = re.compile(r"[\w.+-]+(,[\w.+-]+)*", re.ASCII)  # values, perhaps several, without quotes or brackets
# flags of Hydra that have a word behind them
WITH_A_WORD = ("--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd", "--package", "-p", "--cfg", "-c")
WITH_A_WORD += ("--experimental-rerun",)


def quoted(text: str) -> str:
    """The text as a value that Hydra reads back letter for letter: as it is where it can stand so,
    else in quotes."""
    return text if _plain(text) else _in_quotes(text)


def word(name: str, text: str) -> str:
    """name=text, for a list of arguments; a shell needs `shlex.quote` around it."""
    return f"{name}={quoted(text)}"


def settled(arguments: Sequence[str]) -> list[str]:
    """What Hydra is to get in place of these arguments: flags first, which it does not find between
    overrides, and the overrides as `as_typed` has them. Raises UserError for one that cannot be
    read."""
    flags, overrides = [], []
    left = list(arguments)
    while left:
        argument = left.pop(0)
        if not argument.startswith("-"):
            overrides.append(as_typed(argument))
            continue
        flags.append(argument)
        if argument in WITH_A_WORD and left:
            flags.append(left.pop(0))
    return [*flags, *overrides]


def as_typed(argument: str) -> str:
    """The override, with what was typed for an option that holds a text in quotes where Hydra would
    make a number of it: 83e2010 is a commit, and no number. Raises UserError where the override
    cannot be read, takes an option away, or chooses what is no name."""
    override = _parsed(argument)
    name, text = override.key_or_group, argument.partition("=")[2]
    if override.is_delete() and not name.startswith("hydra"):
        choices = nearest("", _choices(name)) if name in GROUPS else ""
        raise UserError(f"{argument} takes away what a run needs: write {name}=VALUE.{choices}")
    if name in GROUPS:
        _refuse_no_names(name, override)
    elif PLAIN.fullmatch(text) and _is_text(name):
        return f"{argument[: -len(text)]}{','.join(map(_literal, text.split(',')))}"
    return argument


def parsed(argument: str) -> Override:
    """The override `as_typed` makes of an argument, as Hydra has it."""
    return _parsed(as_typed(argument))


def readable(name: str, text: str) -> bool:
    """Whether Hydra reads name=text as it stands."""
    return _read(f"{name}={text}") is not None


def _unreadable(name: str, text: str) -> str:
    """What is said of a value that Hydra does not read as it stands, with what it reads."""
    return (
        f"{name}={text} could not be read. A value with spaces, commas, letters beyond ASCII or any of = ( ) {{ }} [ ] "
        "# ~ in it needs quotes of its own, and on a command line the shell's around them: "
        f"{shlex.quote(word(name, text))}"
    )


def _parsed(argument: str) -> Override:
    read = _read(argument)
    if read is None:
        name, equals, text = argument.partition("=")
        raise UserError(
            _unreadable(name, text) if equals else f"{argument!r} could not be read: an option is written key=value."
        )
    return read


@functools.lru_cache(maxsize=1024)  # the parser takes milliseconds, and rows of a sweep say the same again
def _read(argument: str) -> Override | None:
    try:
        return OverridesParser.create().parse_override(argument)
    except HydraException:
        return None


def _refuse_no_names(group: str, override: Override) -> None:
    """UserError if what is chosen in a group is not a name, or for tasks a list of names."""
    value = override.value()
    chosen = value.list if isinstance(value, ChoiceSweep) else [value]
    for one in chosen:
        if isinstance(one, list) and group != "task":
            raise UserError(f"{group} is one at a time: -m {group}={','.join(map(str, one))} runs a cell with each.")
        for name in one if isinstance(one, list) else [one]:
            if not isinstance(name, (str, dict)):
                told = "null" if name is None else str(name).lower()
                raise UserError(f"There is no {group}={told}.{nearest(told, _choices(group))}")


def _choices(group: str) -> list[str]:
    return sorted(p.stem for p in (CONF / group).glob("*.yaml"))


def _literal(text: str) -> str:
    """The text, in quotes if Hydra reads a number or a truth value that is written in another
    way."""
    value = _parsed(f"x={text}").value()
    return _in_quotes(text) if isinstance(value, (bool, int, float)) and str(value) != text else text


def _plain(text: str) -> bool:
    read = _read(f"x={text}")
    return read is not None and read.value() == text and "$" not in text and "\\" not in text


def _in_quotes(text: str) -> str:
    # backslashes count where they stand before an interpolation, before a quote, or at the end
    text = re.sub(r"(\\*)\$\{", lambda found: found[1] * 2 + "\\${", text)
    text = re.sub(r'(\\+)(?="|\Z)', lambda found: found[1] * 2, text)
    return '"' + text.replace('"', '\\"') + '"'


def _is_text(name: str) -> bool:
    """Whether an option holds a text."""
    task, _, option = name.removeprefix("task.").partition(".")
    if name.startswith("task.") and option:
        from harness.tasks.registry import TASKS  # slow to import, and seldom asked for

        return task in TASKS and _texts(TASKS[task].options).get(option, False)
    return _texts(RunConfig).get(name, False)


@functools.cache
def _texts(kind: type) -> dict[str, bool]:
    """Every option of a dataclass and of those within it, dotted, and whether it holds a text."""
    hints, found = get_type_hints(kind), {}
    for field in fields(kind):
        hint = hints[field.name]
        for part in (hint, *get_args(hint)):
            if is_dataclass(part):
                found |= {f"{field.name}.{name}": text for name, text in _texts(part).items()}
        found[field.name] = hint is str or str in get_args(hint) and getattr(hint, "__origin__", None) is None
    return found
