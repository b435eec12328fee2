"""From a composed configuration to what will be done: cells, tasks, device, every mistake answered before a model is
loaded."""

import math
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from harness import environment
from harness.cell import ATTENTIONS, Attention, Cell, matched_window
from harness.config import CONF, AttnConfig, ModelConfig, RunConfig, TrackingConfig
from harness.errors import UserError, choose, nearest
from harness.models import memory
from harness.models.spec import ModelSpec, resolve_model
from harness.tasks.base import PlannedTask, Task
from harness.tasks.registry import family_of
from harness.tracking import tracker
from kernels.cost import MATCHES
from kernels.masks import SAMPLERS
from kernels.union import UNION_WEIGHTS

REFERENCES = ("compute", "read", "none")
DRAWS = 8


@dataclass(frozen=True)
class Plan:
    cell: Cell
    references: dict[str, Cell]  # role ("exact", "window fused", "window passes") -> cell, the main cell not among them
    compute_references: bool
    tasks: list[PlannedTask]
    samples: int
    batch: int
    device: torch.device
    results: Path
    memory: str | None  # the sentence that says how much will be needed
    tracking: TrackingConfig

    @property
    def cells(self) -> list[Cell]:
        """What is to be computed, the main cell first."""
        return [self.cell, *(self.references.values() if self.compute_references else ())]


def plan(cfg: DictConfig) -> Plan:
    """Check everything that can be known without weights. Raises UserError."""
    typed = (cfg, "", RunConfig), (cfg.model, "model.", ModelConfig), (cfg.attn, "attn.", AttnConfig)
    for part, name, kind in (*typed, (cfg.tracking, "tracking.", TrackingConfig)):
        known = [f"{name}{field}" for field in kind.__dataclass_fields__]
        for key in part:  # +key=value adds what Hydra does not know
            if f"{name}{key}" not in known:
                raise UserError(f"There is no option {name + key!r}.{nearest(name + key, known)}")
    config: RunConfig = OmegaConf.to_object(cfg)
    for name, least in (("masks", 1), ("context", 2), ("samples", 1), ("batch", 1), ("seed", 0), ("data_seed", 0)):
        if not least <= getattr(config, name) < 2**63:
            raise UserError(f"{name} must be at least {least} and below 2**63, not {getattr(config, name)}.")
    if config.draws is not None and config.draws < 1:
        raise UserError(f"draws must be at least 1, not {config.draws}.")
    tracking = tracker.check(config.tracking)
    model = resolve_model(config.model, config.dtype)
    kernel = choose("kernel", config.kernel.name, sorted(p.stem for p in (CONF / "kernel").glob("*.yaml")))
    attention = _attention(config, model)
    draws = (config.draws or DRAWS) if attention.random else 1
    cell = Cell(model, attention, kernel, config.context, config.seed, draws, config.data_seed)
    device = _device(config.device, model.device_map)
    # with random weights nothing but speed is asked for, and a speed is compared within one run
    own = "compute" if model.embedded or model.random else "read"
    wanted = choose("references", config.references or own, REFERENCES)
    tasks = _tasks(config.task, device)
    if not tasks:
        raise UserError("No task is chosen: set task=retrieval.")
    for planned in tasks:
        if planned.task.rows_are == "samples" and draws > config.samples:
            raise UserError(
                f"samples={config.samples} cannot be spread over draws={draws}: ask for more samples or fewer draws."
            )
        if model.random and planned.task.needs_trained_weights:
            raise UserError(
                f"task={planned.task.name} is refused: the model has random weights, of which an accuracy says "
                "nothing. Use model.weights=checkpoint, or task=throughput."
            )
        if model.reads == "prompts" and planned.task.natural_text:
            raise UserError(
                f"task={planned.task.name} is refused: it reads natural text, and model={model.name} knows no words "
                "but those of its own prompts. Use model=tiny-books, or another language model."
            )
        _stock_length(cell, planned.task)
    results = _writable(config.results)
    # stock and its reference by turns: the larger of the two
    method = "stock" if attention.name == "stock" else kernel
    batches = [t.task.amount(t.options, cell, config.samples, config.batch)[1] for t in tasks if t.task.needs_model]
    # exact ALiBi keeps all keys: the reference, and what a timing stands beside
    keeps_all = wanted == "compute" or any(t.task.rows_are == "repeats" for t in tasks)
    sentence = _memory(config, cell, method, device, max(batches), keeps_all) if batches else None
    for planned in tasks:
        planned.task.check(planned.options, cell)
    return Plan(
        cell=cell,
        references=_references(config, cell) if wanted != "none" else {},
        compute_references=wanted == "compute",
        tasks=tasks,
        samples=config.samples,
        batch=config.batch,
        device=device,
        results=results,
        memory=sentence,
        tracking=tracking,
    )


def _writable(folder: str) -> Path:
    """The results folder, made if need be; UserError if nothing can be written there."""
    if not folder.strip():
        raise UserError("results must name a folder: set results=FOLDER.")
    path = Path(folder).expanduser()
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise UserError(f"results={folder} cannot be written to: {error}.") from None
    return path


