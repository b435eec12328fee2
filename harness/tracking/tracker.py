"""What `harness.run` does about W&B: mirror its cells when they are in the store, say so in a line,
never fail."""

import contextlib
import os
import sys
import time
from pathlib import Path

from harness.common.errors import UserError, choose
from harness.common.secrets import without_secrets
from harness.common.signals import StopRequest
from harness.tracking.options import TrackingConfig

MODES = ("online", "offline", "disabled")
FORBIDDEN = set("/\\#?%:")  # in a project's name, by W&B's rules
HASTE = 20.0  # seconds after a request to stop: the scheduler's patience may end at 30


def check(config: TrackingConfig) -> TrackingConfig:
    """The configuration with its mode settled: WANDB_MODE may only lower it. Raises UserError."""
    mode = choose("tracking.mode", config.mode, MODES)
    allowed = os.environ.get("WANDB_MODE") or "online"
    allowed = choose("WANDB_MODE", {"dryrun": "offline", "run": "online"}.get(allowed, allowed), MODES)
    config.mode = max(mode, allowed, key=MODES.index)
    if mode == "disabled":
        return config
    if not 0 < config.timeout <= 3600:
        raise UserError(f"tracking.timeout must be from 0 to 3600 seconds, not {config.timeout:g}.")
    for tag in config.tags:
        if not 0 < len(tag) <= 64:
            raise UserError(f"tracking.tags must have 1 to 64 characters each, not {tag!r}.")
    if config.mode == "disabled" and config.project == os.environ.get("WANDB_PROJECT"):
        return config  # nothing is sent, and nobody has named the project for this run
    if not config.project or FORBIDDEN & set(config.project) or len(config.project) > 128:
        raise UserError(
            f"tracking.project={config.project!r} is no W&B project: use at most 128 characters, none of / \\ # ? % : "
            "(a team goes into tracking.entity or WANDB_ENTITY)."
        )
    return config


class Tracker:
    """Cells wait until PERIOD seconds have passed, so that short ones share a process, or until the
    end."""

    PERIOD = 60.0
    AFTER_FAILURE = 600.0

    def __init__(self, stop: StopRequest):
        self._stop = stop
        # results, mode, limit, and of a duplicate where its run is and whose it is -> cells
        self._pending: dict[tuple, list[str]] = {}
        self._due = time.monotonic() + self.PERIOD

    def __enter__(self) -> "Tracker":
        return self

    def __exit__(self, *_) -> None:
        self._flush()

    def add(self, results: Path, cell_id: str, config: TrackingConfig, *, own: bool) -> None:
        """A cell whose rows are in the store. own: the cell that was asked for, not a reference
        beside it; under a W&B agent it takes the run that the agent has made for it. Where an
        earlier row of the sweep was the same cell, that run only says whose it is."""
        if config.mode == "disabled":
            return
        from harness.tracking.mirror import claim, wish

        wanted = {"project": config.project, "entity": config.entity, "group": config.group, "tags": config.tags}
        place = (results, config.mode, config.timeout)
        if own and os.environ.get("WANDB_SWEEP_ID") and os.environ.get("WANDB_RUN_ID"):
            agent = {"run_id": os.environ["WANDB_RUN_ID"], "sweep_id": os.environ["WANDB_SWEEP_ID"]}
            with contextlib.suppress(OSError):  # a full disk: perhaps told twice
                first = claim(results, cell_id, **agent)
                if first != agent["run_id"]:
                    self._pending[*place, ("duplicates", first), *agent.items()] = [cell_id]
                    agent["run_id"] = first
            wanted |= agent
        with contextlib.suppress(OSError):  # a full disk: the default destination is left
            wish(results, cell_id, **wanted)
        self._pending.setdefault(place, []).append(cell_id)

    def catch_up(self) -> None:
        """To be called before a cell is computed: those that ended are mirrored, if it is time. The
        last ones wait for `__exit__`, when everything is printed."""
        if time.monotonic() >= self._due and not self._stop.requested:
            self._flush()

    def _flush(self) -> None:
        """One process for all that wait. Where it fails, none is started for the rest, nor for a
        while."""
        failed = False
        for (results, mode, limit, *instead), cells in self._pending.items():
            failed = failed or not self._mirror(results, list(dict.fromkeys(cells)), mode, limit, **dict(instead))
        self._pending = {}
        self._due = time.monotonic() + (self.AFTER_FAILURE if failed else self.PERIOD)

    def _mirror(self, results: Path, cells: list[str], mode: str, limit: float, **instead: str) -> bool:
        from harness.tracking.mirror import mirror

        signals = self._stop.count
        limit = min(limit, HASTE) if self._stop.requested else limit
        try:
            outcome = mirror(
                results,
                cells,
                mode=mode,
                without_key="offline",
                limit=limit,
                interrupted=lambda: self._stop.count > signals,
                **instead,
            )
        except Exception as error:  # the results are in the store: no fault of a mirror is the run's
            _say(f"W&B: not mirrored ({type(error).__name__}: {without_secrets(str(error))}). {_later(results)}")
            return False
        done = f"{len(outcome.done)} run{'s' if len(outcome.done) != 1 else ''}"
        if outcome.left:
            _say(f"W&B: {len(outcome.left)} of {len(cells)} cells not mirrored ({outcome.failed}). {_later(results)}")
        elif outcome.done and outcome.mode == "offline":
            why = " (no API key: wandb login saves one)" if outcome.no_key else ""
            place = results / "wandb"
            _say(f"W&B: {done} offline in {place}{why}. Look: wandb leet {place}. {_later(results)}")
        elif outcome.done:
            _say(f"W&B: {done}, {outcome.done.get(cells[0], next(iter(outcome.done.values())))['url']}")
        return not outcome.failed


def _later(results: Path) -> str:
    return f"Upload later: python -m harness.sync {results}"


def _say(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)
