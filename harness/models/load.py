"""Load a model and its tokenizer, local or from the Hub, safetensors only, and put our attention
into it."""

import sys
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError

from harness.common.errors import CannotLoad, UserError
from harness.common.preflight import refuse_foreign_kernels
from harness.models.families import family_of
from harness.models.family import Architecture
from harness.models.files import weights_of
from harness.models.hub import UNREACHED, fetch
from harness.models.settings import typed
from harness.models.spec import IDLE, ModelSpec, agree, architecture_of, content, read_config

refuse_foreign_kernels()  # before transformers looks for a package of that name

from transformers import (  # noqa: E402
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils.logging import disable_progress_bar, get_verbosity, set_verbosity, set_verbosity_error  # noqa: E402

from harness.models import report, selfcheck, tokenizer  # noqa: E402
from harness.models.swap import SwappedAttention  # noqa: E402
from kernels.auto import CHOSEN  # noqa: E402

disable_progress_bar()  # our own progress is on stderr; its bars do not read well in a log

# of config.json: what a call says, and what would change the form of its answer
CALLS = (*IDLE, "output_attentions", "output_hidden_states", "return_dict", "torchscript", "auto_map")


@dataclass
class LoadedModel:
    """weights: what was read of the checkpoint's files; None for random weights."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    attention: SwappedAttention
    weights: report.Loaded | None = None


_TOKENIZERS: dict[tuple[str, str, int], PreTrainedTokenizerBase] = {}


def load_tokenizer(spec: ModelSpec) -> PreTrainedTokenizerBase:
    """The model's tokenizer, ready for all tasks, kept for the life of the process; UserError with
    the way out if it cannot be had, or would change what the model reads."""
    vocabulary = spec.architecture.vocabulary
    known = (spec.source, spec.tokenizer, vocabulary)
    if known not in _TOKENIZERS:
        folder = spec.tokenizer_folder or _fetched(spec, weights=False)
        # with our configuration, because transformers would read the folder's own, unmended one
        options = {} if spec.random else {"config": _config(spec, folder)}
        found = _guarded(spec, lambda: _made(spec, folder, options))
        if spec.random and vocabulary < len(found):
            raise UserError(f"model.weights=random needs a vocabulary of at least {len(found)} tokens.")
        _TOKENIZERS[known] = tokenizer.ready(found, source=spec.source, vocabulary=vocabulary, folder=folder)
    return _TOKENIZERS[known]


def _made(spec: ModelSpec, folder: Path, options: dict) -> PreTrainedTokenizerBase:
    try:
        return AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False, **options)
    except UNREACHED:
        raise
    except Exception as error:  # whatever values that no reader checks lead to
        told = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise CannotLoad(f"no tokenizer can be made from its files ({told})") from None


def download(spec: ModelSpec) -> Path:
    """Have the files of a model on the Hub in its cache, where a run without a network finds them.
    Returns their folder; UserError with the way out if they cannot be had."""
    print(f"Fetching {spec.source}", file=sys.stderr, flush=True)
    place = _fetched(spec, weights=True)
    weights_of(place)
    return place


def load_model(spec: ModelSpec, *, device: torch.device, kernel: str) -> LoadedModel:
    """Load weights in the spec's dtype onto `device`, or over all GPUs by its device map, and
    replace the attention.

    Raises UserError if the checkpoint cannot be had or is not whole, if its own configuration
    disagrees with what the cell says of it, or if the ways in which tasks feed it do not agree.
    """
    words, weights = load_tokenizer(spec), None
    if spec.random:
        model = random_model(spec.architecture, spec.init_seed, dtype=spec.torch_dtype)
    else:
        model, weights = _checkpoint(spec)
    if spec.device_map is None:  # else accelerate has placed it, for good
        model.to(device)
    model.eval().requires_grad_(False)
    # a checkpoint's own generation_config.json would decide what greedy decoding says, and is in no
    # identity
    model.generation_config = GenerationConfig(eos_token_id=words.eos_token_id, pad_token_id=words.pad_token_id)
    attention = SwappedAttention(model, spec.family, spec.slopes, kernel=kernel)
    selfcheck.check(model, attention, source=spec.source)
    CHOSEN.clear()  # what the check chose is no task's
    return LoadedModel(model, words, attention, weights)


def random_model(
    architecture: Architecture, seed: int, *, dtype: torch.dtype = torch.float32, **config
) -> PreTrainedModel:
    """A stock model of this architecture, its weights drawn by transformers' own initialisation.
    Drawn on the CPU, so that a seed gives the same weights whatever the device; the global
    generators are left alone.

    config: further options of the family's transformers configuration.
    """
    raw = family_of(architecture.family).raw(architecture) | config
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(raw.pop("model_type"), **raw), dtype=dtype)


def _checkpoint(spec: ModelSpec) -> tuple[PreTrainedModel, report.Loaded]:
    folder = spec.path or _fetched(spec, weights=True)
    files = weights_of(folder)
    found = architecture_of(read_config(folder))
    if spec.layers and spec.layers <= found.layers:
        found = replace(found, layers=spec.layers)
    agree(found, spec.architecture, spec.source, spec.name)
    options = {"config": _buildable(spec, folder), "dtype": spec.torch_dtype, "use_safetensors": True}
    options |= {"generation_config": GenerationConfig(), "trust_remote_code": False}
    options |= {"output_loading_info": True, "ignore_mismatched_sizes": True}  # the report names them, and is refused
    options |= {"device_map": spec.device_map} if spec.device_map else {}
    model, said = _guarded(spec, lambda: AutoModelForCausalLM.from_pretrained(str(folder), **options))
    weights = report.loaded(model, said, files, source=spec.source, layers=spec.layers)
    if spec.path and {**spec.identity, **content(folder, weights=True)} != spec.identity:
        raise CannotLoad(f"The files of {folder} were changed while this run began: run it again.")
    return model, weights


def _config(spec: ModelSpec, folder: Path) -> PreTrainedConfig:
    """The folder's configuration as transformers accepts it. UserError where it does not."""
    mended = {key: value for key, value in spec.family.mend(read_config(folder)).items() if key not in CALLS}
    try:
        kind = CONFIG_MAPPING[mended.pop("model_type")]
        config = kind(**typed(mended, kind))
    except Exception as error:  # transformers raises what its checkers raise
        raise _unaccepted(spec, error) from None
    if spec.layers:
        config.num_hidden_layers = spec.layers
    return config


def _buildable(spec: ModelSpec, folder: Path) -> PreTrainedConfig:
    """As `_config`, and tried: a model without memory is built from it. UserError where that
    fails."""
    config = _config(spec, folder)
    try:
        with torch.device("meta"):
            AutoModelForCausalLM.from_config(config)
    except Exception as error:  # whatever a value that no class checks leads to
        raise _unaccepted(spec, error) from None
    return config


def _unaccepted(spec: ModelSpec, error: Exception) -> CannotLoad:
    words = " ".join(str(error).split())[:200].rstrip(".")
    return CannotLoad(f"{spec.source}: transformers does not accept its config.json: {words}.")


def _fetched(spec: ModelSpec, *, weights: bool) -> Path:
    return _guarded(spec, lambda: fetch(spec.repo, spec.revision, weights=weights))


def _guarded(spec: ModelSpec, load):
    told = get_verbosity()
    set_verbosity_error()  # transformers' own report of missing weights fills a screen; ours is one sentence
    try:
        return load()
    except (*UNREACHED, CannotLoad, SafetensorError) as error:
        if spec.path:
            raise CannotLoad(f"{spec.path} could not be loaded: {' '.join(str(error).split())}") from error
        family, arch = spec.family, spec.architecture
        gone = "; MosaicML's repositories are gone from the Hub" if spec.repo.startswith("mosaicml/") else ""
        raise CannotLoad(
            f"{spec.source} could not be loaded ({type(error).__name__}{gone}). Give a local copy with "
            "model.path=FOLDER, or a copy you trust with model.repo=OWNER/NAME model.revision=COMMIT. "
            f"It will be read with {arch.heads} slopes in {family.slope_order} order and "
            f"alibi_bias_max {arch.bias_max:g}."
        ) from error
    finally:
        set_verbosity(told)
