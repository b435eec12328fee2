"""Damaged records are set aside and never deleted: they move to results/aside/, into one folder for
each repair, and keep their path within the store."""

import os
import time
import uuid
from pathlib import Path

FOLDER = "aside"


def place_aside(results: Path) -> Path:
    """Return the path of a new folder in results/aside/, for all records of one repair."""
    return results / FOLDER / f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{uuid.uuid4().hex[:6]}"


def set_aside(results: Path, path: Path, place: Path) -> Path:
    """Move a file, a folder or a link of the store into a folder of results/aside/.

    Args:
        results: the store.
        path: what to move, within the store.
        place: the folder, from `place_aside`.

    Returns:
        The new path.

    Raises:
        OSError: if it cannot be moved.
    """
    there = place / path.relative_to(results)
    there.parent.mkdir(parents=True, exist_ok=True)
    os.rename(path, there)
    return there
