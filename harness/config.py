"""The configuration's types. Hydra checks names and types against these; `harness.plan` checks what they mean
together."""

import functools
from dataclasses import dataclass, field, make_dataclass
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
    """`attn_config` is this with the options of all methods."""

    name: str = MISSING


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
    attn: AttnConfig = field(default_factory=lambda: attn_config()())  # attn.* of all methods, whichever is chosen
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


def attn_config() -> type[AttnConfig]:
    """The type of `RunConfig.attn`: attn.* of every method of `harness.attentions.registry`, so that a sweep over
    methods may name the options of each."""
    from harness.attentions import registry

    return _with_options(tuple(option[:3] for option in registry.options()))


@functools.cache
def _with_options(options: tuple[tuple[str, Any, Any], ...]) -> type[AttnConfig]:
    made = make_dataclass("AttnOptions", [(n, kind, field(default=d)) for n, kind, d in options], bases=(AttnConfig,))
    made.__module__ = __name__  # where a pickled configuration looks for it
    return made


def __getattr__(name: str) -> Any:
    if name == "AttnOptions":
        return attn_config()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def register() -> None:
    """Make the types known to Hydra under the name that conf/config.yaml begins with. An architecture is there to be
    filled in, since nothing can be set within null; one that nobody fills in is left out by `harness.plan.typed`."""
    ConfigStore.instance().store(name="schema", node=RunConfig(ModelConfig(architecture=ArchitectureConfig())))
