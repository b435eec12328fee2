"""Run the tasks of a cell against the store: nothing already computed is lost, every end is an outcome."""

import signal
import traceback
from collections.abc import Callable
from pathlib import Path

import torch

from harness import environment
from harness.cell import Cell
from harness.models.load import LoadedModel
from harness.plan import PlannedTask
from harness.progress import Progress
from harness.store import TaskStore, new_attempt, write_atomic
from harness.tasks.base import TaskContext, options_dict


class StopRequest:
    """Set by SIGTERM, SIGUSR1 or Ctrl-C; looked at between batches, so that a sample is written whole or not at all."""

    SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)

    def __init__(self):
        self.requested = False

    def __enter__(self) -> "StopRequest":
        self._before = {s: signal.signal(s, self._ask) for s in self.SIGNALS}
        return self

    def __exit__(self, *_) -> None:
        for s, handler in self._before.items():
            signal.signal(s, handler)

    def _ask(self, *_) -> None:
        self.requested = True


def run_task(
    cell: Cell,
    planned: PlannedTask,
    *,
    samples: int,
    batch: int,
    results: Path,
    device: torch.device,
    model: Callable[[], LoadedModel],
    stop: StopRequest,
    progress: Progress,
) -> str:
    """Bring one task of a cell to `samples` rows. Returns its status: ok, unsupported, oom, error or stopped."""
    task, options = planned.task, planned.options
    task_id = cell.task_id(task.name, options_dict(options))
    store = TaskStore(results, cell.cell_id, task.name, task_id)
    finished, rows = store.finished(), store.rows()
    if finished and (finished["status"] == "unsupported" or finished["samples"] >= samples):
        return finished["status"]
    write_atomic(store.cell_folder / "cell.json", describe_cell(cell))
    attempt, part = new_attempt(), None
    about = {"task": task.name, "task_id": task_id, "options": options_dict(options), "rows_are": task.rows_are}
    about["environment"] = environment.describe(device)
    try:
        done = frozenset(k for k in rows if k < samples)
        context = TaskContext(cell, samples, batch, done, model, str(results / "data"))
        part = store.open_part(attempt)
        progress.start(f"{cell.attention.label} · {task.name}", samples, len(done))
        if len(done) < samples:
            for written in task.run(options, context):
                part.write(written)
                progress.advance(len(written))
                if stop.requested:
                    return "stopped"
        part.close()
        rows = store.rows()
        metrics = task.metrics(options, list(rows.values()), clustered=cell.draws > 1)
        named = {f"{task.name}/{name}": metric.as_dict() for name, metric in metrics.items()}
        store.finish({**about, "status": "ok", "samples": len(rows), "metrics": named})
        return "ok"
    except Exception as error:  # an outcome of this task: the other tasks still run
        status = outcome_of(error)
        record = {**about, "status": status, "error": type(error).__name__, "message": str(error)[:2000]}
        record["traceback"] = traceback.format_exc(limit=-12)
        if status == "unsupported":
            store.finish({**record, "samples": 0, "metrics": {}})
        else:
            store.record_attempt(attempt, record)
        progress.say(
            f"{cell.attention.label} · {task.name}: {status}: {type(error).__name__}: {str(error).splitlines()[:1]}"
        )
        return status
    finally:
        if part is not None:
            part.close()
        progress.stop()


def outcome_of(error: Exception) -> str:
    """oom, unsupported or error."""
    if isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError)):
        return "oom"
    if isinstance(error, RuntimeError) and "can't allocate memory" in str(error):  # torch's allocator on a CPU
        return "oom"
    return "unsupported" if isinstance(error, NotImplementedError) else "error"


def describe_cell(cell: Cell) -> dict:
    """What the store keeps of a cell beside its identity, so that it can be read without this code's objects."""
    return {
        "cell_id": cell.cell_id,
        "identity": cell.identity,
        "model": cell.model.name,
        "source": cell.model.repo and cell.model.source,
        "architecture": cell.model.architecture.as_dict(),
        "label": cell.attention.label,
        "pairs_per_row": cell.cost(),
    }
