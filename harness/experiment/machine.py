"""Requirements of a run, checked before a model is loaded: device, memory and results folder."""

import os
import tempfile
from pathlib import Path

import torch

from harness.cell import DRAWS, Cell
from harness.common.errors import UserError
from harness.common.ranks import local_rank, ranks
from harness.experiment.config import RunConfig
from harness.models import memory


def results_dir(folder: str) -> Path:
    """Return the path of the results folder, which may not exist yet, without creating it.

    Raises:
        UserError: if the name is empty or the folder exists and cannot be read.
    """
    if not folder.strip():
        raise UserError("results must name a folder: set results=FOLDER.")
    path = Path(os.path.expanduser(folder))
    try:
        os.scandir(path).close()
    except FileNotFoundError:
        pass
    except OSError as error:
        raise UserError(f"results={folder} cannot be read: {error.strerror}.") from None
    return path


def make_results_dir(folder: str) -> Path:
    """Create the results folder if it does not exist, and return its path.

    Raises:
        UserError: if the folder cannot be created or written to.
    """
    path = results_dir(folder)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise UserError(f"results={folder} cannot be written to: {error}.") from None
    return path


def memory_sentence(
    config: RunConfig, cell: Cell, kernel: str, device: torch.device, *, batch: int, keeps_all: bool
) -> str:
    """Return a sentence with the memory that a cell and its references will need.

    Args:
        config: the configuration, for context and draws.
        cell: the cell to run.
        kernel: the kernel whose buffers are counted, or "stock".
        device: where the model runs.
        batch: sequences at a time.
        keeps_all: whether some run keeps all keys in its cache, even if the cell evicts.

    Raises:
        UserError: if the device has less memory.
    """
    model = cell.model

    def checked(**size) -> str:
        need = memory.estimate(model.architecture, **size, kernel=kernel)
        return memory.check_memory(need, device, kernel=kernel, spread=model.device_map is not None)

    size = {"itemsize": model.torch_dtype.itemsize, "batch": batch, "tokens": config.context}
    size |= {"masks": cell.attention.masks_drawn, "draws": config.draws or DRAWS}
    if cell.attention.evict and not keeps_all:
        checked(**size, reach=0)  # the masks must fit before they are drawn
        weights = (layer for draw in range(cell.draws) for layer in cell.weights(draw) or ())
        size["reach"] = cell.attention.sinks + max(layer.span for layer in weights if layer.span is not None)
    return checked(**size)


def resolve_device(name: str, device_map: str | None, *, on_this_machine: bool) -> torch.device:
    """Return the device that the option `device` names.

    Args:
        name: value of the option: auto, cpu, cuda or cuda:N.
        device_map: value of model.device_map.
        on_this_machine: whether this machine must have the device.

    Raises:
        UserError: if there is no such device, or device_map cannot be combined with it.
    """
    if on_this_machine and device_map is not None and not (torch.cuda.is_available() and name in ("auto", "cuda")):
        raise UserError(
            f"model.device_map={device_map} spreads the model over CUDA devices: it needs device=auto or cuda and a "
            f"machine that has some (here are {torch.cuda.device_count()}). Leave it out for one device."
        )
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    # each rank of a machine has a device of its own
    if on_this_machine and name == "cuda" and ranks() > 1:
        name = f"cuda:{local_rank()}"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"device={name!r} is not a device: use auto, cpu, cuda or cuda:0.") from None
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"device={name} is not supported: use auto, cpu, cuda or cuda:0.")
    if on_this_machine and device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"device={name}: this machine has {torch.cuda.device_count()} CUDA devices. Use device=cpu.")
    return device
