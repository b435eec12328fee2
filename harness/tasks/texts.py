"""Texts of the user, for the tasks that read one."""

import os
from pathlib import Path

from harness.common.errors import UserError
from harness.common.files import read_file


def read_text(option: str, path: str | None) -> str:
    """Return the content of a text file, unchanged.

    Args:
        option: name of the option, for errors.
        path: its value.

    Raises:
        UserError: without a path, or if the file is missing, no regular file, not UTF-8 or blank.
    """
    if not path:
        raise UserError(f"{option} is missing: name a text file, {option}=FILE.")
    file = Path(os.path.expanduser(path))
    try:
        text = (read_file(file) or b"").decode("utf-8") if file.is_file() else None
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise UserError(f"{option}={path} cannot be read as UTF-8 text: {error}.") from None
    if text is None:
        raise UserError(f"{option}={path}: there is no such file.")
    if not text.strip():
        raise UserError(f"{option}={path} holds no text.")
    return text
