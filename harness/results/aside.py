"""What is wrong in a store is set aside, and nothing is thrown away: it moves to results/aside/, in a
folder for each time, under its own path."""

import os
import time
import uuid
from pathlib import Path

FOLDER = "aside"


def place_aside(results: Path) -> Path:
    """A new folder's name in results/aside/, for all that is set aside at one time."""
    return results / FOLDER / f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{uuid.uuid4().hex[:6]}"


def set_aside(results: Path, path: Path, place: Path) -> Path:
    """Move a file, a folder or a link of the store there; returns where it is now. Raises
    OSError."""
    there = place / path.relative_to(results)
    there.parent.mkdir(parents=True, exist_ok=True)
    os.rename(path, there)
    return there
