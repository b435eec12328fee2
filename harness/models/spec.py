"""Which model a configuration names: found and identified from its files or its name, before any weights are read."""

import functools
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import torch

from harness.config import ROOT, ModelConfig
from harness.errors import UserError, choose
from harness.models.families import family_of
from harness.models.family import Architecture, Family

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class ModelSpec:
    """A model that can be loaded. `identity` is what distinguishes its results from another model's."""

    name: str
    path: Path | None
    repo: str | None
    revision: str | None
    dtype: str
    architecture: Architecture
    identity: dict

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
        return str(self.path) if self.path else f"{self.repo}@{self.revision}"

    @property
    def embedded(self) -> bool:
        return self.path is not None and self.path.is_relative_to(ROOT / "harness" / "embedded")


def resolve_model(config: ModelConfig, dtype: str | None) -> ModelSpec:
    """Find the model. Raises UserError if it cannot be told which it is, or its files are not there."""
    dtype = choose("dtype", dtype or config.dtype, DTYPES)
    if config.path:
        return _local(config, dtype)
    if not config.repo:
        raise UserError(f"model={config.name} names neither a path nor a repo: give model.path= or model.repo=.")
    if config.architecture is None:
        raise UserError(
            f"model.repo={config.repo} needs model.architecture (family, layers, heads, width, vocabulary, "
            "bias_max): cells are identified before anything is downloaded."
        )
    architecture = Architecture(**vars(config.architecture))
    revision = config.revision or "main"
    spec = ModelSpec(config.name, None, config.repo, revision, dtype, architecture, {})
    return _identified(spec, weights=f"{config.repo}@{revision}", tokenizer=None)


def _local(config: ModelConfig, dtype: str) -> ModelSpec:
    given = Path(config.path).expanduser()
    path = next((p.resolve() for p in (given, ROOT / given) if p.is_dir()), None)
    if path is None:
        raise UserError(f"model.path={config.path}: there is no such folder.")
    raw = read_config(path)
    weights = sorted(path.glob("*.safetensors"))
    if not weights:
        raise UserError(
            f"{path} holds no .safetensors file: convert the checkpoint (pickled weights are never loaded)."
        )
    spec = ModelSpec(config.name, path, None, None, dtype, family_of(raw.get("model_type", "")).architecture(raw), {})
    tokenizer = [p for p in (path / "tokenizer.json", path / "tokenizer.model") if p.exists()]
    return _identified(spec, weights=digest(weights), tokenizer=digest(tokenizer) if tokenizer else None)


def _identified(spec: ModelSpec, *, weights: str, tokenizer: str | None) -> ModelSpec:
    # twelve digits: the last bits of a power may differ between machines, the model does not
    slopes = [float(f"{m:.12g}") for m in spec.slopes.tolist()]
    identity = {"weights": weights, "slopes": slopes, "tokenizer": tokenizer}
    return ModelSpec(spec.name, spec.path, spec.repo, spec.revision, spec.dtype, spec.architecture, identity)


def read_config(path: Path) -> dict:
    """The checkpoint's config.json as it stands."""
    file = path / "config.json"
    try:
        return json.loads(file.read_text())
    except FileNotFoundError:
        raise UserError(f"{path} holds no config.json: it is not a transformers checkpoint.") from None
    except ValueError as error:
        raise UserError(f"{file} is not valid JSON: {error}.") from None


def digest(files: list[Path]) -> str:
    """sha256 over the files' contents in order; read once per process and file version."""
    return _digest(tuple((str(f), f.stat().st_size, f.stat().st_mtime_ns) for f in files))


@functools.lru_cache(maxsize=64)
def _digest(versions: tuple[tuple[str, int, int], ...]) -> str:
    total = hashlib.sha256()
    for name, _, _ in versions:
        with open(name, "rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return "sha256:" + total.hexdigest()
