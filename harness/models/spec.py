"""Find and identify the model that a configuration names, before its weights are read."""

import hashlib
import json
import math
import os
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from harness.common.errors import CannotLoad, UserError, choose
from harness.common.paths import EMBEDDED, ROOT
from harness.models import files
from harness.models.families import model_family
from harness.models.family import Architecture, Family
from harness.models.hub import HUB_ERRORS, fetch, resolve_commit
from harness.models.options import ArchitectureConfig, ModelConfig

WEIGHTS = ("checkpoint", "random")
READS = ("text", "prompts")
DEVICE_MAPS = ("auto", "balanced", "sequential")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

# settings of config.json that change no result: names, versions, and the dtype, which is a field of
# the cell
IRRELEVANT_SETTINGS: tuple[str, ...] = (
    "_name_or_path",
    "architectures",
    "dtype",
    "torch_dtype",
    "transformers_version",
    "use_cache",
)
IRRELEVANT_SETTINGS += ("init_device",)
# The identity covers a tokenizer's settings, except for the embedded models: ids of the first
# records, made without that field, must not change.
FIRST_TOKENIZER_SETTINGS = (
    "sha256:023f2d00d8a97727d89e20744aabb497a6ed82136545c45a0e08ef0558cdc232",  # tiny, tiny-plain
    "sha256:3488c8caecd55af2ab02f1193e8aaa85d0a6d44deda2d8a944654f8ca3e591ab",  # tiny-books
)


@dataclass(frozen=True)
class ModelSpec:
    """A model that can be loaded. `identity` holds everything on which its results depend.

    revision: commit of a model on the Hub, even if a branch or tag was requested.
    init_seed: seed of random weights; None for a checkpoint.
    layers: number of the checkpoint's first layers to load; None for all.
    reads: "text", or "prompts" for a model that knows only the words of the harness's own prompts.
    device_map: how accelerate spreads the model over GPUs; None for a single device.
    sigma: 1/slope of every head in tokens, in place of the checkpoint's slopes; None for these.
    """

    name: str
    path: Path | None
    repo: str | None
    revision: str | None
    dtype: str
    architecture: Architecture
    identity: dict
    init_seed: int | None = None
    layers: int | None = None
    reads: str = "text"
    device_map: str | None = None
    sigma: float | None = None

    @property
    def family(self) -> Family:
        return model_family(self.architecture.family, rotary=True)

    @property
    def slopes(self) -> torch.Tensor:
        """Slopes of the weights, (heads,) float64. Raises UserError for a family without ALiBi and
        no `sigma`."""
        if self.sigma is not None:
            return torch.full((self.architecture.heads,), 1 / self.sigma, dtype=torch.float64)
        if self.family.projections is not None:
            raise UserError(
                f"model={self.name} has no ALiBi: give the slope under which its queries, keys and values are "
                "measured, model.sigma=TOKENS."
            )
        return self.family.slopes(self.architecture)

    @property
    def rounded_slopes(self) -> list[float]:
        """The slopes to twelve digits, because the last bits of a power differ between machines."""
        return [float(f"{m:.12g}") for m in self.slopes.tolist()]

    @property
    def torch_dtype(self) -> torch.dtype:
        return DTYPES[self.dtype]

    @property
    def source(self) -> str:
        if self.random:
            return f"{self.name} (init_seed={self.init_seed})"
        return str(self.path) if self.path else f"{self.repo}@{self.revision}"

    @property
    def random(self) -> bool:
        return self.init_seed is not None

    @property
    def embedded(self) -> bool:
        return not self.random and self.path is not None and self.path.is_relative_to(EMBEDDED)

    @property
    def tokenizer(self) -> str:
        """Key of the tokenizer: its hashes, or its source if there are none."""
        hashes = [self.identity[key] for key in ("tokenizer", "tokenizer_files") if self.identity.get(key)]
        return " ".join(hashes) or self.source

    @property
    def tokenizer_folder(self) -> Path | None:
        """Folder of the tokenizer; None for the Hub. Random weights use the embedded tokenizer."""
        return EMBEDDED / "tiny" if self.random else self.path


def resolve_model(config: ModelConfig, dtype: str | None) -> ModelSpec:
    """Find the model of a configuration.

    Args:
        config: the options model.*.
        dtype: the option dtype; None for the model's own.

    Raises:
        UserError: for an invalid option, or a model that cannot be identified.
    """
    if config.architecture == ArchitectureConfig():  # the schema's empty architecture
        config = replace(config, architecture=None)
    dtype = choose("dtype", dtype or config.dtype, DTYPES)
    weights = choose("model.weights", config.weights, WEIGHTS)
    if config.sigma is not None and not 0 < config.sigma < math.inf:
        raise UserError(f"model.sigma must be a number of tokens above 0, not {config.sigma}.")
    if config.init_seed < 0:
        raise UserError(f"model.init_seed must be at least 0, not {config.init_seed}.")
    spec = _local(config, dtype, weights) if config.path else _named(config, dtype)
    spec = replace(spec, reads=choose("model.reads", config.reads, READS))
    if config.device_map is not None:
        spec = replace(spec, device_map=choose("model.device_map", config.device_map, DEVICE_MAPS))
        if weights == "random":
            raise UserError("model.device_map spreads a checkpoint: leave it out with model.weights=random.")
    if config.layers is not None and not 1 <= config.layers <= spec.architecture.layers:
        raise UserError(f"model.layers must be from 1 to the model's {spec.architecture.layers}, not {config.layers}.")
    if config.layers not in (None, spec.architecture.layers):
        architecture = replace(spec.architecture, layers=config.layers)
        identity = {**spec.identity, "layers": config.layers}
        name = f"{spec.name}, first {config.layers} of {spec.architecture.layers} layers"
        spec = replace(spec, name=name, layers=config.layers, architecture=architecture, identity=identity)
    return _random(spec, config.init_seed) if weights == "random" else spec


