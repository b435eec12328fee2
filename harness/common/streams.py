"""What is printed must not fail: by then the results are there."""

import sys


def print_in_any_encoding() -> None:
    """From now on a letter that stdout's or stderr's encoding lacks is written as its number, and
    is no error."""
    for stream in (sys.stdout, sys.stderr):
        if reconfigure := getattr(stream, "reconfigure", None):
            reconfigure(errors="backslashreplace")
