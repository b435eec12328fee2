"""Load a model and its tokenizer from a folder or the Hub, and replace the model's attention."""

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from harness.common.errors import CannotLoad, UserError
from harness.common.preflight import refuse_foreign_kernels
from harness.models.families import model_family
from harness.models.family import Architecture
from harness.models.files import refuse_odd_files, weight_files
from harness.models.hub import HUB_ERRORS, fetch
from harness.models.settings import coerce_numbers
from harness.models.spec import (
    IRRELEVANT_SETTINGS,
    ModelSpec,
    check_architecture,
    content_identity,
    parse_architecture,
    read_config,
)

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

from harness.models import report, selfcheck  # noqa: E402
from harness.models.swap import SwappedAttention  # noqa: E402
from harness.models.tokenizer import prepare_tokenizer  # noqa: E402
from kernels.auto import CHOSEN  # noqa: E402

disable_progress_bar()  # our own progress is on stderr; its bars do not read well in a log

# settings of config.json that the harness sets itself, or that would change the form of the outputs
CALL_SETTINGS: tuple[str, ...] = (
    *IRRELEVANT_SETTINGS,
    "output_attentions",
    "output_hidden_states",
    "return_dict",
    "torchscript",
)
CALL_SETTINGS += ("auto_map",)


@dataclass
class LoadedModel:
    """A model with replaced attention.

    swapped: its replaced attention; None for a family without ALiBi, which keeps its own.
    weights: record of the files; None for random weights.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    swapped: SwappedAttention | None
    weights: report.LoadedWeights | None = None

    @property
    def attention(self) -> SwappedAttention:
        """The replaced attention of a family with ALiBi."""
        assert self.swapped is not None, "tasks that run the weights refuse families without ALiBi"
        return self.swapped


_TOKENIZERS: dict[tuple[str, str, int], PreTrainedTokenizerBase] = {}


def load_tokenizer(spec: ModelSpec) -> PreTrainedTokenizerBase:
    """Return the model's tokenizer, ready for all tasks, cached for the life of the process.

    Raises:
        UserError: if it cannot be loaded, or would change what the model reads.
    """
    vocabulary = spec.architecture.vocabulary
    key = (spec.source, spec.tokenizer, vocabulary)
    if key not in _TOKENIZERS:
        folder = spec.tokenizer_folder or _fetch_files(spec, weights=False)
        # with our configuration, because transformers would read the folder's own, unmended one
        options = {} if spec.random else {"config": _config(spec, folder)}
        refuse_odd_files(folder)
        loaded = _explain_errors(spec, lambda: _make_tokenizer(folder, options))
        if spec.random and vocabulary < len(loaded):
            raise UserError(f"model.weights=random needs a vocabulary of at least {len(loaded)} tokens.")
        try:
            _TOKENIZERS[key] = prepare_tokenizer(loaded, source=spec.source, vocabulary=vocabulary, folder=folder)
        except UserError:
            raise
        except Exception as error:
            raise CannotLoad(f"{folder} could not be loaded: {_no_tokenizer(error)}.") from None
    return _TOKENIZERS[key]


def _make_tokenizer(folder: Path, options: dict) -> PreTrainedTokenizerBase:
    try:
        return AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False, **options)
    except HUB_ERRORS:
        raise
    except Exception as error:
        raise CannotLoad(_no_tokenizer(error)) from None


def _no_tokenizer(error: Exception) -> str:
    # unchecked values in the files may raise anything
    reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    return f"no tokenizer can be made from its files ({reason})"


def download(spec: ModelSpec) -> Path:
    """Download a model from the Hub into its cache, for runs without a network; return its folder.

    Raises:
        UserError: if files cannot be fetched or are incomplete.
    """
    print(f"Fetching {spec.source}", file=sys.stderr, flush=True)
    folder = _fetch_files(spec, weights=True)
    weight_files(folder)
    return folder


def load_model(spec: ModelSpec, *, device: torch.device, kernel: str) -> LoadedModel:
    """Load a model in the spec's dtype and replace its attention.

    Args:
        spec: the model.
        device: where it runs, unless the spec has a device map.
        kernel: the kernel of the replaced attention.

    Raises:
        UserError: if the checkpoint cannot be loaded or is incomplete, its configuration disagrees
            with the spec, or the self-check finds differing logits.
    """
    words, weights = load_tokenizer(spec), None
    if spec.random:
        assert spec.init_seed is not None, "as of every model that is random"
        model = random_model(spec.architecture, spec.init_seed, dtype=spec.torch_dtype)
    else:
        model, weights = _checkpoint(spec)
    if spec.device_map is None:  # a device map has placed the model already
        model.to(device)  # type: ignore[arg-type]  # of a decorator that loses the method
    model.eval().requires_grad_(False)
    # a checkpoint's own generation_config.json could change greedy decoding, and is not part of the
    # cell's identity
    model.generation_config = GenerationConfig(eos_token_id=words.eos_token_id, pad_token_id=words.pad_token_id)
    if spec.family.projections is not None:
        return LoadedModel(model, words, None, weights)
    slopes = spec.family.slopes(spec.architecture)  # the checkpoint's, whatever `spec.sigma` is
    attention = SwappedAttention(model, spec.family, slopes, kernel=kernel)
    selfcheck.check_logits(model, attention, source=spec.source)
    CHOSEN.clear()  # kernels chosen during the check do not belong to a task
    return LoadedModel(model, words, attention, weights)


def random_model(
    architecture: Architecture, seed: int, *, dtype: torch.dtype = torch.float32, **config
) -> PreTrainedModel:
    """Return a stock model whose weights are drawn by transformers' initialisation.

    They are drawn on the CPU, so that a seed gives the same weights for every device. The state of
    the global generators does not change.

    Args:
        architecture: the model's sizes.
        seed: seed of the weights.
        dtype: type of the weights.
        config: further options of the family's transformers configuration.
    """
    raw = model_family(architecture.family, rotary=True).raw(architecture) | config
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(raw.pop("model_type"), **raw), dtype=dtype)


def _checkpoint(spec: ModelSpec) -> tuple[PreTrainedModel, report.LoadedWeights]:
    folder = spec.path or _fetch_files(spec, weights=True)
    files = weight_files(folder)
    architecture = parse_architecture(read_config(folder))
    if spec.layers and spec.layers <= architecture.layers:
        architecture = replace(architecture, layers=spec.layers)
    check_architecture(architecture, spec.architecture, spec.source, spec.name)
    options = {"config": _buildable(spec, folder), "dtype": spec.torch_dtype, "use_safetensors": True}
    options |= {"generation_config": GenerationConfig(), "trust_remote_code": False}
    # mismatched sizes are reported here and refused by verify_weights
    options |= {"output_loading_info": True, "ignore_mismatched_sizes": True}
    options |= {"device_map": spec.device_map} if spec.device_map else {}
    model, info = _explain_errors(spec, lambda: AutoModelForCausalLM.from_pretrained(str(folder), **options))
    weights = report.verify_weights(model, info, files, source=spec.source, layers=spec.layers)
    if spec.path and {**spec.identity, **content_identity(folder, weights=True)} != spec.identity:
        raise CannotLoad(f"The files of {folder} were changed while this run began: run it again.")
    return model, weights


def _config(spec: ModelSpec, folder: Path) -> PreTrainedConfig:
    """The folder's configuration as transformers' object. Raises CannotLoad if it is refused."""
    settings = {key: value for key, value in spec.family.mend(read_config(folder)).items() if key not in CALL_SETTINGS}
    try:
        kind = CONFIG_MAPPING[settings.pop("model_type")]
        config = kind(**coerce_numbers(settings, kind))
    except Exception as error:  # transformers' validators raise exceptions of many types
        raise _config_error(spec, error) from None
    if spec.layers:
        config.num_hidden_layers = spec.layers
    return config


def _buildable(spec: ModelSpec, folder: Path) -> PreTrainedConfig:
    """Like `_config`, after a model on the meta device was built from it. Raises CannotLoad."""
    config = _config(spec, folder)
    try:
        with torch.device("meta"):
            AutoModelForCausalLM.from_config(config)
    except Exception as error:  # unchecked values in the configuration may raise anything
        raise _config_error(spec, error) from None
    return config


def _config_error(spec: ModelSpec, error: Exception) -> CannotLoad:
    words = " ".join(str(error).split())[:200].rstrip(".")
    return CannotLoad(f"{spec.source}: transformers does not accept its config.json: {words}.")


def _fetch_files(spec: ModelSpec, *, weights: bool) -> Path:
    assert spec.repo is not None and spec.revision is not None, "a model without a folder is on the Hub"
    repo, revision = spec.repo, spec.revision
    return _explain_errors(spec, lambda: fetch(repo, revision, weights=weights))


def _explain_errors(spec: ModelSpec, load: Callable[[], Any]) -> Any:
    """Call `load`, and turn errors of transformers, the Hub and safetensors into CannotLoad."""
    verbosity = get_verbosity()
    set_verbosity_error()  # transformers' own report of missing weights fills a screen
    try:
        return load()
    except (*HUB_ERRORS, CannotLoad, SafetensorError) as error:
        if place := spec.tokenizer_folder:
            raise CannotLoad(f"{place} could not be loaded: {' '.join(str(error).split())}") from error
        family, arch = spec.family, spec.architecture
        mosaic = (spec.repo or "").startswith("mosaicml/")
        slopes = f" It will be read with {arch.heads} slopes in {family.slope_order} order and "
        slopes = "" if family.projections else f"{slopes}alibi_bias_max {arch.bias_max:g}."
        gone = "; MosaicML's repositories are gone from the Hub" if mosaic else ""
        raise CannotLoad(
            f"{spec.source} could not be loaded ({type(error).__name__}{gone}). Give a local copy with "
            "model.path=FOLDER, or a copy you trust with model.repo=OWNER/NAME model.revision=COMMIT." + slopes
        ) from error
    finally:
        set_verbosity(verbosity)
