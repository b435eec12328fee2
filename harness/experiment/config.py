"""Types of the configuration: Hydra checks names and types, `harness.experiment.plan` the rest."""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, make_dataclass
from typing import Any, NamedTuple

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING

from harness.common.errors import UserError, choose
from harness.models.options import ArchitectureConfig, ModelConfig
from harness.tracking.options import TrackingConfig

MIN_VALUES = {"masks": 1, "context": 2, "samples": 1, "batch": 1, "seed": 0, "data_seed": 0, "draws": 1}
MODES = ("compute", "read", "none")  # of references
# options whose value is the name of a file in CONF
GROUPS = {"model", "attn", "kernel", "task", "tracking"}


@dataclass
class AttnConfig:
    """Base of the type that `attn_config` returns, which has the options of all methods."""

    name: str = MISSING


class References(NamedTuple):
    """What the option references says. mode: one of MODES, or None for the model's default."""

    mode: str | None
    names: tuple[str, ...]


@dataclass
class KernelConfig:
    name: str = MISSING


@dataclass
class RunConfig:
    model: ModelConfig = field(default_factory=ModelConfig)
    # attn.* of all methods, whichever is chosen
    attn: AttnConfig = field(default_factory=lambda: attn_config()())
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
    references: Any = None  # one of MODES, or a list of names

    def check(self) -> None:
        """Check each top-level value by itself.

        Groups check their own options; relations between options are checked in
        `harness.experiment.refusals`.

        Raises:
            UserError: for a value outside its range.
        """
        for name, minimum in MIN_VALUES.items():
            value = getattr(self, name)
            if value is not None and not minimum <= value < 2**63:
                raise UserError(f"{name} must be at least {minimum} and below 2**63, not {value}.")
        if not 0 <= self.lease < math.inf:
            raise UserError(f"lease must be a number of seconds, or 0 for none, not {self.lease}.")
        self.chosen_references()

    def chosen_references(self) -> References:
        """Return the mode and the names of the references. Names alone are computed.

        Raises:
            UserError: for a word that is neither.
        """
        from harness.attentions.registry import DEFAULT_REFERENCES, REFERENCES

        given = self.references
        if given is None or given in MODES:
            return References(given, DEFAULT_REFERENCES)
        names = [given] if isinstance(given, str) else given
        if not isinstance(names, Sequence):
            raise UserError(
                f"references={str(given).lower()} is not known: use compute, read, none or a list of names."
            )
        for name in names:
            choose("references", str(name), (*MODES, *REFERENCES) if isinstance(given, str) else REFERENCES)
        return References("compute" if names else "none", tuple(name for name in REFERENCES if name in names))


def attn_config() -> type[AttnConfig]:
    """Return the type of `RunConfig.attn`, with the options of every registered method.

    A sweep over methods may therefore set the options of each.
    """
    from harness.attentions import registry

    return _with_options(tuple(option[:3] for option in registry.options()))


@functools.cache
def _with_options(options: tuple[tuple[str, Any, Any], ...]) -> type[AttnConfig]:
    declarations = [(name, kind, field(default=default)) for name, kind, default in options]
    config_type = make_dataclass("AttnOptions", declarations, bases=(AttnConfig,))
    config_type.__module__ = __name__  # where a pickled configuration looks for it
    return config_type


def __getattr__(name: str) -> Any:
    if name == "AttnOptions":
        return attn_config()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def register_schema() -> None:
    """Register the types with Hydra under the name that conf/config.yaml begins with.

    The architecture is present although its default is null, because Hydra sets nothing inside
    null. `harness.experiment.plan.to_run_config` removes it again if it was not filled in.
    """
    ConfigStore.instance().store(name="schema", node=RunConfig(ModelConfig(architecture=ArchitectureConfig())))
