"""Load a model and its tokenizer, local or from the Hub, safetensors only, and put our attention into it."""

import sys
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from huggingface_hub import hf_hub_download, snapshot_download
from safetensors import SafetensorError

from harness.errors import CannotLoad, UserError
from harness.models.families import family_of
from harness.models.family import Architecture
from harness.models.spec import ModelSpec, agree, read_config
from harness.preflight import refuse_foreign_kernels
from harness.store import read_json

refuse_foreign_kernels()  # before transformers looks for a package of that name

from transformers import (  # noqa: E402
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils.logging import disable_progress_bar  # noqa: E402

from harness.models.swap import SwappedAttention  # noqa: E402

disable_progress_bar()  # our own progress is on stderr; its bars do not read well in a log


# of a repository on the Hub what a run reads: never pickled weights, nor those of other libraries
FILES = ("*.safetensors", "*.json", "*.txt", "*.model")


@dataclass
class LoadedModel:
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    attention: SwappedAttention


_TOKENIZERS: dict[str, PreTrainedTokenizerBase] = {}


def load_tokenizer(spec: ModelSpec) -> PreTrainedTokenizerBase:
    """The model's tokenizer, kept for the life of the process; UserError with the way out if it cannot be had."""
    place = str(spec.tokenizer_folder or spec.source)
    if place not in _TOKENIZERS:
        # with our configuration, because transformers would read the folder's own, unmended one
        options = {} if spec.random else {"config": _config(spec)}
        _TOKENIZERS[place] = _from_pretrained(spec, AutoTokenizer, spec.tokenizer_folder, **options)
    return _TOKENIZERS[place]


def download(spec: ModelSpec) -> Path:
    """Have the files of a model on the Hub in its cache, where a run without a network finds them. Returns their
    folder; UserError with the way out if they cannot be had."""
    print(f"Fetching {spec.source}", file=sys.stderr, flush=True)
    chosen = {"revision": spec.revision, "allow_patterns": FILES, "ignore_patterns": "*/*"}
    place = Path(_guarded(spec, lambda: snapshot_download(spec.repo, **chosen)))
    index = read_json(place / "model.safetensors.index.json") or {}
    absent = [name for name in sorted(set(index.get("weight_map", {}).values())) if not (place / name).exists()]
    if absent:
        raise CannotLoad(f"{spec.source}: {', '.join(absent)} is not on this machine. Fetch it with a network.")
    if not any(place.glob("*.safetensors")):
        raise CannotLoad(f"{spec.source} holds no .safetensors file, and pickled weights are never loaded.")
    return place


def load_model(spec: ModelSpec, *, device: torch.device, kernel: str) -> LoadedModel:
    """Load weights in the spec's dtype onto `device`, or over all GPUs by its device map, and replace the attention.

    Raises UserError if the checkpoint cannot be had, or its own configuration disagrees with what the cell says of it.
    """
    tokenizer = load_tokenizer(spec)
    if spec.random:
        if spec.architecture.vocabulary < len(tokenizer):
            raise UserError(f"model.weights=random needs a vocabulary of at least {len(tokenizer)} tokens.")
        model = random_model(spec.architecture, spec.init_seed, dtype=spec.torch_dtype)
    else:
        model = _checkpoint(spec)
    if spec.device_map is None:  # else accelerate has placed it, for good
        model.to(device)
    model.eval().requires_grad_(False)
    model.generation_config.update(do_sample=False, top_k=None, top_p=None, temperature=None)
    attention = SwappedAttention(model, spec.family, spec.slopes, kernel=kernel)
    return LoadedModel(model, tokenizer, attention)


def random_model(
    architecture: Architecture, seed: int, *, dtype: torch.dtype = torch.float32, **config
) -> PreTrainedModel:
    """A stock model of this architecture, its weights drawn by transformers' own initialisation. Drawn on the CPU, so
    that a seed gives the same weights whatever the device; the global generators are left alone.

    config: further options of the family's transformers configuration.
    """
    raw = family_of(architecture.family).raw(architecture) | config
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(raw.pop("model_type"), **raw), dtype=dtype)


def _checkpoint(spec: ModelSpec) -> PreTrainedModel:
    found = spec.family.architecture(_raw_config(spec))
    if spec.layers and spec.layers <= found.layers:
        found = replace(found, layers=spec.layers)
    agree(found, spec.architecture, spec.source, spec.name)
    options = {"config": _config(spec), "dtype": spec.torch_dtype, "use_safetensors": True}
    options |= {"device_map": spec.device_map} if spec.device_map else {}
    return _from_pretrained(spec, AutoModelForCausalLM, spec.path, **options)


def _raw_config(spec: ModelSpec) -> dict:
    """The checkpoint's config.json, from the folder or the Hub."""
    if spec.path:
        return read_config(spec.path)
    file = _guarded(spec, lambda: hf_hub_download(spec.repo, "config.json", revision=spec.revision))
    return read_config(Path(file).parent)


def _config(spec: ModelSpec) -> PreTrainedConfig:
    mended = spec.family.mend(_raw_config(spec))
    config = AutoConfig.for_model(mended.pop("model_type"), **mended)
    if spec.layers:
        config.num_hidden_layers = spec.layers
    return config


def _from_pretrained(spec: ModelSpec, kind, folder: Path | None, **options):
    source = str(folder or spec.repo)
    options |= {"revision": spec.revision or "main", "trust_remote_code": False}
    return _guarded(spec, lambda: kind.from_pretrained(source, **options))


def _guarded(spec: ModelSpec, load):
    try:
        return load()
    except (OSError, ValueError, SafetensorError) as error:
        if spec.path:
            raise CannotLoad(f"{spec.path} could not be loaded: {error}") from error
        family, arch = spec.family, spec.architecture
        gone = "; MosaicML's repositories are gone from the Hub" if spec.repo.startswith("mosaicml/") else ""
        raise CannotLoad(
            f"{spec.source} could not be loaded ({type(error).__name__}{gone}). Give a local copy with "
            "model.path=FOLDER, or a copy you trust with model.repo=OWNER/NAME model.revision=COMMIT. "
            f"It will be read with {arch.heads} slopes in {family.slope_order} order and "
            f"alibi_bias_max {arch.bias_max:g}."
        ) from error
