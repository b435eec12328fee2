"""Run the tasks of a cell against the store: nothing already computed is lost, every end is an
outcome."""

import contextlib
import itertools
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from harness.cell import Cell
from harness.common import environment
from harness.common.errors import UserError
from harness.common.progress import Progress
from harness.common.ranks import Team
from harness.common.secrets import without_secrets
from harness.common.signals import StopRequest
from harness.experiment.plan import PlannedTask
from harness.models.load import LoadedModel
from harness.results.lease import Lease
from harness.results.schema import CellDescription, CellIdentity, Environment, Packages, TaskOutcome
from harness.results.store import Part, TaskStore, new_attempt, write_atomic
from harness.tasks.base import TaskContext
from kernels.auto import CHOSEN

MANY = 10_000  # samples whose data take so long that silence would be taken for a hang
VISIBLE = 30.0  # seconds for the rows of other ranks to be seen


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
    team: Team,
    lease: float = 0.0,
) -> str:
    """Bring one task of a cell to as many rows as `samples` asks of it, or as there are; with other
    ranks, which `share_task` meanwhile. lease: see harness.results.lease. Returns its status: ok,
    unsupported, oom, error or stopped. Raises UserError, once it is recorded as an error, for what
    the user must change."""
    task, options = planned.task, planned.options
    identity = planned.identity(cell)
    samples, batch = task.amount(options, cell, samples, batch)
    task_id = cell.task_id(task.name, identity)
    store = TaskStore(results, cell.cell_id, task.name, task_id)
    if status := _enough(store, samples):
        return status
    attempt, part = new_attempt(), None
    held = Lease(store.folder, attempt, lease)
    made = Environment.read(environment.describe(device))
    if team.size > 1:
        made = made.but(ranks=team.size)
    about = TaskOutcome(
        schema=TaskOutcome.VERSION,
        task=task.name,
        task_id=task_id,
        attempt=attempt,
        options=identity,
        rows_are=task.rows_are,
        environment=made,
    )
    label = f"{cell.attention.label} · {task.name}"
    try:
        if lease:
            held.take(lambda: stop.requested or _enough(store, samples) is not None)
            if status := _enough(store, samples) or ("stopped" if stop.requested else None):
                return status
        write_atomic(store.cell_folder / "cell.json", describe_cell(cell).as_json())
        store.try_again(attempt, about.as_json())
        lines = store.rows()
        if lines and (earlier := _earlier_packages(store.finished(), made.packages)):
            made = made.but(earlier_packages=earlier)
            about = about.but(environment=made)
        done = frozenset(k for k in lines if k < samples)
        part = store.open_part(attempt)
        # before the clock of the samples starts
        if samples >= MANY and len(done) < samples:
            progress.say(f"{label}: making or reading up to {samples:,} samples in {results / 'data'}")
        data = planned.prepare(cell, samples, results) if len(done) < samples else None
        team.decide(None)
        context = TaskContext(cell, samples, batch, done, model, data, (team.rank, team.size))
        progress.start(label, _shared(context), len(done), rows_are=task.rows_are)
        CHOSEN.clear()
        if len(done) < samples:
            if not _write_rows(planned, context, part, stop, progress):
                return "stopped"
            if task.needs_model and (weights := model().weights):
                made = made.but(weights=weights.as_dict())
        part.close()
        if CHOSEN:
            made = made.but(auto_kernel=sorted(CHOSEN))
        about = about.but(environment=made)
        others = team.reports(lambda: stop.requested)
        progress.written += sum(other["rows"] for other in others)
        for status in ("error", "oom", "unsupported", "stopped"):
            for other in (one for one in others if one["status"] == status):
                if other["failure"]:
                    failure = {**other["failure"], "message": f"rank {other['rank']}: {other['failure']['message']}"}
                    _record(store, about.but(**failure), label, progress)
                return status
        expected = len(done) + progress.fresh + sum(other["rows"] for other in others)
        lines = _visible(store, expected) if others else store.rows()
        # rows beyond the first gap are of a larger run that was stopped: they wait until it goes on
        count = next(k for k in itertools.count() if k not in lines)
        metrics = task.metrics(options, [task.row(lines[k]) for k in range(count)], clustered=cell.draws > 1)
        named = {f"{task.name}/{name}": metric for name, metric in metrics.items()}
        done_with = about.but(status="ok", samples=count, exhausted=count < samples, metrics=named)
        store.finish(done_with.as_json())
        return "ok"
    except Exception as error:  # an outcome of this task: the other tasks still run
        failure = failure_of(error)
        _record(store, about.but(**failure), label, progress, said=isinstance(error, UserError))
        if isinstance(error, UserError):  # which the command line says by itself
            raise
        return failure["status"]
    finally:
        if part is not None:
            with contextlib.suppress(OSError):
                part.close()
        held.release()
        progress.stop()


