"""Prepared data on disk: made once, stored under a hash of its recipe, verified at each reading.

Data that differs from its manifest is made again: after a flipped bit, an interrupted copy, or a
collision of names.
"""

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from harness.common.errors import UserError
from harness.common.files import draft_of, open_file, read_json, write_atomic
from harness.tasks.base import Prepared

MANIFEST = "manifest.json"


def prepare_once(folder: Path, name: str, recipe: Mapping, make: Callable[[Path], Prepared]) -> Prepared:
    """Return the data of a recipe, and make it if it is not in `folder` yet.

    Args:
        folder: folder of all prepared data.
        name: name of the task.
        recipe: all values that the data depends on, as JSON.
        make: creates the given folder, writes the files into it and returns their record.

    Raises:
        UserError: if the data cannot be stored. Errors of `make` pass through.
    """
    recipe = json.loads(json.dumps(recipe))
    place = folder / _folder_name(name, recipe)
    prepared = _verified(place, recipe)
    if prepared is None:
        suffix = " again, because the files there do not match their manifest" if place.exists() else ""
        print(f"Preparing the data of {name} in {place}{suffix}", file=sys.stderr, flush=True)
        try:
            with draft_of(place) as draft:
                prepared = replace(make(draft), place=place)
                files = {file.relative_to(draft).as_posix(): _hash(file) for file in draft.rglob("*") if file.is_file()}
                manifest = {"recipe": recipe, "documents": prepared.count, "sha256": prepared.sha256, "files": files}
                write_atomic(draft / MANIFEST, manifest)
                _rename(draft, place, recipe)
        except OSError as error:
            raise UserError(f"The data of {name} cannot be kept in {place}: {error}.") from None
    return prepared


def data_mismatch(place: Path) -> str | None:
    """Return why a folder of prepared data is not what was made; None if it is."""
    manifest = read_json(place / MANIFEST, quiet=True)
    recipe = (manifest or {}).get("recipe")
    if not isinstance(recipe, dict):
        return "it has no manifest"
    if place.name != _folder_name(place.name.rpartition("-")[0], recipe):
        return "its manifest is of other data"
    return None if _verified(place, recipe) else "its files do not match their manifest"


def _folder_name(name: str, recipe: Mapping) -> str:
    recipe_hash = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()
    return f"{name}-{recipe_hash[:16]}"


def _verified(place: Path, recipe: Mapping) -> Prepared | None:
    """Return the data in a folder, or None if recipe or files differ from the manifest.

    Files that the manifest does not list are ignored.
    """
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
    with open_file(file) as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _rename(draft: Path, place: Path, recipe: Mapping) -> None:
    """Rename a complete folder to its final name, unless another run was first."""
    try:
        os.rename(draft, place)
    except OSError:
        if _verified(place, recipe):
            return
        wrong = draft.with_name(f"{draft.name}.wrong")
        os.rename(place, wrong)
        os.rename(draft, place)
        wrong.unlink() if wrong.is_symlink() or wrong.is_file() else shutil.rmtree(wrong, ignore_errors=True)
