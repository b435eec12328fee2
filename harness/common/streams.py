"""Make printing safe in every encoding: it happens after the results were computed."""

import functools
import sys


def print_in_any_encoding() -> None:
    """Let stdout and stderr escape characters that their encodings lack, instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if reconfigure := getattr(stream, "reconfigure", None):
            reconfigure(errors="backslashreplace")


@functools.cache
def say_once(sentence: str) -> None:
    """On stderr, and not again in this process."""
    print(sentence, file=sys.stderr)
