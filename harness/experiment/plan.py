"""From a composed configuration to what will be done: cells, tasks, device, every mistake answered
before a model is loaded."""

from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from harness.attentions.registry import EXACT, chosen, references
from harness.cell import DRAWS, Cell
from harness.common import environment
from harness.common.errors import CannotLoad, UserError, choose, nearest
from harness.common.paths import CONF
from harness.experiment.config import RunConfig, attn_config
from harness.experiment.machine import device_of, memory_sentence, store, writable
from harness.experiment.refusals import refuse_draws, refuse_kernel, refuse_length, refuse_model, refuse_ranks
from harness.models.options import ArchitectureConfig, ModelConfig
from harness.models.spec import resolve_model
from harness.tasks.base import PlannedTask
from harness.tasks.registry import family_of
from harness.tracking import tracker
from harness.tracking.options import TrackingConfig


@dataclass(frozen=True)
class Plan:
    cell: Cell
    references: dict[str, Cell]  # role ("exact", "window fused", ...) -> cell, the main cell not among them
    compute_references: bool
    tasks: list[PlannedTask]
    samples: int
    batch: int
    device: torch.device
    results: Path
    memory: str | None  # the sentence that says how much will be needed
    tracking: TrackingConfig
    lease: float

    @property
    def cells(self) -> list[Cell]:
        """What is to be computed, the main cell first."""
        return [self.cell, *(self.references.values() if self.compute_references else ())]


def plan(cfg: DictConfig) -> Plan:
    """Check everything that can be known without weights. Raises UserError."""
    return Planner().plan(typed(cfg))


def typed(cfg: DictConfig) -> RunConfig:
    """The composed configuration as objects. Raises UserError for an option that there is not."""
    parts = (cfg, "", RunConfig), (cfg.model, "model.", ModelConfig), (cfg.attn, "attn.", attn_config())
    parts += ((cfg.model.architecture or {}, "model.architecture.", ArchitectureConfig),)
    for part, name, kind in (*parts, (cfg.tracking, "tracking.", TrackingConfig)):
        known = [f"{name}{field}" for field in kind.__dataclass_fields__]
        for key in part:  # +key=value adds what Hydra does not know
            if f"{name}{key}" not in known:
                raise UserError(f"There is no option {name + key!r}.{nearest(name + key, known)}")
    shape = cfg.model.architecture
    if shape is not None:
        absent = [key for key in shape if OmegaConf.is_missing(shape, key)]
        given = [key for key in shape if key not in absent and shape[key] != getattr(ArchitectureConfig, key, None)]
        if absent and given:
            raise UserError(
                f"model.architecture lacks {', '.join(absent)}: give all of it, for a model whose config.json cannot "
                "be read, or none."
            )
        if absent:
            cfg = OmegaConf.merge(cfg, {"model": {"architecture": None}})
    return OmegaConf.to_object(cfg)


