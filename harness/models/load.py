"""Load a model and its tokenizer, local or from the Hub, safetensors only, and put our attention into it."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import hf_hub_download

from harness.errors import UserError
from harness.models.spec import ModelSpec, read_config
from harness.preflight import refuse_foreign_kernels

refuse_foreign_kernels()  # before transformers looks for a package of that name

from transformers import (  # noqa: E402
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    DynamicCache,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils.logging import disable_progress_bar  # noqa: E402

from harness.models.swap import SwappedAttention  # noqa: E402

disable_progress_bar()  # our own progress is on stderr; its bars do not read well in a log


@dataclass
class LoadedModel:
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    attention: SwappedAttention


_TOKENIZERS: dict[str, PreTrainedTokenizerBase] = {}


def load_tokenizer(spec: ModelSpec) -> PreTrainedTokenizerBase:
    """The model's tokenizer, kept for the life of the process; UserError with the way out if it cannot be had."""
    if spec.source not in _TOKENIZERS:
        # with our configuration, because transformers would read the folder's own, unmended one
        _TOKENIZERS[spec.source] = _from_pretrained(spec, AutoTokenizer, config=_config(spec))
    return _TOKENIZERS[spec.source]


def load_model(spec: ModelSpec, *, device: torch.device, kernel: str) -> LoadedModel:
    """Load weights in the spec's dtype onto `device` and replace the attention.

    Raises UserError if the checkpoint cannot be had, or its own configuration disagrees with what the cell says of it.
    """
    found = spec.family.architecture(_raw_config(spec))
    if found != spec.architecture:
        differing = {k: (v, spec.architecture.as_dict()[k]) for k, v in found.as_dict().items()}
        words = ", ".join(f"{k} {a} not {b}" for k, (a, b) in differing.items() if a != b)
        raise UserError(
            f"{spec.source} is not what model={spec.name} says: {words}. Set model.architecture to match it."
        )
    options = {"config": _config(spec), "dtype": spec.torch_dtype, "use_safetensors": True}
    model = _from_pretrained(spec, AutoModelForCausalLM, **options)
    model.to(device).eval().requires_grad_(False)
    model.generation_config.update(do_sample=False, top_k=None, top_p=None, temperature=None)
    attention = SwappedAttention(model, spec.family, spec.slopes, kernel=kernel)
    return LoadedModel(model, load_tokenizer(spec), attention)


def new_cache(model: PreTrainedModel) -> DynamicCache:
    """An empty KV cache that grows, the kind the replaced attention accepts."""
    return DynamicCache(config=model.config)


def _raw_config(spec: ModelSpec) -> dict:
    """The checkpoint's config.json, from the folder or the Hub."""
    if spec.path:
        return read_config(spec.path)
    file = _guarded(spec, lambda: hf_hub_download(spec.repo, "config.json", revision=spec.revision))
    return read_config(Path(file).parent)


def _config(spec: ModelSpec) -> PreTrainedConfig:
    mended = spec.family.mend(_raw_config(spec))
    return AutoConfig.for_model(mended.pop("model_type"), **mended)


def _from_pretrained(spec: ModelSpec, kind, **options):
    source = str(spec.path or spec.repo)
    options |= {"revision": spec.revision or "main", "trust_remote_code": False}
    return _guarded(spec, lambda: kind.from_pretrained(source, **options))


def _guarded(spec: ModelSpec, load):
    try:
        return load()
    except (OSError, ValueError, json.JSONDecodeError) as error:
        if spec.path:
            raise UserError(f"{spec.path} could not be loaded: {error}") from error
        family, arch = spec.family, spec.architecture
        gone = "; MosaicML's repositories are gone from the Hub" if spec.repo.startswith("mosaicml/") else ""
        raise UserError(
            f"{spec.source} could not be loaded ({type(error).__name__}{gone}). Give a local copy with "
            "model.path=FOLDER, or a copy you trust with model.repo=OWNER/NAME model.revision=COMMIT. "
            f"It will be read with {arch.heads} slopes in {family.slope_order} order and "
            f"alibi_bias_max {arch.bias_max:g}."
        ) from error
