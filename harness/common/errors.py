"""Exit codes, mistakes of the user's, and the nearest valid name to a mistyped one."""

import difflib
import json
import sys
from collections.abc import Iterable

EXIT_OK, EXIT_FAILED, EXIT_INVALID, EXIT_RETRY = 0, 1, 2, 75
# exit code -> status in the JSON line
STATUSES = {EXIT_OK: "ok", EXIT_FAILED: "failed", EXIT_INVALID: "invalid", EXIT_RETRY: "stopped"}


class UserError(Exception):
    """A mistake of the user's, raised before expensive work with a message that says what to
    change.

    The command line prints the message without a traceback and exits with code 2.
    """


class CannotLoad(UserError):
    """A checkpoint or tokenizer that cannot be loaded or is invalid, so that no task can run."""


def nearest(word: str, known: Iterable[str]) -> str:
    """Return a hint for a mistyped word: " Did you mean X?" and the choices if there are few."""
    known = list(known)
    lowered = {k.lower(): k for k in known}
    close = difflib.get_close_matches(str(word).lower(), lowered, n=1, cutoff=0.5)
    meant = f" Did you mean {lowered[close[0]]}?" if close else ""
    return f"{meant} Choose one of: {', '.join(known)}." if len(known) <= 24 else meant


def choose(name: str, value: str, known: Iterable[str]) -> str:
    """Return `value` if it is one of `known`.

    Args:
        name: name of the option for the message.
        value: value of the option.
        known: the valid values.

    Raises:
        UserError: if it is not.
    """
    known = list(known)
    if value not in known:
        raise UserError(f"{name}: {value!r} is not known.{nearest(value, known)}")
    return value


def report_mistake(sentence: str, **fields: object) -> int:
    """Print a mistake to stderr and as a JSON line to stdout, and return the exit code.

    fields: further fields of the JSON line.
    """
    print(sentence, file=sys.stderr)
    print(json.dumps({"status": STATUSES[EXIT_INVALID], "message": sentence, **fields}), flush=True)
    return EXIT_INVALID
