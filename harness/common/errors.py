"""Exit codes, mistakes of the user's, and the nearest valid name to a mistyped one."""

import difflib
import json
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from harness.common.streams import printable, shortened

EXIT_OK, EXIT_FAILED, EXIT_INVALID, EXIT_RETRY = 0, 1, 2, 75
# exit code -> status in the JSON line
STATUSES = {EXIT_OK: "ok", EXIT_FAILED: "failed", EXIT_INVALID: "invalid", EXIT_RETRY: "stopped"}
LINES = 3  # of a mistake on stderr


class UserError(Exception):
    """A mistake of the user's, with a message that says what to change.

    It is raised before expensive work. The command line prints the message without a traceback and
    exits with code 2. fields: further fields of its JSON line.
    """

    fields: Mapping[str, object] = {}


class CannotLoad(UserError):
    """A checkpoint or tokenizer that cannot be loaded or is invalid, so that no task can run."""


def nearest(word: str, known: Iterable[str]) -> str:
    """Return a hint for a mistyped word: " Did you mean X?" and the choices if there are few."""
    names = list(known)
    lowered = {name.lower(): name for name in names}
    close = difflib.get_close_matches(str(word).lower(), lowered, n=1, cutoff=0.5)
    hint = f" Did you mean {lowered[close[0]]}?" if close else ""
    return f"{hint} Choose one of: {', '.join(names)}." if len(names) <= 24 else hint


def choose(name: str, value: str, known: Iterable[str]) -> str:
    """Return `value` if it is one of `known`.

    Args:
        name: name of the option for the message.
        value: value of the option.
        known: the valid values.

    Raises:
        UserError: if it is not.
    """
    values = list(known)
    if value not in values:
        raise UserError(f"{name}: {value!r} is not known.{nearest(value, values)}")
    return value


def report_mistake(sentence: str, **fields: object) -> int:
    """Print a mistake to stderr and as a JSON line to stdout, and return the exit code.

    Args:
        sentence: the mistake, or several, a line each. Of more than LINES lines stderr gets the
            first, and the JSON line all; of a long line the end is left out.
        fields: further fields of the JSON line, whose long lines are shortened, too.
    """
    lines = [shortened(line) for line in sentence.splitlines()]
    told = lines if len(lines) <= LINES else lines[: LINES - 1] + [_rest(len(lines) - LINES + 1)]
    print(*map(printable, told), sep="\n", file=sys.stderr)
    print(json.dumps({"status": STATUSES[EXIT_INVALID], "message": "\n".join(lines), **_short(fields)}), flush=True)
    return EXIT_INVALID


def _short(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _short(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_short(inner) for inner in value]
    return "\n".join(map(shortened, value.splitlines())) if isinstance(value, str) else value


def _rest(count: int) -> str:
    return f"... and {count} more mistakes, which are in the JSON line."
