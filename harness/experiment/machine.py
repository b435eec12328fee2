"""What a run needs of a machine: a device, enough memory, a folder to write to; checked before a
model is loaded."""

import os
import tempfile
from pathlib import Path

import torch

from harness.cell import DRAWS, Cell
from harness.common.errors import UserError
from harness.common.ranks import local_rank, ranks
from harness.experiment.config import RunConfig
from harness.models import memory


def store(folder: str) -> Path:
    """The results folder, which need not be there; UserError if it could not be read. Nothing is
    made."""
    if not folder.strip():
        raise UserError("results must name a folder: set results=FOLDER.")
    path = Path(folder).expanduser()
    try:
        os.scandir(path).close()
    except FileNotFoundError:
        pass
    except OSError as error:
        raise UserError(f"results={folder} cannot be read: {error.strerror}.") from None
    return path


def writable(folder: str) -> Path:
    """The results folder, made if need be; UserError if nothing can be written there."""
    path = store(folder)
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
    """How much memory the runs of a cell and its references will need, as a sentence; UserError if
    it is not there. batch: sequences at a time. keeps_all: something runs whose cache drops no key,
    whatever the cell's own does."""
    model = cell.model

    def checked(**size) -> str:
        need = memory.estimate(model.architecture, **size, kernel=kernel)
        return memory.check(need, device, kernel=kernel, spread=model.device_map is not None)

    size = {"itemsize": model.torch_dtype.itemsize, "batch": batch, "tokens": config.context}
    size |= {"masks": cell.attention.masks_drawn, "draws": config.draws or DRAWS}
    if cell.attention.evict and not keeps_all:
        checked(**size, reach=0)  # the masks, before they are drawn
        spans = (weights.span for draw in range(cell.draws) for weights in cell.weights(draw))
        size["reach"] = cell.attention.sinks + max(spans)
    return checked(**size)


def device_of(wanted: str, device_map: str | None, *, here: bool) -> torch.device:
    """The device that an option names. here: it must be one of this machine. Raises UserError."""
    if here and device_map is not None and not (torch.cuda.is_available() and wanted in ("auto", "cuda")):
        raise UserError(
            f"model.device_map={device_map} spreads the model over CUDA devices: it needs device=auto or cuda and a "
            f"machine that has some (here are {torch.cuda.device_count()}). Leave it out for one device."
        )
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    if here and wanted == "cuda" and ranks() > 1:  # each rank of a machine has a device of its own
        wanted = f"cuda:{local_rank()}"
    try:
        device = torch.device(wanted)
    except RuntimeError:
        raise UserError(f"device={wanted!r} is not a device: use auto, cpu, cuda or cuda:0.") from None
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"device={wanted} is not supported: use auto, cpu, cuda or cuda:0.")
    if here and device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"device={wanted}: this machine has {torch.cuda.device_count()} CUDA devices. Use device=cpu.")
    return device
