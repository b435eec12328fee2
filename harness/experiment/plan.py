"""Turn a composed configuration into cells, tasks and a device, before a model is loaded."""

import functools
from collections.abc import Callable, Hashable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from harness.attentions.registry import choose_attention, references
from harness.cell import DRAWS, Cell
from harness.common import environment
from harness.common.errors import CannotLoad, UserError, choose, nearest
from harness.common.paths import CONF
from harness.experiment.config import RunConfig, attn_config
from harness.experiment.machine import make_results_dir, memory_sentence, resolve_device, results_dir
from harness.experiment.refusals import (
    refuse_draws,
    refuse_kernel,
    refuse_length,
    refuse_model,
    refuse_ranks,
    refuse_secrets,
)
from harness.models.options import ArchitectureConfig, ModelConfig
from harness.models.spec import resolve_model
from harness.tasks.base import PlannedTask
from harness.tasks.registry import task_family
from harness.tracking import tracker
from harness.tracking.options import TrackingConfig


@dataclass(frozen=True)
class Plan:
    """A checked run: one cell, its references and its tasks."""

    cell: Cell
    # by name ("exact", "window", ...), without the main cell; those that are not asked for are shown
    # if the store has them
    references: dict[str, Cell]
    asked_references: tuple[str, ...]
    compute_references: bool
    tasks: list[PlannedTask]
    samples: int
    batch: int
    device: torch.device
    results: Path
    memory: str | None  # sentence about the memory needed; None for tasks without a model
    tracking: TrackingConfig
    lease: float

    @property
    def cells(self) -> list[Cell]:
        """The cells to compute, the main cell first."""
        computed = self.asked_references if self.compute_references else ()
        return [self.cell, *(self.references[name] for name in computed)]


def plan(cfg: DictConfig) -> Plan:
    """Return the plan of a composed configuration, after all checks that need no weights.

    Raises:
        UserError: for a mistake of the user's.
    """
    return Planner().plan(to_run_config(cfg))


def to_run_config(cfg: DictConfig) -> RunConfig:
    """Return the composed configuration as objects.

    Raises:
        UserError: for an unknown option, or an architecture that is only partly given.
    """
    parts: list[tuple[Any, str, type]] = [(cfg, "", RunConfig), (cfg.model, "model.", ModelConfig)]
    parts += [(cfg.attn, "attn.", attn_config()), (cfg.tracking, "tracking.", TrackingConfig)]
    parts.append((cfg.model.architecture or {}, "model.architecture.", ArchitectureConfig))
    for part, name, kind in parts:
        names = [f"{name}{field.name}" for field in fields(kind)]
        for key in map(str, part):  # +key=value adds a key that the schema lacks
            if f"{name}{key}" not in names:
                raise UserError(f"There is no option {name + key!r}.{nearest(name + key, names)}")
    shape = cfg.model.architecture
    if shape is not None:
        absent = [key for key in shape if OmegaConf.is_missing(shape, key)]
        changed = [key for key in shape if key not in absent and shape[key] != getattr(ArchitectureConfig, key, None)]
        if absent and changed:
            raise UserError(
                f"model.architecture lacks {', '.join(absent)}: give all of it, for a model whose config.json cannot "
                "be read, or none."
            )
        if absent:
            cfg = OmegaConf.merge(cfg, {"model": {"architecture": None}})  # type: ignore[assignment]  # of a DictConfig
    config = OmegaConf.to_object(cfg)
    assert isinstance(config, RunConfig)
    return config


