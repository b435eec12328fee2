"""Texts for the tasks that read one: files of the user, and the held-out texts of the package."""

import functools
import hashlib
import os
from pathlib import Path

from harness.common.errors import UserError
from harness.common.files import read_file
from harness.common.paths import TEXTS

HELD_OUT = ("novel", "code")  # names of TEXTS/NAME.txt


def read_text(option: str, path: str | None) -> str:
    """Return the content of a text file, unchanged.

    Args:
        option: name of the option, for errors.
        path: its value, a path or one of HELD_OUT.

    Raises:
        UserError: without a path, or if the file is missing, no regular file, not UTF-8 or blank.
    """
    if not path:
        raise UserError(f"{option} is missing: name a text file, {option}=FILE, or one of {', '.join(HELD_OUT)}.")
    file = TEXTS / f"{path}.txt" if path in HELD_OUT else Path(os.path.expanduser(path))
    try:
        text = (read_file(file) or b"").decode("utf-8") if file.is_file() else None
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise UserError(f"{option}={path} cannot be read as UTF-8 text: {error}.") from None
    if text is None:
        raise UserError(f"{option}={path}: there is no such file.")
    if not text.strip():
        raise UserError(f"{option}={path} holds no text.")
    return text


def held_out_name(sha256: object) -> str | None:
    """Return the name of the held-out text with this hash; None for another text."""
    return next((name for name in HELD_OUT if _sha256(name) == sha256), None)


@functools.cache
def _sha256(name: str) -> str:
    return hashlib.sha256(read_text("text", name).encode()).hexdigest()
