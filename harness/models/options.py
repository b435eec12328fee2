"""Types of the options model.* for Hydra."""

from dataclasses import dataclass

from omegaconf import MISSING


@dataclass
class ArchitectureConfig:
    family: str = MISSING
    layers: int = MISSING
    heads: int = MISSING
    width: int = MISSING
    vocabulary: int = MISSING
    bias_max: float = 8
    expansion: int = 4
    kv_heads: int | None = None
    positions: int | None = None


@dataclass
class ModelConfig:
    name: str = MISSING
    repo: str | None = None
    revision: str | None = None
    path: str | None = None
    dtype: str = "float32"
    weights: str = "checkpoint"
    init_seed: int = 0
    layers: int | None = None
    reads: str = "text"
    device_map: str | None = None
    sigma: float | None = None
    architecture: ArchitectureConfig | None = None
