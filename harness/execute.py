"""Run the tasks of a cell against the store: nothing already computed is lost, every end is an outcome."""

import contextlib
import itertools
import traceback
from collections.abc import Callable
from pathlib import Path

import torch

from harness import environment
from harness.cell import Cell
from harness.errors import UserError
from harness.lease import Lease
from harness.models.load import LoadedModel
from harness.plan import PlannedTask
from harness.progress import Progress
from harness.secrets import without_secrets
from harness.signals import StopRequest
from harness.store import TaskStore, new_attempt, write_atomic
from harness.tasks.base import TaskContext
from kernels.auto import CHOSEN


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
    lease: float = 0.0,
) -> str:
    """Bring one task of a cell to as many rows as `samples` asks of it, or as there are. lease: see harness.lease.
    Returns its status: ok, unsupported, oom, error or stopped. Raises UserError, once it is recorded as an error, for
    what the user must change."""
    task, options = planned.task, planned.options
    identity = planned.identity(cell)
    samples, batch = task.amount(options, cell, samples, batch)
    task_id = cell.task_id(task.name, identity)
    store = TaskStore(results, cell.cell_id, task.name, task_id)
    if status := _enough(store, samples):
        return status
    attempt, part = new_attempt(), None
    held = Lease(store.folder, attempt, lease)
    about = {"task": task.name, "task_id": task_id, "attempt": attempt, "options": identity, "rows_are": task.rows_are}
    about["environment"] = environment.describe(device)
    try:
        if lease:
            held.take(lambda: stop.requested or _enough(store, samples) is not None)
            if status := _enough(store, samples) or ("stopped" if stop.requested else None):
                return status
        write_atomic(store.cell_folder / "cell.json", describe_cell(cell))
        store.try_again(attempt, about)
        rows = store.rows()
        if rows and (earlier := _earlier_packages(store.finished(), about["environment"]["packages"])):
            about["environment"]["earlier_packages"] = earlier
        done = frozenset(k for k in rows if k < samples)
        part = store.open_part(attempt)
        # before the clock of the samples starts
        data = planned.prepare(cell, samples, results) if len(done) < samples else None
        progress.start(f"{cell.attention.label} · {task.name}", samples, len(done), rows_are=task.rows_are)
        CHOSEN.clear()
        if len(done) < samples:
            for written in task.run(options, TaskContext(cell, samples, batch, done, model, data)):
                part.write(written)
                progress.advance(len(written))
                if stop.requested:
                    return "stopped"
            if task.needs_model and (weights := model().weights):
                about["environment"]["weights"] = weights.as_dict()
        part.close()
        if CHOSEN:
            about["environment"]["auto_kernel"] = sorted(CHOSEN)
        rows = store.rows()
        # rows beyond the first gap are of a larger run that was stopped: they wait until it goes on
        count = next(k for k in itertools.count() if k not in rows)
        metrics = task.metrics(options, [rows[k] for k in range(count)], clustered=cell.draws > 1)
        named = {f"{task.name}/{name}": metric.as_dict() for name, metric in metrics.items()}
        store.finish({**about, "status": "ok", "samples": count, "exhausted": count < samples, "metrics": named})
        return "ok"
    except Exception as error:  # an outcome of this task: the other tasks still run
        status = outcome_of(error)
        message = without_secrets(str(error))
        record = {**about, "status": status, "error": type(error).__name__, "message": message[:2000]}
        record["traceback"] = without_secrets(traceback.format_exc(limit=-12))
        if not isinstance(error, UserError):  # which the command line says by itself
            told = message if isinstance(error, NotImplementedError) else f"{type(error).__name__}: {message}"
            progress.say(f"{cell.attention.label} · {task.name}: {status}: {told}")
        try:
            if status == "unsupported":
                store.finish({**record, "samples": 0, "exhausted": True, "metrics": {}})
            else:
                store.record_attempt(attempt, record)
        except OSError as full:  # a full disk: what is on it stays, and the other tasks are still tried
            progress.say(f"The outcome could not be recorded: {full}")
        if isinstance(error, UserError):
            raise
        return status
    finally:
        if part is not None:
            with contextlib.suppress(OSError):
                part.close()
        held.release()
        progress.stop()


def _enough(store: TaskStore, samples: int) -> str | None:
    """The status of a task that is finished with so many samples, or as many as there are."""
    finished = store.finished()
    return finished["status"] if finished and (finished["samples"] >= samples or finished.get("exhausted")) else None


def _earlier_packages(finished: dict | None, packages: dict) -> list[dict]:
    """The other versions under which rows that are there were computed, as far as the record says."""
    environment = (finished or {}).get("environment", {})
    known = [environment.get("packages"), *environment.get("earlier_packages", ())]
    return [one for one in known if one and one != packages]


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
