"""Files that are there whole or not at all: whoever reads one sees the old file or the new one,
whenever the writer was killed."""

import contextlib
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def draft_of(path: Path) -> Iterator[Path]:
    """A name beside `path` that nobody else has, for a file or a folder to be put in its place from
    there. The folder around it is made if need be; what is left at the name in the end is
    removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}")
    try:
        yield draft
    finally:
        with contextlib.suppress(OSError):
            shutil.rmtree(draft) if draft.is_dir() else draft.unlink(missing_ok=True)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """In the `with` block: a name to write a file to, which replaces `path` at the end of the
    block. Where the block raises, `path` stays as it is."""
    with draft_of(path) as draft:
        yield draft
        with draft.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(draft, path)


def write_whole(path: Path, content: str | bytes) -> None:
    """Replace a file by this content, text as UTF-8. Raises OSError."""
    with replacing(path) as draft:
        draft.write_bytes(content.encode() if isinstance(content, str) else content)


def write_atomic(path: Path, value: object) -> None:
    """Replace a file by a value as JSON. Raises OSError, and ValueError for NaN and infinity."""
    write_whole(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def read_json(path: Path) -> dict | None:
    """The file's content; None if it is not there or not whole."""
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError, ValueError, RecursionError):
        return None


def short_hash(value: object) -> str:
    """16 hexadecimal digits over canonical JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
