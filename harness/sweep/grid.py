"""A sweep file in W&B's format and its rows, in the order and spelling of a W&B agent.

The order is that of W&B's grid: parameters by name, the last varying fastest. An agent writes
`str(value)`; a whole number comes back from W&B's server as an integer, so 16.0 is written 16.
"""

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from harness.common.errors import UserError, nearest
from harness.common.files import read_file
from harness.experiment.overrides import is_readable, parse_override, quote_value

KEYS = ("program", "method", "name", "description", "project", "entity", "metric", "command", "parameters")
COMMAND_END = ["harness.run", "${args_no_hyphens}"]  # last words of the agent's command


@dataclass(frozen=True)
class Grid:
    """A grid of parameters; values: the rendered values by parameter, sorted by name."""

    name: str
    values: Mapping[str, tuple[str, ...]]

    def __len__(self) -> int:
        return math.prod(len(v) for v in self.values.values())

    def overrides(self, number: int) -> tuple[str, ...]:
        """Return the overrides of row `number`, from 1; the last parameter varies fastest."""
        rest, texts = number - 1, []
        for options in reversed(self._options):
            rest, index = divmod(rest, len(options))
            texts.append(options[index])
        return tuple(reversed(texts))

    @functools.cached_property
    def _options(self) -> list[list[str]]:
        return [[f"{name}={text}" for text in texts] for name, texts in self.values.items()]

    def with_overrides(self, overrides: Mapping[str, str]) -> "Grid":
        """Return the grid with some parameters set for all rows."""
        values = {**self.values, **{key: (text,) for key, text in overrides.items()}}
        return Grid(self.name, dict(sorted(values.items())))


def read_grid(file: Path) -> Grid:
    """Read a sweep file; raise UserError with a line for each of its mistakes."""
    try:
        text = read_file(file)
        if text is None:
            raise UserError(f"{file} cannot be read: there is no such file.")
        content = yaml.safe_load(text)
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}.") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{file} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise UserError(f"{file} holds no sweep: see docs/sweeps.md for its form.")
    messages = [f"{key!r} is not supported.{nearest(key, KEYS)}" for key in content if key not in KEYS]
    if content.get("method") != "grid":
        messages.append(f"method is {content.get('method')}: write method: grid, the only one that runs without W&B.")
    command = content.get("command", COMMAND_END)
    if not isinstance(command, list) or command[-2:] != COMMAND_END:
        messages.append("command must end with harness.run and ${args_no_hyphens}, and nothing in between or after.")
    parameters = content.get("parameters")
    values = {}
    if not isinstance(parameters, dict) or not parameters:
        messages.append("parameters is empty: name at least one, for example masks: {values: [4, 16]}.")
    else:
        for name in sorted(parameters, key=str):
            try:
                values[str(name)] = _values(str(name), parameters[name])
            except UserError as error:
                messages.append(str(error))
    if messages:
        raise UserError("\n".join(f"{file}: {sentence}" for sentence in messages))
    return Grid(file.stem, values)


def _values(name: str, parameter: object) -> tuple[str, ...]:
    if name == "results":
        raise UserError("results is no parameter: name the folder with --results, or in the agent's command.")
    if name.startswith(("hydra", "~", "+")):
        raise UserError(f"{name} is no option of harness.run that a sweep can set.")
    if isinstance(parameter, dict) and "parameters" in parameter:
        raise UserError(f"{name}: nested parameters cannot be written as an override: use dotted names, {name}.KEY.")
    if not isinstance(parameter, dict) or set(parameter) not in ({"value"}, {"values"}):
        raise UserError(f"{name} needs either value or values, and nothing else (a grid has no distributions).")
    values = parameter["values"] if "values" in parameter else [parameter["value"]]
    if not isinstance(values, list) or not values:
        raise UserError(f"{name}: values must be a list that is not empty.")
    texts = tuple(render(name, value) for value in values)
    if repeated := next((t for t in texts if texts.count(t) > 1), None):
        raise UserError(f"{name}: {repeated} is listed twice.")
    return texts


def render(name: str, value: object) -> str:
    """Return a value in the spelling of a W&B agent.

    Raises:
        UserError: if Hydra would parse a different value.
    """
    if value is None:
        raise UserError(f'{name}: an agent writes an empty value as the word None. Write "null", in quotes.')
    if isinstance(value, dict):
        raise UserError(f"{name}: a mapping cannot be written as an override: use dotted names, {name}.KEY.")
    if isinstance(value, float):
        if not math.isfinite(value):
            raise UserError(f"{name}: {value} is no number of JSON, in which W&B keeps the values.")
        if value.is_integer() and abs(value) < 1e21:
            value = int(value)
    text = str(value)
    check_override(name, text)
    return text


def check_override(name: str, text: str) -> None:
    """Raise UserError unless Hydra parses name=text as one value."""
    if not is_readable(name, text):
        raise UserError(
            f"{name}: {text!r} cannot be read as an override: write {quote_value(text)}, these quotes in it."
        )
    if parse_override(f"{name}={text}").is_sweep_override():
        raise UserError(f"{name}: Hydra reads {text!r} as several values: write each as a value, or a list as [a, b].")
