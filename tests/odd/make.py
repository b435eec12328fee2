"""Checkpoints made from the embedded `tiny`, each odd in one way."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from tests.conftest import EMBEDDED

TINY = EMBEDDED / "tiny"
WEIGHTS = load_file(TINY / "model.safetensors")
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
INDEX = "model.safetensors.index.json"

Tensors = Mapping[str, torch.Tensor]
Edit = Callable[[dict], object]
Maker = Callable[[Path], list[str]]


def read(name: str) -> dict:
    return json.loads((TINY / name).read_text())


def write(file: Path, content: object) -> None:
    file.write_text(json.dumps(content, ensure_ascii=False))


def tensors(file: Path, content: Tensors) -> None:
    save_file({name: tensor.contiguous() for name, tensor in content.items()}, file, metadata={"format": "pt"})


def checkpoint(
    *,
    weights: Tensors | None = None,
    config: Edit = lambda raw: None,
    generation: Mapping | None = None,
    tokenizer: Edit = lambda raw: None,
    tokenizer_config: Edit = lambda raw: None,
    after: Callable[[Path], object] = lambda place: None,
) -> Maker:
    """What writes such a checkpoint into a folder, and returns the overrides that name it. The
    edits change the content of a file in place; `after` comes last and may change the folder
    itself."""

    def make(place: Path) -> list[str]:
        place.mkdir(parents=True, exist_ok=True)
        tensors(place / "model.safetensors", WEIGHTS if weights is None else weights)
        edits = {"config.json": config, "tokenizer.json": tokenizer, "tokenizer_config.json": tokenizer_config}
        for name, edit in edits.items():
            content = read(name)
            edit(content)
            write(place / name, content)
        if generation is not None:
            write(place / "generation_config.json", read("generation_config.json") | generation)
        after(place)
        return ["model=local", f"model.path={place}"]

    return make


def setting(**values: object) -> Edit:
    """Settings at the top of a file."""
    return lambda raw: raw.update(values)


def attention(**values: object) -> Edit:
    """Settings of MPT's attn_config."""
    return lambda raw: raw["attn_config"].update(values)


def without(*names: str) -> Edit:
    return lambda raw: [raw.pop(name, None) for name in names]


def renamed(change: Callable[[str], str]) -> Tensors:
    return {change(name): tensor for name, tensor in WEIGHTS.items()}


def lacking(part: str) -> Tensors:
    return {name: tensor for name, tensor in WEIGHTS.items() if part not in name}


def sharded(place: Path) -> dict[str, str]:
    """Put two shards and their index in the place of one file; returns the index's weight_map."""
    names = sorted(WEIGHTS)
    (place / "model.safetensors").unlink(missing_ok=True)
    parts = dict(zip(SHARDS, (names[:7], names[7:]), strict=True))
    for file, held in parts.items():
        tensors(place / file, {name: WEIGHTS[name] for name in held})
    index = {name: file for file, held in parts.items() for name in held}
    write(place / INDEX, {"metadata": {"total_size": 1}, "weight_map": index})
    return index


def index_that_says(**places: str) -> Callable[[Path], None]:
    """Shards whose index sends every tensor of a shard elsewhere: first=..., of the first one."""

    def change(place: Path) -> None:
        index = sharded(place)
        moved = {name: places["first"] if file == SHARDS[0] else file for name, file in index.items()}
        write(place / INDEX, {"metadata": {}, "weight_map": moved})

    return change


def processed(*pieces: dict) -> Edit:
    """A post_processor that puts these pieces together: TEXT and END."""

    def change(raw: dict) -> None:
        special = {"<|endoftext|>": {"id": "<|endoftext|>", "ids": [0], "tokens": ["<|endoftext|>"]}}
        pair = [*pieces, {"Sequence": {"id": "B", "type_id": 1}}]
        raw["post_processor"] = {"type": "TemplateProcessing", "single": list(pieces), "pair": pair}
        raw["post_processor"]["special_tokens"] = special

    return change


TEXT = {"Sequence": {"id": "A", "type_id": 0}}
END = {"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}


def added(number: int, word: str) -> Edit:
    """One token more."""
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return lambda raw: raw["added_tokens"].append({"id": number, "content": word, **flags})
