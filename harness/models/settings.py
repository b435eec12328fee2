"""A checkpoint's config.json against what is computed: every setting is known to have no effect
here, is implemented, or is refused by its name and value."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, get_args

from harness.common.errors import UserError

ANY = object()  # implemented whatever its value, or without effect on a forward pass

# of every configuration: names, versions, initialisation, and what generation is told by the
# harness itself
NAMES = (
    "_attn_implementation", "_name_or_path", "architectures", "attn_implementation", "auto_map", "bad_words_ids",
    "begin_suppress_tokens", "bos_token_id", "chunk_size_feed_forward", "decoder_start_token_id",
    "diversity_penalty", "do_sample", "dtype", "early_stopping", "encoder_no_repeat_ngram_size", "eos_token_id",
    "exponential_decay_length_penalty", "finetuning_task", "forced_bos_token_id", "forced_eos_token_id",
    "id2label", "init_config", "init_device", "initializer_range", "label2id", "length_penalty", "max_length",
    "max_new_tokens", "min_length", "model_type", "name_or_path", "no_repeat_ngram_size", "num_beam_groups",
    "num_beams", "num_labels", "num_return_sequences", "output_attentions", "output_hidden_states",
    "output_scores", "pad_token_id", "prefix", "problem_type", "remove_invalid_values", "repetition_penalty",
    "return_dict", "return_dict_in_generate", "sep_token_id", "suppress_tokens", "task_specific_params",
    "temperature", "tie_word_embeddings", "tokenizer_class", "tokenizer_name", "top_k", "top_p", "torch_dtype",
    "torchscript", "transformers_version", "typical_p", "unk_token_id", "use_cache", "verbose",
)  # fmt: skip
GENERAL = dict.fromkeys(NAMES, ANY)


def refuse_unknown(raw: Mapping[str, Any], known: Mapping[str, Any], *, kind: str, section: str = "") -> None:
    """UserError for the first setting that would change what the model computes and that nothing
    here reads.

    known: setting -> ANY, the tuple of its values that are implemented, or a mapping of the same
    form for a section. What is not in it may be there as long as it is switched off (null, false,
    zero, empty).
    """
    for key, value in raw.items():
        name = section + str(key)
        accepted = known.get(key, GENERAL.get(key, ()))
        if accepted is ANY or value is None:
            continue
        if isinstance(accepted, Mapping):
            if not isinstance(value, Mapping):
                raise UserError(f"This {kind} checkpoint has {name}={value!r} in config.json where settings belong.")
            refuse_unknown(value, accepted, kind=kind, section=f"{name}.")
        elif value not in accepted and (accepted or value not in (False, 0, "", [], {})):
            only = f"only {' or '.join(map(repr, accepted))} is supported" if accepted else "that is not implemented"
            raise UserError(f"This {kind} checkpoint has {name}={value!r} in config.json: {only}.")


def renamed(raw: Mapping[str, Any], older: Mapping[str, str]) -> dict[str, Any]:
    """The settings under their present names. UserError where an older name and the present one
    disagree."""
    for old, new in older.items():
        if old in raw and new in raw and raw[old] != raw[new]:
            raise UserError(
                f"config.json has {old}={raw[old]!r} and {new}={raw[new]!r}, one setting: keep the right one."
            )
    return {older.get(key, key): value for key, value in raw.items()}


def typed(raw: Mapping[str, Any], kind: type) -> dict[str, Any]:
    """The settings with whole numbers where a transformers configuration class insists on them
    (8.0), and with floats where it insists on those (clip_qkv: 6): published configurations hold
    either."""
    types = {field.name: field.type for field in fields(kind)}
    found = {}
    for key, value in raw.items():
        wanted = {types.get(key), *get_args(types.get(key))}
        if isinstance(value, Mapping) and key in getattr(kind, "sub_configs", {}):
            value = typed(value, kind.sub_configs[key])
        elif isinstance(value, float) and value.is_integer() and int in wanted and float not in wanted:
            value = int(value)
        elif isinstance(value, int) and not isinstance(value, bool) and float in wanted and int not in wanted:
            value = float(value)
        found[key] = value
    return found