class Planner:
    """Plans many configurations, memoising whatever depends on only a few fields.

    on_this_machine: the runs are for this machine, whose devices, memory and results folder are
    checked, too; otherwise nothing is written.
    """

    def __init__(self, *, on_this_machine: bool = True):
        self.on_this_machine = on_this_machine
        self._cache: dict[Hashable, tuple[Any, UserError | None]] = {}
        # models that could not be loaded, tried once
        self._missing: dict[Hashable, CannotLoad] = {}
        self._kernels = sorted(p.stem for p in (CONF / "kernel").glob("*.yaml"))

    def plan(self, config: RunConfig) -> Plan:
        """Return the plan of a configuration, after all checks that need no weights.

        Raises:
            UserError: for a mistake of the user's.
        """
        config.check()
        tracking = self._cached(("tracking", repr(config.tracking)), lambda: tracker.check(config.tracking))
        model_key = (repr(config.model), config.dtype)
        model = self._cached(("model", *model_key), lambda: resolve_model(config.model, config.dtype))
        kernel = choose("kernel", config.kernel.name, self._kernels)
        attention_key = (*model_key, repr(config.attn), config.masks, config.context)
        sizes = {"masks": config.masks, "context": config.context, "model": model}
        attention = self._cached(("attention", *attention_key), lambda: choose_attention(config.attn, **sizes))
        draws = (config.draws or DRAWS) if attention.random else 1
        cell = Cell(model, attention, kernel, config.context, config.seed, draws, config.data_seed)
        # random weights serve only to measure speed, and a speed is compared within one run
        mode, asked = config.chosen_references()
        mode = mode or ("compute" if model.embedded or model.random else "read")
        device_key = ("device", config.device, model.device_map)
        local = self.on_this_machine
        device = self._cached(
            device_key, lambda: resolve_device(config.device, model.device_map, on_this_machine=local)
        )
        if local and not attention.native:
            refuse_kernel(kernel, attention, model, device)
        tasks = self._cached(("tasks", repr(config.task), device), lambda: _tasks(config.task, device))
        if not tasks:
            raise UserError("No task is chosen: set task=retrieval.")
        for planned in tasks:
            refuse_draws(planned.task, config.samples, draws)
            refuse_model(planned.task, model)
            refuse_length(cell, planned.task)
            if local:
                refuse_ranks(planned.task, model)
        find_dir = make_results_dir if local else results_dir
        results = self._cached(("results", config.results), lambda: find_dir(config.results))
        sentence = None
        batches = [t.task.amount(t.options, cell, config.samples, config.batch)[1] for t in tasks if t.task.needs_model]
        if local and batches:
            # exact ALiBi keeps all keys, as a computed reference and inside every timing task
            keeps_all = mode == "compute" or any(t.task.rows_are == "repeats" for t in tasks)
            # stock and its reference run in turn: "stock" estimates the larger of the two
            method = attention.name if attention.native else kernel
            usage = {"batch": max(batches), "keeps_all": keeps_all}
            evicting_cell = cell.cell_id * attention.evict
            memory_key = (*attention_key, method, *usage.values(), config.draws, *device_key, evicting_cell)
            sentence = self._cached(
                ("memory", *memory_key), lambda: memory_sentence(config, cell, method, device, **usage)
            )
        for planned in tasks:
            check_key = (id(planned), *model_key, attention, kernel, config.context)
            self._cached(("check", *check_key), functools.partial(self._check_task, planned, cell, model_key))
        # numbers apart, a cell consists of its model, attention and tasks
        secrets_key = ("secrets", *model_key, attention, *(id(planned) for planned in tasks))
        self._cached(secrets_key, lambda: refuse_secrets((cell.identity, [planned.asked for planned in tasks])))
        attentions = {}
        if mode != "none":
            key = ("references", *model_key, attention, config.context)
            attentions = self._cached(key, lambda: references(attention, model, config.context))
        cells = {name: cell.with_attention(reference) for name, reference in attentions.items()}
        # one cell may stand for several names; then that which is asked for is shown
        by_id = {cell.cell_id: name for name, cell in cells.items()}
        by_id |= {cells[name].cell_id: name for name in reversed(asked) if name in cells}
        by_id.pop(cell.cell_id, None)
        return Plan(
            cell=cell,
            references={name: reference for name, reference in cells.items() if name in by_id.values()},
            asked_references=tuple(name for name in asked if name in by_id.values()),
            compute_references=mode == "compute",
            tasks=tasks,
            samples=config.samples,
            batch=config.batch,
            device=device,
            results=results,
            memory=sentence,
            tracking=tracking,
            lease=config.lease,
        )

    def _check_task(self, planned: PlannedTask, cell: Cell, model_key: Hashable) -> None:
        if model_key in self._missing:
            raise self._missing[model_key]
        try:
            planned.task.check(planned.options, cell)
        except CannotLoad as error:
            self._missing[model_key] = error
            raise

    def _cached(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """The result of `make`, or its UserError, from the first call with this key."""
        if key not in self._cache:
            try:
                self._cache[key] = (make(), None)
            except UserError as error:
                self._cache[key] = (None, error)
        result, mistake = self._cache[key]
        if mistake is not None:
            raise UserError(str(mistake))
        return result


def _tasks(families: dict[str, dict | None], device: torch.device) -> list[PlannedTask]:
    """The tasks of the named families with their options, each task once."""
    tasks: dict[tuple[str, str], PlannedTask] = {}
    machine = environment.machine(device)
    for name, options in families.items():
        family = task_family(name)
        for planned in family.tasks(_task_options(name, family.options, {} if options is None else options)):
            if planned.task.rows_are == "repeats":
                planned = replace(planned, machine=machine)
            tasks.setdefault((planned.task.name, str(planned.asked)), planned)
    return list(tasks.values())


def _task_options(name: str, kind: type, values: dict) -> Any:
    if not isinstance(values, dict):
        raise UserError(f"task.{name}={values} is no option: write task.{name}.OPTION=VALUE.")
    options = OmegaConf.structured(kind)
    for key in values:
        if key not in options:
            raise UserError(f"task.{name} has no option {key!r}.{nearest(key, list(options))}")
    try:
        return OmegaConf.to_object(OmegaConf.merge(options, values))
    except OmegaConfBaseException as error:
        key = f"task.{name}.{getattr(error, 'full_key', None) or 'option'}"
        reason = str(error).splitlines()[0].rstrip(".")
        if "is not a ListConfig" in reason:
            raise UserError(f"{key} is a list: write {key}=[...].") from None
        raise UserError(f"{key}: {reason}.") from None