def _random(spec: ModelSpec, init_seed: int) -> ModelSpec:
    spec = replace(spec, name=f"{spec.name}, random weights", init_seed=init_seed)
    identity = {key: value for key, value in spec.identity.items() if key != "tokenizer_files"}
    identity |= {"weights": f"random:{init_seed}", **_tokenizer_hashes(EMBEDDED / "tiny")}
    return replace(spec, identity={**identity, "architecture": spec.architecture.as_dict()})


def _named(config: ModelConfig, dtype: str) -> ModelSpec:
    if not config.repo and config.weights != "random":
        raise UserError(f"model={config.name} names neither a path nor a repo: give model.path= or model.repo=.")
    revision = config.revision or "main"
    if config.weights == "checkpoint" and config.repo:
        revision = resolve_commit(config.repo, revision)
    if config.architecture is not None:
        architecture = Architecture(**vars(config.architecture))
    elif config.repo:
        architecture = _hub_architecture(config.repo, revision)
    else:
        raise UserError(f"model={config.name} names no shape for random weights: give model.architecture.")
    spec = ModelSpec(_name(config), None, config.repo, revision, dtype, architecture, {}, sigma=config.sigma)
    return _with_identity(spec, weights=f"{config.repo}@{revision}", config=None, tokenizer=None)


def _name(config: ModelConfig) -> str:
    return config.name if config.sigma is None else f"{config.name}, sigma {config.sigma:g}"


def _hub_architecture(repo: str, commit: str) -> Architecture:
    try:
        folder = fetch(repo, commit, weights=False)
    except (*HUB_ERRORS, CannotLoad):
        raise UserError(
            f"The config.json of model.repo={repo} could not be had: give model.architecture (family, layers, heads, "
            "width, vocabulary, bias_max), or model.path= for a local copy."
        ) from None
    return parse_architecture(read_config(folder))


def _local(config: ModelConfig, dtype: str, kind: str) -> ModelSpec:
    assert config.path is not None
    folder = Path(os.path.expanduser(config.path))
    path = next((p.resolve() for p in (folder, ROOT / folder) if os.path.isdir(p)), None)
    if path is None:
        raise UserError(f"model.path={config.path}: there is no such folder.")
    architecture = parse_architecture(read_config(path))
    if config.architecture is not None:
        check_architecture(architecture, Architecture(**vars(config.architecture)), str(path), config.name)
    spec = ModelSpec(_name(config), path, None, None, dtype, architecture, {}, sigma=config.sigma)
    return _with_identity(spec, **content_identity(path, weights=kind == "checkpoint"))


def content_identity(folder: Path, *, weights: bool) -> dict:
    """Return the part of a model's identity that depends on the contents of its folder.

    weights: whether the folder's weights are used.

    Raises:
        UserError: for missing or invalid files.
    """
    files.refuse_odd_files(folder)
    settings = {key: value for key, value in read_config(folder).items() if key not in IRRELEVANT_SETTINGS}
    config = json.dumps(settings, sort_keys=True)
    if weights and not files.has_tokenizer(folder):
        raise UserError(f"{folder} holds no tokenizer, such as tokenizer.json: copy it there from the model's source.")
    return {
        "weights": files.digest(files.weight_files(folder)) if weights else files.digest([]),
        "config": "sha256:" + hashlib.sha256(config.encode()).hexdigest(),
        **_tokenizer_hashes(folder),
    }


def _tokenizer_hashes(folder: Path) -> dict:
    hashes = {"tokenizer": files.vocabulary_hash(folder)}
    settings = files.tokenizer_settings_hash(folder)
    if settings is not None and settings not in FIRST_TOKENIZER_SETTINGS:
        hashes["tokenizer_files"] = settings
    return hashes


def parse_architecture(raw: dict) -> Architecture:
    """Return the architecture that a config.json describes.

    Raises:
        UserError: for a model that is not supported, or a value of the wrong type.
    """
    family = model_family(str(raw.get("model_type", "")), rotary=True)
    try:
        return family.architecture(raw)
    except (TypeError, ValueError, ArithmeticError) as error:
        raise UserError(
            f"A value in this {family.name} checkpoint's config.json has the wrong type: {error}."
        ) from None


def check_architecture(actual: Architecture, expected: Architecture, source: str, name: str) -> None:
    """Check that a checkpoint has the architecture that the model's configuration names.

    Args:
        actual: architecture in the checkpoint's config.json.
        expected: architecture in the model's configuration.
        source: name of the checkpoint for messages.
        name: name of the model for messages.

    Raises:
        UserError: if they differ.
    """
    other = expected.as_dict()
    differing = [(key, value, other[key]) for key, value in actual.as_dict().items() if value != other[key]]
    if differing:
        words = ", ".join(f"{key} {value} not {other_value}" for key, value, other_value in differing)
        raise UserError(
            f"{source} is not what model={name} says: {words}. Choose model=local for a checkpoint of your own, or set "
            "model.architecture to match it."
        )


def _with_identity(
    spec: ModelSpec, *, weights: str, config: str | None, tokenizer: str | None, **others: str
) -> ModelSpec:
    identity = {"weights": weights, "config": config, "slopes": spec.rounded_slopes, "tokenizer": tokenizer}
    return replace(spec, identity={**identity, **others})


def read_config(path: Path) -> dict:
    """Return the unmodified settings of a checkpoint's config.json.

    Raises:
        UserError: if there is no such file, or it is not a JSON object.
    """
    raw = files.read_settings(path / "config.json")
    if raw is None:
        raise UserError(f"{path} holds no config.json: it is not a transformers checkpoint.")
    return raw
