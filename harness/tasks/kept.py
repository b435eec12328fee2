"""Prepared data on disk: made once, kept under a hash of all that it depends on, and held to its
manifest at every reading. What is not what was made (a flipped digit, a copy that was cut off, data
of another recipe under this name) is made again."""

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from harness.common.errors import UserError
from harness.common.files import draft_of, read_json, write_atomic
from harness.tasks.base import Prepared

MANIFEST = "manifest.json"


def keep(folder: Path, name: str, recipe: Mapping, make: Callable[[Path], Prepared]) -> Prepared:
    """The data of this recipe in `folder`. make: writes its files into a folder that it makes, and
    says what they hold.

    Raises UserError where it cannot be kept there, and what `make` raises.
    """
    recipe = json.loads(json.dumps(recipe))
    place = folder / _name(name, recipe)
    found = _whole(place, recipe)
    if found is None:
        again = " again, since what is there is not what was made" if place.exists() else ""
        print(f"Preparing the data of {name} in {place}{again}", file=sys.stderr, flush=True)
        try:
            with draft_of(place) as draft:
                made = replace(make(draft), place=place)
                files = {file.relative_to(draft).as_posix(): _hash(file) for file in draft.rglob("*") if file.is_file()}
                about = {"recipe": recipe, "documents": made.count, "sha256": made.sha256, "files": files}
                write_atomic(draft / MANIFEST, about)
                _put(draft, place, recipe)
                found = made
        except OSError as error:
            raise UserError(f"The data of {name} cannot be kept in {place}: {error}.") from None
    return found


def trouble(place: Path) -> str | None:
    """Why a folder with kept data is not what was made; None if it is."""
    manifest = read_json(place / MANIFEST, quiet=True)
    recipe = (manifest or {}).get("recipe")
    if not isinstance(recipe, dict):
        return "it has no manifest"
    if place.name != _name(place.name.rpartition("-")[0], recipe):
        return "its manifest is of other data"
    return None if _whole(place, recipe) else "its files are not what the manifest says"


def _name(name: str, recipe: Mapping) -> str:
    digest = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()
    return f"{name}-{digest[:16]}"


def _whole(place: Path, recipe: Mapping) -> Prepared | None:
    """What lies there, if it is of this recipe and every file is what the manifest says. Further
    files do no harm."""
    manifest = read_json(place / MANIFEST)
    if manifest is None:
        return None
    try:
        if manifest["recipe"] != recipe or not manifest["files"]:
            return None
        if any(_hash(place / name) != digest for name, digest in manifest["files"].items()):
            return None
        return Prepared(place, manifest["documents"], manifest["sha256"])
    except (OSError, TypeError, KeyError, AttributeError):
        return None


def _hash(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _put(draft: Path, place: Path, recipe: Mapping) -> None:
    """Rename a whole folder into its place, unless another run was first: its content is the
    same."""
    try:
        os.rename(draft, place)
    except OSError:
        if _whole(place, recipe):
            return
        wrong = draft.with_name(f"{draft.name}.wrong")
        os.rename(place, wrong)
        os.rename(draft, place)
        wrong.unlink() if wrong.is_symlink() or wrong.is_file() else shutil.rmtree(wrong, ignore_errors=True)
