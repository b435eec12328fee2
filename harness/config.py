"""The configuration's types. Hydra checks names and types against these; `harness.plan` checks what they mean
together."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING

ROOT = Path(__file__).resolve().parent.parent
CONF = ROOT / "harness" / "conf"  # a link to conf in a clone, the files themselves where it is installed
GROUPS = {"model", "attn", "kernel", "task", "tracking"}  # options whose value is the name of a file in CONF


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
    architecture: ArchitectureConfig | None = None


@dataclass
class AttnConfig:
    name: str = MISSING
    sampler: str | None = None
    weights: str | None = None
    match: str | None = None
    cutoff: float | None = None
    sinks: int = 0
    evict: bool = False
    align: int = 0


@dataclass
class KernelConfig:
    name: str = MISSING


@dataclass
class TrackingConfig:
    mode: str = MISSING
    project: str = "${oc.env:WANDB_PROJECT,positional-lsh}"
    entity: str | None = "${oc.env:WANDB_ENTITY,null}"
    group: str | None = "${oc.env:WANDB_RUN_GROUP,null}"
    tags: list[str] = field(default_factory=list)
    timeout: float = 45.0


@dataclass
class RunConfig:
    model: ModelConfig = field(default_factory=ModelConfig)
    attn: AttnConfig = field(default_factory=AttnConfig)
    kernel: KernelConfig = field(default_factory=KernelConfig)
    task: dict[str, Any] = field(default_factory=dict)  # each task types its own options
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    masks: int = 16
    context: int = 512
    seed: int = 0
    draws: int | None = None
    data_seed: int = 0
    samples: int = 80
    batch: int = 8
    dtype: str | None = None
    device: str = "auto"
    results: str = "results"
    lease: float = 0.0
    references: str | None = None


def register() -> None:
    """Make the types known to Hydra under the name that conf/config.yaml begins with. An architecture is there to be
    filled in, since nothing can be set within null; one that nobody fills in is left out by `harness.plan.typed`."""
    ConfigStore.instance().store(name="schema", node=RunConfig(ModelConfig(architecture=ArchitectureConfig())))
