"""Run the tasks of a cell against the store: rows are never lost, every end is an outcome."""

import contextlib
import errno
import itertools
import re
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from harness.analysis.reader import ADVICE
from harness.cell import Cell
from harness.common import environment
from harness.common.errors import UserError
from harness.common.files import write_atomic
from harness.common.progress import Progress
from harness.common.ranks import Team
from harness.common.secrets import without_secrets
from harness.common.signals import Stopped, StopRequest
from harness.experiment.plan import PlannedTask
from harness.models.load import LoadedModel
from harness.models.selfcheck import check_weights
from harness.results.aside import place_aside, set_aside
from harness.results.lease import Lease
from harness.results.rows import checksums
from harness.results.schema import CellDescription, CellIdentity, Environment, Packages, TaskOutcome
from harness.results.store import TROUBLES, Part, State, TaskStore, new_attempt
from harness.tasks.base import TaskContext
from kernels.auto import CHOSEN

CHECKED_KERNELS = ("auto", "sdpa", "triton")  # exact is the oracle, and flex compiles for seconds
MIN_ANNOUNCED_SAMPLES = 10_000  # making their data takes so long that the run would seem to hang
ROWS_TIMEOUT = 30.0  # seconds until rows of other ranks must be visible


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
    """Compute the missing rows of one task of a cell, and record the outcome.

    Other ranks call `share_task` at the same time.

    Args:
        cell: the cell.
        planned: the task and its options.
        samples: rows wanted; a task may have fewer.
        batch: samples computed at a time.
        results: results folder.
        device: device recorded in the environment.
        model: loads the model; called only if rows are missing.
        stop: checked after each batch.
        progress: where progress is reported.
        team: the ranks that share the rows.
        lease: seconds of the lease, 0 for none (`harness.results.lease`).

    Returns:
        The status: ok, unsupported, oom, error or stopped; conflict, damaged or refused, after it was
        said why, where the store holds what cannot be believed.

    Raises:
        UserError: for a mistake of the user's, after it was recorded as an error.
    """
    task, options = planned.task, planned.options
    identity = planned.identity(cell)
    samples, batch = task.amount(options, cell, samples, batch)
    task_id = cell.task_id(task.name, identity)
    store = TaskStore(results, cell.cell_id, task.name, task_id)
    label = f"{cell.attention.label} · {task.name}"
    state = _state(store)
    if state.status in TROUBLES:
        return _say_trouble(store, state, label, progress)
    if status := _finished_status(state, samples):
        if not (store.cell_folder / "cell.json").exists():
            with contextlib.suppress(OSError):
                write_atomic(store.cell_folder / "cell.json", describe_cell(cell).as_json())
        return status
    attempt, part = new_attempt(), None
    task_lease = Lease(store.folder, attempt, lease)
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
    try:
        if lease:
            task_lease.take(lambda: stop.requested or _finished_status(_state(store), samples) is not None)
            if status := _finished_status(_state(store), samples) or ("stopped" if stop.requested else None):
                return status
        write_atomic(store.cell_folder / "cell.json", describe_cell(cell).as_json())
        if (found := store.found(store.finished())).missing:  # of a finished task: it is no longer
            set_aside(results, store.folder / "task.json", place_aside(results))
        store.try_again(attempt, about.as_json())
        lines = found.rows
        if lines and (earlier := _earlier_packages(store.finished(), made.packages)):
            made = made.but(earlier_packages=earlier)
            about = about.but(environment=made)
        done = frozenset(k for k in lines if k < samples)
        part = store.open_part(attempt)
        # data are made before progress starts to time the samples
        if samples >= MIN_ANNOUNCED_SAMPLES and len(done) < samples:
            progress.say(f"{label}: making or reading up to {samples:,} samples in {results / 'data'}")
        with stop.interrupts():
            data = planned.prepare(cell, samples, results) if len(done) < samples else None
        team.decide(None)
        context = TaskContext(cell, samples, batch, done, model, data, (team.rank, team.size))
        progress.start(label, _rows_of_share(context), len(done), rows_are=task.rows_are)
        if len(done) < samples and task.runs_weights and cell.kernel in CHECKED_KERNELS:
            check_weights(cell.weights(0) or (), cell.kernel, device)
        CHOSEN.clear()  # of the check
        if len(done) < samples:
            if not _write_rows(planned, context, part, stop, progress):
                return "stopped"
            if task.needs_model and (weights := model().weights):
                made = made.but(weights=weights.as_dict())
        part.close()
        if CHOSEN:
            made = made.but(auto_kernel=sorted(CHOSEN))
        about = about.but(environment=made)
        reports = team.reports(lambda: stop.requested)
        progress.written += sum(report["rows"] for report in reports)
        for status in ("error", "oom", "unsupported", "stopped"):
            for report in reports:
                if report["status"] != status:
                    continue
                if report["failure"]:
                    failure = {**report["failure"], "message": f"rank {report['rank']}: {report['failure']['message']}"}
                    _record_failure(store, about.but(**failure), label, progress)
                return status
        expected = len(done) + progress.fresh + sum(report["rows"] for report in reports)
        if reports:
            _wait_for_rows(store, expected)
        found = store.found(store.finished())
        if found.trouble:  # another run has written other rows meanwhile
            return _say_trouble(store, State(*found.trouble), label, progress)
        lines = found.rows
        # rows beyond the first gap belong to a larger run that was stopped, and count once it
        # resumes
        count = next(k for k in itertools.count() if k not in lines)
        metrics = task.metrics(options, [task.row(lines[k]) for k in range(count)], clustered=cell.draws > 1)
        entries = {f"{task.name}/{name}": metric for name, metric in metrics.items()}
        outcome = about.but(status="ok", samples=count, exhausted=count < samples, metrics=entries)
        outcome = outcome.but(checksums=checksums(lines[k] for k in range(count)))
        store.finish(outcome.as_json())
        return "ok"
    except Stopped:
        return "stopped"
    except Exception as error:  # an outcome of this task: the other tasks still run
        failure = describe_failure(error)
        mistake = isinstance(error, UserError)  # the command line prints these itself
        _record_failure(store, about.but(**failure), label, progress, quiet=mistake)
        if mistake:
            raise
        return failure["status"]
    finally:
        if part is not None:
            with contextlib.suppress(OSError):
                part.close()
        task_lease.release()
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
    """Compute the share of a task's rows of a rank other than 0, and report to rank 0.

    The rows go into a part file of this rank; rank 0 records and finishes the task.

    Args:
        cell, planned, samples, batch, results, model, stop, progress, team: as in `run_task`.

    Returns:
        The status, as `run_task` does.
    """
    if (decision := team.decision(lambda: stop.requested)) is not None:
        return decision
    task, options = planned.task, planned.options
    samples, batch = task.amount(options, cell, samples, batch)
    store = TaskStore(results, cell.cell_id, task.name, cell.task_id(task.name, planned.identity(cell)))
    part, before = store.open_part(new_attempt()), progress.written
    status, failure = "ok", None
    try:
        done = frozenset(k for k in store.rows() if k < samples)
        if len(done) < samples:
            with stop.interrupts():
                data = planned.prepare(cell, samples, results)
            context = TaskContext(cell, samples, batch, done, model, data, (team.rank, team.size))
            progress.start("", _rows_of_share(context), len(done))
            status = "ok" if _write_rows(planned, context, part, stop, progress) else "stopped"
        part.close()
    except Stopped:
        status = "stopped"
    except Exception as error:
        failure = describe_failure(error)
        status = failure["status"]
    finally:
        with contextlib.suppress(OSError):
            part.close()
    team.report(status=status, rows=progress.written - before, failure=failure)
    return status


