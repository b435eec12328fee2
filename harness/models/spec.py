"""Which model a configuration names: found and identified from its files or its name, before any
weights are read."""

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from harness.common.errors import CannotLoad, UserError, choose
from harness.common.paths import EMBEDDED, ROOT
from harness.models import files
from harness.models.families import family_of
from harness.models.family import Architecture, Family
from harness.models.hub import UNREACHED, commit_of, fetch
from harness.models.options import ArchitectureConfig, ModelConfig

WEIGHTS = ("checkpoint", "random")
READS = ("text", "prompts")
DEVICE_MAPS = ("auto", "balanced", "sequential")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

IDLE = ("_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version", "use_cache", "init_device")
# A tokenizer's files beside its vocabulary are in the identity unless they are those of the
# embedded models, with which the first records were made: their ids stay what they are.
FIRST = (
    "sha256:023f2d00d8a97727d89e20744aabb497a6ed82136545c45a0e08ef0558cdc232",  # tiny, tiny-plain
    "sha256:3488c8caecd55af2ab02f1193e8aaa85d0a6d44deda2d8a944654f8ca3e591ab",  # tiny-books
)


@dataclass(frozen=True)
class ModelSpec:
    """A model that can be loaded. `identity` is what distinguishes its results from another
    model's.

    revision: of a model on the Hub the commit, whatever branch or tag was asked for.
    init_seed: of random weights; None for a checkpoint's. layers: how many of the checkpoint's;
        None for all.
    reads: "text", or "prompts" for a model that knows no words but those of the harness's own
        prompts.
    device_map: how accelerate spreads it over the GPUs; None for one device.
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

    @property
    def family(self) -> Family:
        return family_of(self.architecture.family)

    @property
    def slopes(self) -> torch.Tensor:
        return self.family.slopes(self.architecture)

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
        """What tells its tokenizer from others: hashes, or where it comes from."""
        known = [self.identity[key] for key in ("tokenizer", "tokenizer_files") if self.identity.get(key)]
        return " ".join(known) or self.source

    @property
    def tokenizer_folder(self) -> Path | None:
        """Where the tokenizer lies; None for the Hub. Random weights go with the embedded one."""
        return EMBEDDED / "tiny" if self.random else self.path


def resolve_model(config: ModelConfig, dtype: str | None) -> ModelSpec:
    """Find the model. Raises UserError if it cannot be told which it is, or its files are not
    there."""
    if config.architecture == ArchitectureConfig():  # as ModelConfig has it where nothing is said of it
        config = replace(config, architecture=None)
    dtype = choose("dtype", dtype or config.dtype, DTYPES)
    weights = choose("model.weights", config.weights, WEIGHTS)
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
    own = {key: value for key, value in spec.identity.items() if key != "tokenizer_files"}
    identity = {**own, "weights": f"random:{init_seed}", **_tokenizer(spec.tokenizer_folder)}
    return replace(spec, identity={**identity, "architecture": spec.architecture.as_dict()})


def _named(config: ModelConfig, dtype: str) -> ModelSpec:
    if not config.repo and config.weights != "random":
        raise UserError(f"model={config.name} names neither a path nor a repo: give model.path= or model.repo=.")
    revision = config.revision or "main"
    if config.weights == "checkpoint":
        revision = commit_of(config.repo, revision)
    if config.architecture is not None:
        architecture = Architecture(**vars(config.architecture))
    else:
        architecture = _architecture_on_the_hub(config.repo, revision)
    spec = ModelSpec(config.name, None, config.repo, revision, dtype, architecture, {})
    return _identified(spec, weights=f"{config.repo}@{revision}", config=None, tokenizer=None)


def _architecture_on_the_hub(repo: str, commit: str) -> Architecture:
    try:
        folder = fetch(repo, commit, weights=False)
    except (*UNREACHED, CannotLoad):
        raise UserError(
            f"The config.json of model.repo={repo} could not be had: give model.architecture (family, layers, heads, "
            "width, vocabulary, bias_max), or model.path= for a local copy."
        ) from None
    return architecture_of(read_config(folder))


def _local(config: ModelConfig, dtype: str, kind: str) -> ModelSpec:
    given = Path(config.path).expanduser()
    path = next((p.resolve() for p in (given, ROOT / given) if p.is_dir()), None)
    if path is None:
        raise UserError(f"model.path={config.path}: there is no such folder.")
    found = architecture_of(read_config(path))
    if config.architecture is not None:
        agree(found, Architecture(**vars(config.architecture)), str(path), config.name)
    spec = ModelSpec(config.name, path, None, None, dtype, found, {})
    return _identified(spec, **content(path, weights=kind == "checkpoint"))


def content(folder: Path, *, weights: bool) -> dict:
    """What a folder's files say of the model's identity. UserError for files that cannot be what
    they should be."""
    config = json.dumps(_computing(read_config(folder)), sort_keys=True)
    if weights and not files.has_tokenizer(folder):
        raise UserError(f"{folder} holds no tokenizer, such as tokenizer.json: copy it there from the model's source.")
    return {
        "weights": files.digest(files.weights_of(folder)) if weights else files.digest([]),
        "config": "sha256:" + hashlib.sha256(config.encode()).hexdigest(),
        **_tokenizer(folder),
    }


def _tokenizer(folder: Path) -> dict:
    beside = files.beside_hash(folder)
    more = {} if beside is None or beside in FIRST else {"tokenizer_files": beside}
    return {"tokenizer": files.vocabulary_hash(folder), **more}


def architecture_of(raw: dict) -> Architecture:
    """The architecture in a config.json. UserError for one that is not supported, or has other
    values than numbers where numbers belong."""
    family = family_of(str(raw.get("model_type", "")))
    try:
        return family.architecture(raw)
    except (TypeError, ValueError, ArithmeticError) as error:
        raise UserError(
            f"A value in this {family.name} checkpoint's config.json has the wrong type: {error}."
        ) from None


def agree(found: Architecture, said: Architecture, source: str, name: str) -> None:
    """UserError if a checkpoint is not what the model file says of it."""
    differing = [(k, v, said.as_dict()[k]) for k, v in found.as_dict().items() if v != said.as_dict()[k]]
    if differing:
        words = ", ".join(f"{k} {a} not {b}" for k, a, b in differing)
        raise UserError(
            f"{source} is not what model={name} says: {words}. Choose model=local for a checkpoint of your own, or set "
            "model.architecture to match it."
        )


def _computing(raw: dict) -> dict:
    """config.json without what does not change a result: names, versions, and the dtype, which is
    the cell's own."""
    return {k: v for k, v in raw.items() if k not in IDLE}


def _identified(spec: ModelSpec, *, weights: str, config: str | None, tokenizer: str | None, **more: str) -> ModelSpec:
    # twelve digits: the last bits of a power may differ between machines, the model does not
    slopes = [float(f"{m:.12g}") for m in spec.slopes.tolist()]
    identity = {"weights": weights, "config": config, "slopes": slopes, "tokenizer": tokenizer}
    return replace(spec, identity={**identity, **more})


def read_config(path: Path) -> dict:
    """The checkpoint's config.json as it stands."""
    file = path / "config.json"
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} holds no config.json: it is not a transformers checkpoint.") from None
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}.") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file} is not valid JSON: {error}.") from None
    if not isinstance(raw, dict):
        raise UserError(f"{file} holds {type(raw).__name__} in place of settings: it is no transformers configuration.")
    return raw
