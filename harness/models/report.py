"""What was loaded of a checkpoint, against what is in its files and what the model needs:
transformers draws at random what it does not find, and drops what it does not know."""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedModel

from harness.common.errors import CannotLoad
from harness.models.files import digest, tensors_of

# buffers that older versions of transformers saved beside the weights: the causal mask and what it
# filled in
BUFFERS = re.compile(r"\.(masked_bias|rotary_emb\.inv_freq|position_ids)$")
MASK = re.compile(r"\.attn\.bias$")
FLOATS = ("F64", "F32", "F16", "BF16")


@dataclass(frozen=True)
class Loaded:
    """What a record keeps of the weights: tensors of the files that the model holds, their bytes
    there, and a hash of the files."""

    tensors: int
    bytes: int
    sha256: str

    def as_dict(self) -> dict:
        return dict(vars(self))


def loaded(model: PreTrainedModel, report: dict, files: Sequence[Path], *, source: str, layers: int | None) -> Loaded:
    """Raises CannotLoad unless every weight of the model is in the files, and every tensor of the
    files in the model.

    report: what from_pretrained(output_loading_info=True) gave, with mismatched sizes ignored.
    layers: how many of the checkpoint's layers were asked for, None for all.
    """
    held = tensors_of(files)
    missing = sorted(report["missing_keys"])
    unexpected = [
        name
        for name in sorted(report["unexpected_keys"])
        if not (_buffer(name, held[name].dtype) if name in held else False) and not _beyond(name, layers)
    ]
    mismatched = sorted(report["mismatched_keys"])
    if mismatched:
        name, in_file, in_model = mismatched[0]
        raise CannotLoad(
            f"{source} is not what its config.json says: sizes of weights differ, such as {name}, {tuple(in_file)} in "
            f"the files and {tuple(in_model)} by the configuration ({len(mismatched)} in all). Take both from one "
            "source."
        )
    if missing or unexpected:
        raise CannotLoad(f"{source} is not whole: {_told(missing, unexpected)}")
    kept = [name for name in held if name not in report["unexpected_keys"]]
    if packed := [name for name in kept if held[name].dtype not in FLOATS]:
        raise CannotLoad(
            f"{source} holds {_named(packed)} as {held[packed[0]].dtype}: quantized weights are not supported, give "
            "the checkpoint in float32, float16 or bfloat16."
        )
    _refuse_two_heads(model, kept, source)
    return Loaded(len(kept), sum(held[name].nbytes for name in kept), digest(list(files)))


def _told(missing: Sequence[str], unexpected: Sequence[str]) -> str:
    if prefix := _prefix(missing, unexpected):
        return f"the names of its tensors begin with {prefix!r} ({unexpected[0]}): save it again without that prefix."
    told = []
    if missing:
        told.append(f"its files lack weights of the model, {_counted(missing)}.")
    if unexpected:
        told.append(f"its files hold tensors that have no place in the model, {_counted(unexpected)}.")
    if missing == ["lm_head.weight"]:
        told.append("Set tie_word_embeddings=true in config.json if its output is the embedding.")
    elif missing:
        told.append("Fetch the rest of it, or save it again with transformers' names.")
    else:
        told.append("It is of a variant that transformers does not compute.")
    return " ".join(told)


def _prefix(missing: Sequence[str], unexpected: Sequence[str]) -> str | None:
    """What all unexpected names begin with, where without it they are names that are missing."""
    found = next((n.removesuffix(known) for known in missing for n in unexpected if n.endswith(f".{known}")), None)
    stripped = {name.removeprefix(found) for name in unexpected if found and name.startswith(found)}
    return found if len(stripped) == len(unexpected) and stripped <= set(missing) else None


def _refuse_two_heads(model: PreTrainedModel, kept: Collection[str], source: str) -> None:
    """CannotLoad where the configuration ties the output to the embedding and the files hold
    another output."""
    head, embedding = model.get_output_embeddings().weight, model.get_input_embeddings().weight
    if model.config.tie_word_embeddings and "lm_head.weight" in kept and head is not embedding:
        raise CannotLoad(
            f"{source} holds a lm_head.weight that is not the embedding, and its config.json says that they are tied: "
            "set tie_word_embeddings=false in config.json, or leave lm_head.weight out."
        )


def _buffer(name: str, dtype: str) -> bool:
    return bool(BUFFERS.search(name) or (MASK.search(name) and dtype in ("U8", "BOOL")))


def _beyond(name: str, layers: int | None) -> bool:
    """Whether a tensor is of a layer that was not asked for."""
    number = re.search(r"\.(\d+)\.", name)
    return layers is not None and number is not None and int(number[1]) >= layers


def _counted(names: Sequence[str]) -> str:
    return f"{_named(names)} ({len(names)} in all)"


def _named(names: Sequence[str]) -> str:
    """Three of them at most."""
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