def _write_rows(planned: PlannedTask, context: TaskContext, part: Part, stop: StopRequest, progress: Progress) -> bool:
    """Compute the missing rows of this process's share. False if it was stopped."""
    for rows in planned.task.run(planned.options, context):
        part.write([row.as_json() for row in rows])
        progress.advance(len(rows))
        if stop.requested:
            return False
    return True


def _rows_of_share(context: TaskContext) -> int:
    """Rows that are present when this process has done its share and the other ranks nothing."""
    return len(context.done) + sum(len(keys) for _, keys in context.batches())


def _wait_for_rows(store: TaskStore, expected: int) -> None:
    """Wait for the rows of all ranks, which a network file system may show with a delay.

    Raises UserError if they do not appear within ROWS_TIMEOUT.
    """
    deadline = time.monotonic() + ROWS_TIMEOUT
    while len(rows := store.rows()) < expected:
        if time.monotonic() > deadline:
            raise UserError(
                f"The ranks have written {expected} rows, and {store.folder} holds {len(rows)}: all ranks need one "
                "results folder that all of them see."
            )
        time.sleep(0.1)


def _record_failure(
    store: TaskStore, outcome: TaskOutcome, label: str, progress: Progress, *, quiet: bool = False
) -> None:
    """Record the outcome of a failed task, and print it unless `quiet`."""
    if not quiet:
        unsupported = outcome.error == "NotImplementedError"
        reason = outcome.message if unsupported else f"{outcome.error}: {outcome.message}"
        progress.say(f"{label}: {outcome.status}: {reason}")
    try:
        if outcome.status == "unsupported":
            store.finish(outcome.but(samples=0, exhausted=True, metrics={}).as_json())
        else:
            store.record_attempt(outcome.attempt or new_attempt(), outcome.as_json())
    except OSError as error:  # a full disk: its files stay, and the other tasks are still tried
        progress.say(f"The outcome could not be recorded: {error}")