class Planner:
    """Plans of many configurations. What depends on few of the values (the model, a window's
    cutoff, a task's check) is computed once for each of theirs, while this object lives.

    here: the runs are for this machine, whose devices, memory and results folder are checked too;
    otherwise nothing is written.
    """

    def __init__(self, *, here: bool = True):
        self.here = here
        self._known: dict[Hashable, tuple[Any, UserError | None]] = {}
        self._absent: dict[Hashable, CannotLoad] = {}  # models that could not be had, looked for once
        self._kernels = sorted(p.stem for p in (CONF / "kernel").glob("*.yaml"))

    def plan(self, config: RunConfig) -> Plan:
        """Check everything that can be known without weights. Raises UserError."""
        config.check()
        tracking = self._once(("tracking", repr(config.tracking)), lambda: tracker.check(config.tracking))
        named = (repr(config.model), config.dtype)
        model = self._once(("model", *named), lambda: resolve_model(config.model, config.dtype))
        kernel = choose("kernel", config.kernel.name, self._kernels)
        given = (*named, repr(config.attn), config.masks, config.context)
        sizes = {"masks": config.masks, "context": config.context, "model": model}
        attention = self._once(("attention", *given), lambda: chosen(config.attn, **sizes))
        draws = (config.draws or DRAWS) if attention.random else 1
        cell = Cell(model, attention, kernel, config.context, config.seed, draws, config.data_seed)
        # with random weights nothing but speed is asked for, and a speed is compared within one run
        wanted = config.references or ("compute" if model.embedded or model.random else "read")
        placed = ("device", config.device, model.device_map)
        device = self._once(placed, lambda: device_of(config.device, model.device_map, here=self.here))
        if self.here and not attention.native:
            refuse_kernel(kernel, attention, model, device)
        tasks = self._once(("tasks", repr(config.task), device), lambda: _tasks(config.task, device))
        if not tasks:
            raise UserError("No task is chosen: set task=retrieval.")
        for planned in tasks:
            refuse_draws(planned.task, config.samples, draws)
            refuse_model(planned.task, model)
            refuse_length(cell, planned.task)
            if self.here:
                refuse_ranks(planned.task, model)
        results = self._once(("results", config.results), lambda: (writable if self.here else store)(config.results))
        sentence = None
        batches = [t.task.amount(t.options, cell, config.samples, config.batch)[1] for t in tasks if t.task.needs_model]
        if self.here and batches:
            # exact ALiBi keeps all keys: the reference, and what a timing stands beside
            keeps_all = wanted == "compute" or any(t.task.rows_are == "repeats" for t in tasks)
            # stock and its reference by turns: the larger of the two
            method = attention.name if attention.native else kernel
            how = {"batch": max(batches), "keeps_all": keeps_all}
            size = (*given, method, *how.values(), config.draws, *placed, cell.cell_id * attention.evict)
            sentence = self._once(("memory", *size), lambda: memory_sentence(config, cell, method, device, **how))
        for planned in tasks:
            seen = (id(planned), *named, attention, kernel, config.context)
            self._once(("check", *seen), lambda p=planned: self._check(p, cell, named))
        beside = {}
        if wanted != "none":
            cost = (*named, attention, config.context)
            beside = self._once(("references", *cost), lambda: references(attention, model, config.context))
            beside = {"exact": EXACT, **beside}
        cells = {role: cell.with_attention(reference) for role, reference in beside.items()}
        return Plan(
            cell=cell,
            references={role: found for role, found in cells.items() if found.cell_id != cell.cell_id},
            compute_references=wanted == "compute",
            tasks=tasks,
            samples=config.samples,
            batch=config.batch,
            device=device,
            results=results,
            memory=sentence,
            tracking=tracking,
            lease=config.lease,
        )

    def _check(self, planned: PlannedTask, cell: Cell, named: Hashable) -> None:
        if named in self._absent:
            raise self._absent[named]
        try:
            planned.task.check(planned.options, cell)
        except CannotLoad as error:
            self._absent[named] = error
            raise

    def _once(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """What `make` returns or the UserError it raises, made at the first call with this key."""
        if key not in self._known:
            try:
                self._known[key] = (make(), None)
            except UserError as error:
                self._known[key] = (None, error)
        found, error = self._known[key]
        if error is not None:
            raise UserError(str(error))
        return found


def _tasks(chosen: dict[str, dict | None], device: torch.device) -> list[PlannedTask]:
    """What the chosen names stand for, each task once."""
    found = {}
    machine = environment.machine(device)
    for name, given in chosen.items():
        family = family_of(name)
        for planned in family.tasks(_options(name, family.options, {} if given is None else given)):
            if planned.task.rows_are == "repeats":
                planned = replace(planned, machine=machine)
            found.setdefault((planned.task.name, str(planned.asked)), planned)
    return list(found.values())


def _options(name: str, kind: type, given: dict) -> Any:
    if not isinstance(given, dict):
        raise UserError(f"task.{name}={given} is no option: write task.{name}.OPTION=VALUE.")
    typed = OmegaConf.structured(kind)
    for key in given:
        if key not in typed:
            raise UserError(f"task.{name} has no option {key!r}.{nearest(key, list(typed))}")
    try:
        return OmegaConf.to_object(OmegaConf.merge(typed, given))
    except OmegaConfBaseException as error:
        key = f"task.{name}.{getattr(error, 'full_key', None) or 'option'}"
        reason = str(error).splitlines()[0].rstrip(".")
        if "is not a ListConfig" in reason:
            raise UserError(f"{key} is a list: write {key}=[...].") from None
        raise UserError(f"{key}: {reason}.") from None
