"""Compare a loaded model with the tensors of its files.

transformers draws missing weights at random and drops unknown tensors, both of which are refused.
"""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedModel

from harness.common.errors import CannotLoad
from harness.models.files import digest, read_tensors

# buffers that older versions of transformers saved with the weights, such as the causal mask
BUFFER_NAMES = re.compile(r"\.(masked_bias|rotary_emb\.inv_freq|position_ids)$")
MASK_NAMES = re.compile(r"\.attn\.bias$")
FLOAT_TYPES = ("F64", "F32", "F16", "BF16")


@dataclass(frozen=True)
class LoadedWeights:
    """Loaded weights: number of tensors, their bytes in the files, and hash of the files."""

    tensors: int
    bytes: int
    sha256: str

    def as_dict(self) -> dict:
        return dict(vars(self))


def verify_weights(
    model: PreTrainedModel, info: dict, files: Sequence[Path], *, source: str, layers: int | None
) -> LoadedWeights:
    """Check that the model and its files have the same tensors, and return a record of them.

    Args:
        model: the loaded model.
        info: result of from_pretrained(output_loading_info=True, ignore_mismatched_sizes=True).
        files: the checkpoint's files.
        source: name of the checkpoint for messages.
        layers: number of loaded layers, None for all.

    Raises:
        CannotLoad: if tensors are missing, unexpected, of another size or quantized.
    """
    tensors = read_tensors(files)
    missing = sorted(info["missing_keys"])
    unexpected = [
        name
        for name in sorted(info["unexpected_keys"])
        if not (name in tensors and _is_buffer(name, tensors[name].dtype)) and not _is_beyond(name, layers)
    ]
    mismatched = sorted(info["mismatched_keys"])
    if mismatched:
        name, in_file, in_model = mismatched[0]
        raise CannotLoad(
            f"{source} is not what its config.json says: sizes of weights differ, such as {name}, {tuple(in_file)} in "
            f"the files and {tuple(in_model)} by the configuration ({len(mismatched)} in all). Take both from one "
            "source."
        )
    if missing or unexpected:
        raise CannotLoad(f"{source} is not whole: {_incomplete_message(missing, unexpected)}")
    names = [name for name in tensors if name not in info["unexpected_keys"]]
    if quantized := [name for name in names if tensors[name].dtype not in FLOAT_TYPES]:
        dtype = tensors[quantized[0]].dtype
        raise CannotLoad(
            f"{source} holds {_first_names(quantized)} as {dtype}: quantized weights are not supported, give "
            "the checkpoint in float32, float16 or bfloat16."
        )
    _check_output_layer(model, names, source)
    return LoadedWeights(len(names), sum(tensors[name].nbytes for name in names), digest(list(files)))


def _incomplete_message(missing: Sequence[str], unexpected: Sequence[str]) -> str:
    if prefix := _extra_prefix(missing, unexpected):
        return f"the names of its tensors begin with {prefix!r} ({unexpected[0]}): save it again without that prefix."
    sentences = []
    if missing:
        sentences.append(f"its files lack weights of the model, {_counted(missing)}.")
    if unexpected:
        sentences.append(f"its files hold tensors that have no place in the model, {_counted(unexpected)}.")
    if missing == ["lm_head.weight"]:
        sentences.append("Set tie_word_embeddings=true in config.json if its output is the embedding.")
    elif missing:
        sentences.append("Fetch the rest of it, or save it again with transformers' names.")
    else:
        sentences.append("It is of a variant that transformers does not compute.")
    return " ".join(sentences)


def _extra_prefix(missing: Sequence[str], unexpected: Sequence[str]) -> str | None:
    """The prefix without which all unexpected names are among the missing ones, if there is one."""
    prefixes = (name.removesuffix(end) for end in missing for name in unexpected if name.endswith(f".{end}"))
    prefix = next(prefixes, None)
    stripped = {name.removeprefix(prefix) for name in unexpected if prefix and name.startswith(prefix)}
    return prefix if len(stripped) == len(unexpected) and stripped <= set(missing) else None


def _check_output_layer(model: PreTrainedModel, names: Collection[str], source: str) -> None:
    """Raise CannotLoad if the configuration ties output and embedding but the files differ."""
    head, embedding = model.get_output_embeddings().weight, model.get_input_embeddings().weight
    if model.config.tie_word_embeddings and "lm_head.weight" in names and head is not embedding:
        raise CannotLoad(
            f"{source} holds a lm_head.weight that is not the embedding, and its config.json says that they are tied: "
            "set tie_word_embeddings=false in config.json, or leave lm_head.weight out."
        )


def _is_buffer(name: str, dtype: str) -> bool:
    return bool(BUFFER_NAMES.search(name) or (MASK_NAMES.search(name) and dtype in ("U8", "BOOL")))


def _is_beyond(name: str, layers: int | None) -> bool:
    """Whether a tensor belongs to a layer that is not loaded."""
    number = re.search(r"\.(\d+)\.", name)
    return layers is not None and number is not None and int(number[1]) >= layers


def _counted(names: Sequence[str]) -> str:
    return f"{_first_names(names)} ({len(names)} in all)"


def _first_names(names: Sequence[str]) -> str:
    """At most three of the names, for a message."""
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
