"""The options tracking.* of the W&B mirror, as Hydra's schema."""

from dataclasses import dataclass, field

from omegaconf import MISSING


@dataclass
class TrackingConfig:
    mode: str = MISSING
    project: str = "${oc.env:WANDB_PROJECT,positional-lsh}"
    entity: str | None = "${oc.env:WANDB_ENTITY,null}"
    group: str | None = "${oc.env:WANDB_RUN_GROUP,null}"
    tags: list[str] = field(default_factory=list)
    timeout: float = 45.0
