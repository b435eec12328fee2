"""A mistake of the user's, answered in a sentence that says what to change; and how to find the
nearest right word."""

import difflib
import json
import sys
from collections.abc import Iterable

DONE, FAILED, MISTAKE, AGAIN = 0, 1, 2, 75  # the exit codes
STATUSES = {DONE: "ok", FAILED: "failed", MISTAKE: "invalid", AGAIN: "stopped"}  # and their names in the JSON line


class UserError(Exception):
    """Raised before expensive work. The command line prints it without a traceback and exits with
    2."""


class CannotLoad(UserError):
    """A checkpoint or tokenizer that could not be had, or is not what it should be: no task of the
    run can go on."""


def nearest(word: str, known: Iterable[str]) -> str:
    """A hint for a mistyped word: " Did you mean X?" and the choices, or the choices alone."""
    known = list(known)
    lowered = {k.lower(): k for k in known}
    close = difflib.get_close_matches(str(word).lower(), lowered, n=1, cutoff=0.5)
    meant = f" Did you mean {lowered[close[0]]}?" if close else ""
    return f"{meant} Choose one of: {', '.join(known)}." if len(known) <= 24 else meant


def choose(name: str, value: str, known: Iterable[str]) -> str:
    """`value` if it is one of `known`, else UserError."""
    known = list(known)
    if value not in known:
        raise UserError(f"{name}: {value!r} is not known.{nearest(value, known)}")
    return value


def refused(sentence: str, **more: object) -> int:
    """How every command answers a mistake: the sentence on stderr, a JSON line on stdout; returns
    the exit code."""
    print(sentence, file=sys.stderr)
    print(json.dumps({"status": STATUSES[MISTAKE], "message": sentence, **more}), flush=True)
    return MISTAKE
