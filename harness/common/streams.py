"""Make printing safe: no failure to print decides an exit code, no text controls a terminal."""

import contextlib
import functools
import io
import os
import re
import select
import sys
from typing import IO, TextIO, cast

from harness.common.secrets import without_secrets

CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
LONGEST = 600  # characters of a line of a mistake or a note


def steady_streams() -> None:
    """Let no stdout and stderr fail a command.

    A reader that has left and a full disk under a log are no errors; characters that an encoding
    lacks are escaped. Secrets are left out.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is not None and stream is getattr(sys, f"__{name}__") and not isinstance(stream, _Steady):
            with contextlib.suppress(OSError, ValueError, AttributeError):
                setattr(sys, name, _Steady(stream))
        elif reconfigure := getattr(stream, "reconfigure", None):
            reconfigure(errors="backslashreplace")


class _Steady(io.TextIOWrapper):
    """A text stream over the descriptor of another, with `_Descriptor` below it."""

    def __init__(self, other: TextIO):
        with contextlib.suppress(OSError):
            other.flush()
        descriptor = _Descriptor(other.fileno(), "wb", closefd=False)
        buffered = cast(IO[bytes], io.BufferedWriter(descriptor))
        lines = getattr(other, "line_buffering", False)
        super().__init__(buffered, other.encoding, errors="backslashreplace", line_buffering=lines)

    def write(self, text: str) -> int:
        super().write(without_secrets(text))
        return len(text)


class _Descriptor(io.FileIO):
    def write(self, data) -> int:
        """Write, or drop what cannot be written.

        Once the reader has left, the descriptor leads to the null device, for libraries and child
        processes too.
        """
        try:
            while (written := super().write(data)) is None:  # a pipe that does not wait, and is full
                select.select([], [self], [])
            return written
        except BrokenPipeError:
            with contextlib.suppress(OSError):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self.fileno())
                os.close(nowhere)
        except OSError:
            pass
        return memoryview(data).nbytes


def printable(text: str) -> str:
    """Escape control characters and marks of writing direction, and leave out secrets; tabs and
    line ends stay."""
    return CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), without_secrets(text))


def shortened(line: str) -> str:
    """Return a line without its middle if it has more than LONGEST characters."""
    return line if len(line) <= LONGEST else f"{line[: LONGEST // 2]} ... {line[-LONGEST // 2 :]}"


@functools.cache
def say_once(sentence: str) -> None:
    """On stderr, and not again in this process."""
    print(printable(shortened(sentence)), file=sys.stderr)