def _stock_length(cell: Cell, task: Task) -> None:
    """UserError if the checkpoint's own attention cannot see the prompt and what the task generates after it."""
    limit = cell.model.architecture.positions
    if cell.attention.name == "stock" and limit and cell.context + task.generates > limit:
        raise UserError(
            f"attn=stock fails beyond this checkpoint's max_seq_len of {limit} tokens: task={task.name} needs "
            f"{cell.context + task.generates} (context={cell.context}, and what it generates). Use attn=alibi, which "
            "has no such bound, or a smaller context."
        )


def _memory(config: RunConfig, cell: Cell, kernel: str, device: torch.device, batch: int, keeps_all: bool) -> str:
    model = cell.model

    def checked(**size) -> str:
        need = memory.estimate(model.architecture, **size, kernel=kernel)
        return memory.check(need, device, kernel=kernel, spread=model.device_map is not None)

    size = {"itemsize": model.torch_dtype.itemsize, "batch": batch, "tokens": config.context}
    size |= {"masks": config.masks if config.attn.name == "plsh" else 1, "draws": config.draws or DRAWS}
    if cell.attention.evict and not keeps_all:
        checked(**size, reach=0)  # the masks, before they are drawn
        spans = (weights.span for draw in range(cell.draws) for weights in cell.weights(draw))
        size["reach"] = cell.attention.sinks + max(spans)
    return checked(**size)


def _attention(config: RunConfig, model: ModelSpec) -> Attention:
    attn = config.attn
    name = choose("attn", attn.name, ATTENTIONS)
    sampler = choose("attn.sampler", attn.sampler or "gamma", SAMPLERS)
    choose("attn.weights", attn.weights or "count", UNION_WEIGHTS)
    choose("attn.match", attn.match or "fused", MATCHES)
    if not 0 <= attn.sinks <= config.context:
        raise UserError(f"attn.sinks must be from 0 to context={config.context}, not {attn.sinks}.")
    if name in ("alibi", "stock"):
        if attn.evict:
            raise UserError(f"attn.evict=true drops keys that nothing reaches any more, and attn={name} reaches all.")
        return Attention(name)
    kept = {"sinks": attn.sinks, "evict": attn.evict}
    if name == "plsh":
        weights = attn.weights or "count"
        if weights == "rb" and sampler == "fixed":
            raise UserError("attn.weights=rb needs random masks: use attn.sampler=gamma or systematic.")
        masks = 1 if sampler == "fixed" else config.masks  # all its masks are one and the same
        return Attention("plsh", masks=masks, sampler=sampler, weights=weights, **kept)
    if attn.cutoff is not None:
        if not 0 <= attn.cutoff < math.inf:
            raise UserError(f"attn.cutoff must be a number of at least 0, not {attn.cutoff}; attn=alibi has no cutoff.")
        return Attention("window", cutoff=attn.cutoff, **kept)
    cost = {"masks": config.masks, "sampler": sampler, "context": config.context, "match": attn.match or "fused"}
    return replace(matched_window(model, **cost, sinks=attn.sinks), evict=attn.evict)


def _references(config: RunConfig, cell: Cell) -> dict[str, Cell]:
    """What stands beside the cell in every table: exact ALiBi, and for PLSH both windows of equal cost."""
    found = {"exact": cell.with_attention(Attention("alibi"))}
    if cell.attention.name == "plsh":
        for match in MATCHES:
            cost = {"masks": config.masks, "sampler": cell.attention.sampler, "context": cell.context, "match": match}
            window = matched_window(cell.model, **cost, sinks=cell.attention.sinks)
            found[f"window {match}"] = cell.with_attention(replace(window, evict=cell.attention.evict))
    return {role: reference for role, reference in found.items() if reference.cell_id != cell.cell_id}


def _tasks(chosen: dict[str, dict | None], device: torch.device) -> list[PlannedTask]:
    """What the chosen names stand for, each task once."""
    found = {}
    machine = environment.machine(device)
    for name, given in chosen.items():
        family = family_of(name)
        for planned in family.tasks(_options(name, family.options, given or {})):
            if planned.task.rows_are == "repeats":
                planned = replace(planned, machine=machine)
            found.setdefault((planned.task.name, str(planned.identity)), planned)
    return list(found.values())


def _options(name: str, kind: type, given: dict) -> Any:
    typed = OmegaConf.structured(kind)
    for key in given:
        if key not in typed:
            raise UserError(f"task.{name} has no option {key!r}.{nearest(key, list(typed))}")
    try:
        return OmegaConf.to_object(OmegaConf.merge(typed, given))
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None) or "option"
        raise UserError(f"task.{name}.{key}: {str(error).splitlines()[0]}.") from None


def _device(wanted: str, device_map: str | None) -> torch.device:
    if device_map is not None and not (torch.cuda.is_available() and wanted in ("auto", "cuda")):
        raise UserError(
            f"model.device_map={device_map} spreads the model over CUDA devices: it needs device=auto or cuda and a "
            f"machine that has some (here are {torch.cuda.device_count()}). Leave it out for one device."
        )
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(wanted)
    except RuntimeError:
        raise UserError(f"device={wanted!r} is not a device: use auto, cpu, cuda or cuda:0.") from None
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"device={wanted} is not supported: use auto, cpu, cuda or cuda:0.")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"device={wanted}: this machine has {torch.cuda.device_count()} CUDA devices. Use device=cpu.")
    return device