def describe_failure(error: Exception) -> dict[str, str]:
    """Return the record of an exception; called while the exception is handled."""
    return {
        "status": failure_status(error),
        "error": type(error).__name__,
        "message": without_secrets(str(error))[:2000],
        "traceback": without_secrets(traceback.format_exc(limit=-12)),
    }


def _state(store: TaskStore) -> State:
    """What the task has come to, its cell.json included."""
    why = store.cell_trouble()
    return State("refused", why=why) if why else store.state(verify=True)


def _say_trouble(store: TaskStore, state: State, label: str, progress: Progress) -> str:
    """Say why the store cannot be believed; returns the status."""
    progress.say(f"{label}: {state.status}: {store.folder}: {state.why}. {ADVICE}")
    return state.status


def _finished_status(state: State, samples: int) -> str | None:
    """The status of a task that is finished with at least `samples` rows, or has no more rows."""
    finished = state.finished
    return finished["status"] if finished and (finished["samples"] >= samples or finished.get("exhausted")) else None


def _earlier_packages(finished: dict[str, Any] | None, packages: Packages) -> list[Packages]:
    """Package versions other than `packages` that the record names for the existing rows."""
    environment = TaskOutcome.read(finished or {}).environment
    recorded = [environment.packages, *environment.earlier_packages]
    return [versions for versions in recorded if versions and versions != packages]


def failure_status(error: Exception) -> str:
    """Return the status of a task that ended with this exception: oom, unsupported or error."""
    if isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError)):
        return "oom"
    # torch's allocator on a CPU, C++, the system, and C code that does not say what it was refused
    if isinstance(error, RuntimeError) and re.search("can't allocate memory|bad_alloc", str(error)):
        return "oom"
    if isinstance(error, SystemError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return "oom"
    return "unsupported" if isinstance(error, NotImplementedError) else "error"


def describe_cell(cell: Cell) -> CellDescription:
    """Return the contents of cell.json, by which a cell is shown without this code's objects."""
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
