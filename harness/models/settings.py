"""Check config.json: each setting is implemented, has no effect, or is refused."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, get_args

from harness.common.errors import UserError

ANY_VALUE = object()  # every value is implemented, or has no effect on a forward pass

# settings of every model: names, versions, initialisation, and those of generation, which the
# harness sets itself
COMMON_NAMES = (
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


def accept_any(*names: str) -> dict[str, Any]:
    """Return entries for `refuse_unknown` of settings whose every value is accepted."""
    return dict.fromkeys(names, ANY_VALUE)


COMMON_SETTINGS = accept_any(*COMMON_NAMES)


def refuse_unknown(raw: Mapping[str, Any], known: Mapping[str, Any], *, kind: str, section: str = "") -> None:
    """Refuse settings that would change what the model computes and are not implemented.

    Args:
        raw: settings of config.json, or of one of its sections.
        known: setting -> ANY_VALUE, a tuple of the implemented values, or a mapping of this form
            for a section. Any other setting must be switched off (null, false, zero or empty).
        kind: name of the model family for messages.
        section: prefix of the names in messages.

    Raises:
        UserError: for the first such setting.
    """
    for key, value in raw.items():
        name = section + str(key)
        accepted = known.get(key, COMMON_SETTINGS.get(key, ()))
        if accepted is ANY_VALUE or value is None:
            continue
        if isinstance(accepted, Mapping):
            if not isinstance(value, Mapping):
                raise UserError(f"This {kind} checkpoint has {name}={value!r} in config.json where settings belong.")
            refuse_unknown(value, accepted, kind=kind, section=f"{name}.")
        elif value not in accepted and (accepted or value not in (False, 0, "", [], {})):
            only = f"only {' or '.join(map(repr, accepted))} is supported" if accepted else "that is not implemented"
            raise UserError(f"This {kind} checkpoint has {name}={value!r} in config.json: {only}.")


def rename_settings(raw: Mapping[str, Any], old_names: Mapping[str, str]) -> dict[str, Any]:
    """Return the settings under their current names.

    Raises:
        UserError: if an old name and the current one have different values.
    """
    for old, new in old_names.items():
        if old in raw and new in raw and raw[old] != raw[new]:
            raise UserError(
                f"config.json has {old}={raw[old]!r} and {new}={raw[new]!r}, one setting: keep the right one."
            )
    return {old_names.get(key, key): value for key, value in raw.items()}


def coerce_numbers(raw: Mapping[str, Any], kind: type) -> dict[str, Any]:
    """Return the settings with int or float as a transformers configuration class requires.

    Published configurations hold either, such as 8.0 for an int or clip_qkv: 6 for a float.
    """
    types = {field.name: field.type for field in fields(kind)}
    settings = {}
    for key, value in raw.items():
        accepted = {types.get(key), *get_args(types.get(key))}
        if isinstance(value, Mapping) and (section := getattr(kind, "sub_configs", {}).get(key)):
            value = coerce_numbers(value, section)
        elif isinstance(value, float) and value.is_integer() and int in accepted and float not in accepted:
            value = int(value)
        elif isinstance(value, int) and not isinstance(value, bool) and float in accepted and int not in accepted:
            value = float(value)
        settings[key] = value
    return settings
