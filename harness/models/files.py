"""The files of a checkpoint's folder that a run reads, looked at before anything is loaded: which
they are, whether they are what their names say, and a hash of their content."""

import functools
import hashlib
import json
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from harness.common.errors import UserError

WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
ADAPTER = ("adapter_config.json", "adapter_model.safetensors")  # transformers would apply it without a word
POINTER = b"version https://git-lfs"  # how a file begins that git-lfs has not fetched

# what a tokenizer is made from: one of these files holds its vocabulary, the others say how it is
# used
VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
TOKENIZER = (*VOCABULARIES, "merges.txt", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
TOKENIZER += ("chat_template.jinja", "chat_template.json")
IDLE = ("backend", "is_local", "local_files_only", "model_max_length", "name_or_path", "processor_class")
IDLE += ("special_tokens_map_file", "tokenizer_file", "transformers_version")  # of a tokenizer_config.json


@dataclass(frozen=True)
class Held:
    """A tensor in a file, as the file's header says: its type in safetensors' words, its size in
    bytes."""

    file: Path
    dtype: str
    nbytes: int


def weights_of(folder: Path) -> list[Path]:
    """The safetensors files that transformers loads, by name. UserError if they cannot be told, or
    are not whole."""
    for name in ADAPTER:
        if (folder / name).exists():
            raise UserError(
                f"{folder} holds an adapter ({name}), which would change the model: merge it into the weights "
                "(merge_and_unload of peft), or move it out of the folder."
            )
    shards = _shards(folder) if (folder / INDEX).exists() else []
    if not (folder / WHOLE).is_file() and not shards:
        strays = sorted(path.name for path in folder.glob("*.safetensors"))
        if strays:
            raise UserError(
                f"{folder} holds {_named(strays)}, and neither {WHOLE} nor {INDEX} that says which of them to read: "
                "rename a single file, or fetch the index."
            )
        raise UserError(
            f"{folder} holds no .safetensors file: convert the checkpoint (pickled weights are never loaded)."
        )
    whole = [folder / WHOLE] if (folder / WHOLE).is_file() else []
    if whole and shards and not _same_tensors(whole, shards):
        raise UserError(
            f"{folder} holds two sets of weights that differ, {WHOLE} and the shards of {INDEX}: remove the one that "
            "is out of date."
        )
    tensors_of(whole or shards)
    return whole or shards


def tensors_of(files: Iterable[Path]) -> dict[str, Held]:
    """The files' tensors by name. UserError for a file that is not whole, or a name held twice."""
    found: dict[str, Held] = {}
    for file in files:
        for name, held in _header(file).items():
            if name in found:
                raise UserError(f"{file.parent}: the tensor {name} is in {found[name].file.name} and in {file.name}.")
            found[name] = held
    return found


def _shards(folder: Path) -> list[Path]:
    """The files of the index, which must be in the folder and hold what the index says."""
    try:
        said = json.loads((folder / INDEX).read_text())["weight_map"]
        names = sorted(set(said.values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise UserError(f"{folder / INDEX} is not an index of weights: fetch it again.") from None
    odd = [name for name in names if not isinstance(name, str) or not _plain(name)]
    if odd:
        raise UserError(
            f"{folder / INDEX} names {odd[0]!r}: weights are read from .safetensors files of the same folder alone."
        )
    absent = [name for name in names if not (folder / name).is_file()]
    if absent:
        raise UserError(f"{folder} lacks {_named(absent)} of its {len(names)} shards: fetch the rest of it.")
    files = [folder / name for name in names]
    held = {name: tensor.file.name for name, tensor in tensors_of(files).items()}
    if differing := sorted(held.items() ^ said.items()):
        raise UserError(
            f"{folder / INDEX} and its shards disagree about {_named(sorted({name for name, _ in differing}))}: fetch "
            "both again."
        )
    return files


def _plain(name: str) -> bool:
    return name.endswith(".safetensors") and name == Path(name).name


def _header(file: Path) -> dict[str, Held]:
    try:
        with safe_open(file, "pt"):  # which checks that the file is as long as its header says
            pass
        with file.open("rb") as start:
            header = json.loads(start.read(int.from_bytes(start.read(8), "little")))
        about = {name: said for name, said in header.items() if name != "__metadata__"}
        ends = {name: said["data_offsets"] for name, said in about.items()}
        return {name: Held(file, about[name]["dtype"], stop - begin) for name, (begin, stop) in ends.items()}
    except (SafetensorError, OSError) as error:
        try:
            with file.open("rb") as start:
                pointer = start.read(len(POINTER)) == POINTER
        except OSError:
            pointer = False
        if pointer:
            raise UserError(f"{file} is a pointer of git-lfs, not the weights: run 'git lfs pull' there.") from None
        raise UserError(f"{file} is not a whole safetensors file ({error}): fetch it again.") from None


def _same_tensors(some: list[Path], others: list[Path]) -> bool:
    one, other = tensors_of(some), tensors_of(others)
    if one.keys() != other.keys():
        return False
    with ExitStack() as stack:
        opened = {file: stack.enter_context(safe_open(file, "pt")) for file in [*some, *others]}
        pairs = ((opened[held[name].file].get_tensor(name) for held in (one, other)) for name in one)
        return all(a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b) for a, b in pairs)


def has_tokenizer(folder: Path) -> bool:
    """Whether some file there holds a vocabulary."""
    return any((folder / name).is_file() for name in VOCABULARIES)


def vocabulary_hash(folder: Path) -> str | None:
    """Hash of the vocabulary where one file holds it whole; None where there is no such file."""
    files = [path for path in (folder / "tokenizer.json", folder / "tokenizer.model") if path.is_file()]
    return digest(files) if files else None


def beside_hash(folder: Path) -> str | None:
    """Hash of the tokenizer's other files, names and content, without what changes no token; None
    without any."""
    content = {}
    named = [folder / name for name in TOKENIZER if name not in ("tokenizer.json", "tokenizer.model")]
    for file in [*named, *folder.glob("additional_chat_templates/*")]:
        if file.is_file():
            content[file.name] = _settings(file) if file.name == "tokenizer_config.json" else digest([file])
    text = json.dumps(content, sort_keys=True)
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest() if content else None


def _settings(file: Path) -> dict:
    try:
        return {key: value for key, value in json.loads(file.read_text()).items() if key not in IDLE}
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise UserError(f"{file} is not valid JSON ({error}): fetch it again.") from None


def digest(files: list[Path]) -> str:
    """sha256 over the files' contents in order; read once per process and file version."""
    return _digest(tuple((str(f), f.stat().st_size, f.stat().st_mtime_ns) for f in files))


@functools.lru_cache(maxsize=64)
def _digest(versions: tuple[tuple[str, int, int], ...]) -> str:
    total = hashlib.sha256()
    for name, _, _ in versions:
        with open(name, "rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return "sha256:" + total.hexdigest()


def _named(names: list[str]) -> str:
    """Three of them at most."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