def share_task(
    cell: Cell,
    planned: PlannedTask,
    *,
    samples: int,
    batch: int,
    results: Path,
    model: Callable[[], LoadedModel],
    stop: StopRequest,
    progress: Progress,
    team: Team,
    **_: object,
) -> str:
    """What another rank than the first does of a task: its share of the rows, in a part file of its
    own, and a report to rank 0, which records and finishes. Returns the status, as `run_task`
    does."""
    if (decided := team.decision(lambda: stop.requested)) is not None:
        return decided
    task, options = planned.task, planned.options
    samples, batch = task.amount(options, cell, samples, batch)
    store = TaskStore(results, cell.cell_id, task.name, cell.task_id(task.name, planned.identity(cell)))
    part, before = store.open_part(new_attempt()), progress.written
    status, failure = "ok", None
    try:
        done = frozenset(k for k in store.rows() if k < samples)
        if len(done) < samples:
            data = planned.prepare(cell, samples, results)
            context = TaskContext(cell, samples, batch, done, model, data, (team.rank, team.size))
            progress.start("", _shared(context), len(done))
            status = "ok" if _write_rows(planned, context, part, stop, progress) else "stopped"
        part.close()
    except Exception as error:
        failure = failure_of(error)
        status = failure["status"]
    finally:
        with contextlib.suppress(OSError):
            part.close()
    team.report(status=status, rows=progress.written - before, failure=failure)
    return status


def _write_rows(planned: PlannedTask, context: TaskContext, part: Part, stop: StopRequest, progress: Progress) -> bool:
    """Compute what is missing of this process's share. False if it was stopped."""
    for written in planned.task.run(planned.options, context):
        part.write([row.as_json() for row in written])
        progress.advance(len(written))
        if stop.requested:
            return False
    return True


def _shared(context: TaskContext) -> int:
    """How many rows there are when this process has done its share and no other has done
    anything."""
    return len(context.done) + sum(len(keys) for _, keys in context.batches())


def _visible(store: TaskStore, expected: int) -> dict[int, dict[str, Any]]:
    """The rows, once those of all ranks are seen: a file system over a network may take a moment.
    UserError if they never are."""
    until = time.monotonic() + VISIBLE
    while len(rows := store.rows()) < expected:
        if time.monotonic() > until:
            raise UserError(
                f"The ranks have written {expected} rows, and {store.folder} holds {len(rows)}: all ranks need one "
                "results folder that all of them see."
            )
        time.sleep(0.1)
    return rows


def _record(store: TaskStore, outcome: TaskOutcome, label: str, progress: Progress, *, said: bool = False) -> None:
    """Keep the outcome of a task that has failed, and say it unless somebody else does."""
    if not said:
        unsupported = outcome.error == "NotImplementedError"
        told = outcome.message if unsupported else f"{outcome.error}: {outcome.message}"
        progress.say(f"{label}: {outcome.status}: {told}")
    try:
        if outcome.status == "unsupported":
            store.finish(outcome.but(samples=0, exhausted=True, metrics={}).as_json())
        else:
            store.record_attempt(outcome.attempt or new_attempt(), outcome.as_json())
    except OSError as full:  # a full disk: what is on it stays, and the other tasks are still tried
        progress.say(f"The outcome could not be recorded: {full}")


def failure_of(error: Exception) -> dict[str, str]:
    """Of an outcome what is recorded of an exception, while it is handled."""
    about = {"status": outcome_of(error), "error": type(error).__name__}
    about["message"] = without_secrets(str(error))[:2000]
    about["traceback"] = without_secrets(traceback.format_exc(limit=-12))
    return about


def _enough(store: TaskStore, samples: int) -> str | None:
    """The status of a task that is finished with so many samples, or as many as there are."""
    finished = TaskOutcome.read(store.finished() or {})
    return finished.status if finished and (finished.samples >= samples or finished.exhausted) else None


def _earlier_packages(finished: dict[str, Any] | None, packages: Packages) -> list[Packages]:
    """The other versions under which rows that are there were computed, as far as the record
    says."""
    before = TaskOutcome.read(finished or {}).environment
    return [one for one in (before.packages, *before.earlier_packages) if one and one != packages]


def outcome_of(error: Exception) -> str:
    """oom, unsupported or error."""
    if isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError)):
        return "oom"
    if isinstance(error, RuntimeError) and "can't allocate memory" in str(error):  # torch's allocator on a CPU
        return "oom"
    return "unsupported" if isinstance(error, NotImplementedError) else "error"


def describe_cell(cell: Cell) -> CellDescription:
    """What the store keeps of a cell beside its identity, so that it can be read without this
    code's objects."""
    return CellDescription(
        schema=CellDescription.VERSION,
        cell_id=cell.cell_id,
        identity=CellIdentity.read(cell.identity),
        model=cell.model.name,
        source=cell.model.repo and cell.model.source,
        architecture=cell.model.architecture.as_dict(),
        label=cell.attention.label,
        pairs_per_row=cell.cost(),
        **cell.attention.facts(cell.model),
    )
