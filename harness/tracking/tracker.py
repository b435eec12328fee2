"""The W&B mirror of `harness.run`: it uploads stored cells, prints a line and never fails."""

import contextlib
import os
import sys
import time
from pathlib import Path

from harness.common.errors import UserError, choose
from harness.common.secrets import without_secrets
from harness.common.signals import StopRequest
from harness.common.streams import printable
from harness.tracking.options import TrackingConfig

MODES = ("online", "offline", "disabled")
FORBIDDEN_CHARACTERS = set("/\\#?%:")  # W&B's rule for names of projects
STOP_TIMEOUT = 20.0  # seconds after a request to stop; schedulers may kill after 30


def check(config: TrackingConfig) -> TrackingConfig:
    """Return the configuration with its final mode, which WANDB_MODE may only lower.

    Raises:
        UserError: for an invalid option.
    """
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
        return config  # nothing is sent, and the project was not chosen for this run
    if not config.project or FORBIDDEN_CHARACTERS & set(config.project) or len(config.project) > 128:
        raise UserError(
            f"tracking.project={config.project!r} is no W&B project: use at most 128 characters, none of / \\ # ? % : "
            "(a team goes into tracking.entity or WANDB_ENTITY)."
        )
    for name in ("project", "entity"):
        if without_secrets(value := getattr(config, name) or "") != value:
            raise UserError(f"tracking.{name} holds {without_secrets(value)}, a secret that W&B would show.")
    return config


class Tracker:
    """Collects cells and uploads them every PERIOD seconds and at the end.

    Short cells thus share an uploading process. After a failure the next attempt waits
    AFTER_FAILURE seconds.
    """

    PERIOD = 60.0
    AFTER_FAILURE = 600.0

    def __init__(self, stop: StopRequest):
        self._stop = stop
        # cells by (results, mode, limit), and for a duplicate also by its overrides
        self._pending: dict[tuple, list[str]] = {}
        self._due = time.monotonic() + self.PERIOD

    def __enter__(self) -> "Tracker":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not KeyboardInterrupt:  # a second Ctrl-C waits for nobody
            self._flush()

    def add(self, results: Path, cell_id: str, config: TrackingConfig, *, requested: bool) -> None:
        """Add a stored cell.

        Under a W&B agent, the requested cell takes the agent's run. If an earlier row of the sweep
        was the same cell, the agent's run only points to that row's run.

        Args:
            results: the results folder.
            cell_id: the cell.
            config: the options of tracking.
            requested: whether it is the requested cell, and not one of its references.
        """
        if config.mode == "disabled":
            return
        from harness.tracking.mirror import claim, save_destination

        destination = {"project": config.project, "entity": config.entity, "group": config.group, "tags": config.tags}
        key = (results, config.mode, config.timeout)
        if requested and os.environ.get("WANDB_SWEEP_ID") and os.environ.get("WANDB_RUN_ID"):
            agent = {"run_id": os.environ["WANDB_RUN_ID"], "sweep_id": os.environ["WANDB_SWEEP_ID"]}
            with contextlib.suppress(OSError):  # a full disk: the cell may be logged twice
                owner = claim(results, cell_id, **agent)
                if owner != agent["run_id"]:
                    self._pending[*key, ("duplicates", owner), *agent.items()] = [cell_id]
                    agent["run_id"] = owner
            destination |= agent
        with contextlib.suppress(OSError):  # a full disk: the default destination remains
            save_destination(results, cell_id, **destination)
        self._pending.setdefault(key, []).append(cell_id)

    def catch_up(self) -> None:
        """Upload finished cells if it is time; called before each cell is computed.

        The last cells wait for `__exit__`, after all output.
        """
        if time.monotonic() >= self._due and not self._stop.requested:
            self._flush()

    def _flush(self) -> None:
        """Upload all waiting cells; after a failure the rest is skipped."""
        failed = False
        for (results, mode, limit, *overrides), cells in self._pending.items():
            failed = failed or not self._mirror(results, list(dict.fromkeys(cells)), mode, limit, **dict(overrides))
        self._pending = {}
        self._due = time.monotonic() + (self.AFTER_FAILURE if failed else self.PERIOD)

    def _mirror(self, results: Path, cells: list[str], mode: str, limit: float, **overrides: str) -> bool:
        from harness.tracking.mirror import mirror

        signals = self._stop.count
        limit = min(limit, STOP_TIMEOUT) if self._stop.requested else limit
        try:
            outcome = mirror(
                results,
                cells,
                mode=mode,
                without_key="offline",
                limit=limit,
                interrupted=lambda: self._stop.count > signals,
                **overrides,
            )
        except Exception as error:  # the results are in the store: the mirror must not fail the run
            _say(f"W&B: not mirrored ({type(error).__name__}: {without_secrets(str(error))}). {_upload_hint(results)}")
            return False
        uploaded = f"{len(outcome.done)} run{'s' if len(outcome.done) != 1 else ''}"
        if outcome.unreached:
            unreached = f"{len(outcome.unreached)} of {len(cells)} cells"
            _say(f"W&B: {unreached} not mirrored ({outcome.failed}). {_upload_hint(results)}")
        elif outcome.done and outcome.mode == "offline":
            reason = " (no API key: wandb login saves one)" if outcome.no_key else ""
            folder = results / "wandb"
            _say(f"W&B: {uploaded} offline in {folder}{reason}. Look: wandb leet {folder}. {_upload_hint(results)}")
        elif outcome.done:
            _say(f"W&B: {uploaded}, {outcome.done.get(cells[0], next(iter(outcome.done.values())))['url']}")
        return not outcome.failed


def _upload_hint(results: Path) -> str:
    return f"Upload later: python -m harness.sync {results}"


def _say(sentence: str) -> None:
    print(printable(sentence), file=sys.stderr, flush=True)
