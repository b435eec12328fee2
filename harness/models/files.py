"""Check the files of a checkpoint's folder before they are loaded, and hash their content."""

import functools
import hashlib
import json
import os
import stat
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from harness.common.errors import UserError
from harness.common.files import parse_json, read_file

WEIGHTS_FILE, INDEX_FILE = "model.safetensors", "model.safetensors.index.json"
# transformers applies them silently
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
LFS_POINTER = b"version https://git-lfs"  # the first bytes of a file that git-lfs has not fetched

# a tokenizer is made from one of the vocabulary files and the settings in the others
VOCABULARY_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
TOKENIZER_FILES: tuple[str, ...] = (*VOCABULARY_FILES, "merges.txt", "tokenizer_config.json", "special_tokens_map.json")
TOKENIZER_FILES += ("added_tokens.json", "chat_template.jinja", "chat_template.json")
# settings of tokenizer_config.json that change no token
IRRELEVANT_SETTINGS: tuple[str, ...] = ("backend", "is_local", "local_files_only", "model_max_length", "name_or_path")
IRRELEVANT_SETTINGS += ("processor_class", "special_tokens_map_file", "tokenizer_file", "transformers_version")


@dataclass(frozen=True)
class TensorInfo:
    """A tensor of a file by the file's header: type in safetensors' notation, size in bytes."""

    file: Path
    dtype: str
    nbytes: int


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files that transformers loads from a folder, in order of names.

    Raises:
        UserError: if there are none, they are ambiguous or incomplete, or there is an adapter.
    """
    for name in ADAPTER_FILES:
        if (folder / name).exists():
            raise UserError(
                f"{folder} holds an adapter ({name}), which would change the model: merge it into the weights "
                "(merge_and_unload of peft), or move it out of the folder."
            )
    shards = _shards(folder) if (folder / INDEX_FILE).exists() else []
    if not (folder / WEIGHTS_FILE).is_file() and not shards:
        others = sorted(path.name for path in folder.glob("*.safetensors"))
        if others:
            raise UserError(
                f"{folder} holds {_first_names(others)}, and neither {WEIGHTS_FILE} nor {INDEX_FILE} that says which "
                "of them to read: rename a single file, or fetch the index."
            )
        raise UserError(
            f"{folder} holds no .safetensors file: convert the checkpoint (pickled weights are never loaded)."
        )
    whole = [folder / WEIGHTS_FILE] if (folder / WEIGHTS_FILE).is_file() else []
    if whole and shards and not _same_tensors(whole, shards):
        raise UserError(
            f"{folder} holds two sets of weights that differ, {WEIGHTS_FILE} and the shards of {INDEX_FILE}: remove "
            "the one that is out of date."
        )
    read_tensors(whole or shards)  # checks that the files are complete
    return whole or shards


def read_tensors(files: Iterable[Path]) -> dict[str, TensorInfo]:
    """Return the tensors that the headers of the files list, by name.

    Raises:
        UserError: for a truncated file, or a name in two files.
    """
    tensors: dict[str, TensorInfo] = {}
    for file in files:
        for name, tensor in _header(file).items():
            if name in tensors:
                raise UserError(f"{file.parent}: the tensor {name} is in {tensors[name].file.name} and in {file.name}.")
            tensors[name] = tensor
    return tensors


def _shards(folder: Path) -> list[Path]:
    """The files of the index, after a check that they are present and agree with it."""
    try:
        weight_map = (read_settings(folder / INDEX_FILE) or {})["weight_map"]
        names = sorted(set(weight_map.values()))
    except (UserError, KeyError, TypeError, AttributeError):
        raise UserError(f"{folder / INDEX_FILE} is not an index of weights: fetch it again.") from None
    invalid = [name for name in names if not isinstance(name, str) or not _is_file_name(name)]
    if invalid:
        raise UserError(
            f"{folder / INDEX_FILE} names {invalid[0]!r}: weights are read from .safetensors files of the same "
            "folder alone."
        )
    absent = [name for name in names if not os.path.isfile(folder / name)]
    if absent:
        raise UserError(f"{folder} lacks {_first_names(absent)} of its {len(names)} shards: fetch the rest of it.")
    files = [folder / name for name in names]
    file_names = {name: tensor.file.name for name, tensor in read_tensors(files).items()}
    if differing := sorted({name for name, _ in file_names.items() ^ weight_map.items()}):
        raise UserError(
            f"{folder / INDEX_FILE} and its shards disagree about {_first_names(differing)}: fetch both again."
        )
    return files


def _is_file_name(name: str) -> bool:
    return name.endswith(".safetensors") and name == Path(name).name


def _header(file: Path) -> dict[str, TensorInfo]:
    try:
        with safe_open(file, "pt"):  # checks that the file is as long as its header says
            pass
        with file.open("rb") as stream:
            header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
        entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
        ranges = {name: entry["data_offsets"] for name, entry in entries.items()}
        return {name: TensorInfo(file, entries[name]["dtype"], end - begin) for name, (begin, end) in ranges.items()}
    except (SafetensorError, OSError) as error:
        try:
            with file.open("rb") as stream:
                pointer = stream.read(len(LFS_POINTER)) == LFS_POINTER
        except OSError:
            pointer = False
        if pointer:
            raise UserError(f"{file} is a pointer of git-lfs, not the weights: run 'git lfs pull' there.") from None
        raise UserError(f"{file} is not a whole safetensors file ({error}): fetch it again.") from None


def _same_tensors(files: list[Path], other_files: list[Path]) -> bool:
    tensors, others = read_tensors(files), read_tensors(other_files)
    if tensors.keys() != others.keys():
        return False
    with ExitStack() as stack:
        opened = {file: stack.enter_context(safe_open(file, "pt")) for file in [*files, *other_files]}
        pairs = ((opened[index[name].file].get_tensor(name) for index in (tensors, others)) for name in tensors)
        return all(a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b) for a, b in pairs)


def has_tokenizer(folder: Path) -> bool:
    """Return whether the folder contains a vocabulary file."""
    return any((folder / name).is_file() for name in VOCABULARY_FILES)


def vocabulary_hash(folder: Path) -> str | None:
    """Return the hash of the vocabulary if a single file holds it, else None."""
    files = [path for path in (folder / "tokenizer.json", folder / "tokenizer.model") if path.is_file()]
    return digest(files) if files else None


def tokenizer_settings_hash(folder: Path) -> str | None:
    """Return the hash of the tokenizer's other files, or None if there are none.

    It covers names and contents, without settings that change no token.

    Raises:
        UserError: if tokenizer_config.json is not valid JSON.
    """
    content = {}
    listed = [folder / name for name in TOKENIZER_FILES if name not in ("tokenizer.json", "tokenizer.model")]
    for file in [*listed, *folder.glob("additional_chat_templates/*")]:
        if file.is_file():
            content[file.name] = _relevant(file) if file.name == "tokenizer_config.json" else digest([file])
    text = json.dumps(content, sort_keys=True)
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest() if content else None


def read_settings(file: Path) -> dict | None:
    """Return the content of a JSON file of settings; None if there is no such file.

    Raises:
        UserError: if it is no regular file, cannot be read, or is not a JSON object.
    """
    try:
        content = read_file(file)
        raw = None if content is None else parse_json(content)
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}.") from None
    except ValueError as error:
        raise UserError(f"{file} is not valid JSON: {error}.") from None
    if raw is not None and not isinstance(raw, dict):
        raise UserError(f"{file} holds a {type(raw).__name__} in place of settings: fetch it again.")
    if raw is None and content is not None:
        raise UserError(f"{file} holds null in place of settings: fetch it again.")
    return raw


def refuse_odd_files(folder: Path) -> None:
    """Check that the files that transformers will read are regular files.

    It would wait for the writer of a pipe, and read a device to no end.

    Raises:
        UserError: for any other file of these names.
    """
    for name in (*TOKENIZER_FILES, "config.json", "generation_config.json"):
        file = folder / name
        try:
            if os.path.lexists(file) and not stat.S_ISREG(file.stat().st_mode):
                raise UserError(f"{file} is no regular file: put a copy of the model's own in its place.")
        except OSError as error:
            raise UserError(f"{file} cannot be read: {error.strerror}.") from None


def _relevant(file: Path) -> dict:
    return {key: value for key, value in (read_settings(file) or {}).items() if key not in IRRELEVANT_SETTINGS}


def digest(files: list[Path]) -> str:
    """Return the sha256 over the files' contents in order; each file version is read once."""
    return _digest(tuple((str(f), f.stat().st_size, f.stat().st_mtime_ns) for f in files))


@functools.lru_cache(maxsize=64)
def _digest(versions: tuple[tuple[str, int, int], ...]) -> str:
    total = hashlib.sha256()
    for name, _, _ in versions:
        with open(name, "rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return "sha256:" + total.hexdigest()


def _first_names(names: list[str]) -> str:
    """At most three of the names, for a message."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
