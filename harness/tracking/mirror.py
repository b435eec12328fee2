"""Update W&B from the store within a time limit, and record uploads in results/CELL_ID/wandb.json.

A separate process (harness.tracking.upload) talks to W&B and is killed at the limit. Thus no fault
of W&B, its server or the network can block or break a run.
"""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from shutil import rmtree
from urllib.parse import quote

from harness.common.files import draft_of, read_json, write_atomic
from harness.common.paths import ROOT
from harness.common.secrets import without_secrets, without_secrets_in
from harness.tracking.content import content_of, duplicate_of, hash_of, row_hash

MARKER = "wandb.json"
CLAIM_TIMEOUT = 2.0  # seconds to wait for a claim that another agent is writing
DESTINATION_KEYS = ("server", "project", "entity", "run_id")
ENTRY_KEYS = ("hash", "folder", "url", *DESTINATION_KEYS)  # of each upload, and its mode
OFFLINE_RUN = re.compile(r"offline-run-[\w.-]+", re.ASCII)
# WANDB_ variables that belong to one run of an agent, or that wandb.init gets as arguments: dropped
NOT_INHERITED = ("RUN_ID", "SWEEP_ID", "SWEEP_PARAM_PATH", "MODE", "RESUME", "NAME", "NOTES", "TAGS", "SERVICE")


@dataclass
class Outcome:
    """The result of `mirror`.

    mode: the mode in use, which may differ from the requested one without an API key.
    done: replies of the uploaded runs by cell id.
    current: cells whose runs were up to date.
    unreached: cells that were not reached.
    no_key: whether there was no API key.
    failed: message of the failure, if any.
    """

    mode: str
    done: dict[str, dict] = field(default_factory=dict)
    current: list[str] = field(default_factory=list)
    unreached: list[str] = field(default_factory=list)
    no_key: bool = False
    failed: str | None = None


def save_destination(results: Path, cell_id: str, **destination: object) -> None:
    """Save the destination of a cell's run in its wandb.json.

    Args:
        results: the results folder.
        cell_id: the cell.
        destination: project, entity, group, tags, and under an agent run_id and sweep_id.
    """
    path = results / cell_id / MARKER
    marker = _marker(path)
    if path.parent.is_dir() and marker["wish"] != destination:
        known = {name: value for name, value in marker.items() if value != []}  # no empty list of uploads
        write_atomic(path, {**known, "wish": destination})


def claim(results: Path, cell_id: str, sweep_id: str, run_id: str) -> str:
    """Claim a cell of a W&B sweep for a run, and return the run that owns it.

    The claim is a file that only one of several agents can create.

    Args:
        results: the results folder.
        cell_id: the cell.
        sweep_id: the sweep.
        run_id: the run.

    Raises:
        OSError: if the file cannot be written.
    """
    path = results / cell_id / f"wandb-{quote(sweep_id, safe='')}.json"
    try:
        _create(path, json.dumps({"run_id": run_id}))
    except FileExistsError:
        deadline = time.monotonic() + CLAIM_TIMEOUT
        while (owner := read_json(path, quiet=True)) is None and time.monotonic() < deadline:
            time.sleep(0.05)
        owner_id = (owner or {}).get("run_id")
        return owner_id if isinstance(owner_id, str) and owner_id else run_id
    return run_id


def _create(path: Path, content: str) -> None:
    """Create a file, atomically if there are hard links; raise FileExistsError if it exists."""
    with draft_of(path) as draft:
        try:
            draft.write_text(content)
            os.link(draft, path)
        except FileExistsError:
            raise
        except OSError:  # no hard links, or a full disk, which the next write reveals
            with path.open("x") as file:
                try:
                    file.write(content)
                    file.flush()
                except OSError:
                    path.unlink()
                    raise


def mirror(
    results: Path,
    cell_ids: Iterable[str],
    *,
    mode: str,
    without_key: str | None = None,
    limit: float,
    interrupted: Callable[[], bool] = lambda: False,
    **overrides: object,
) -> Outcome:
    """Upload the runs of cells that are not up to date, within `limit` seconds.

    Args:
        results: the results folder.
        cell_ids: the cells.
        mode: online or offline.
        without_key: the mode without an API key; None uploads nothing then.
        limit: seconds.
        interrupted: polled; True ends the upload.
        overrides: replace the saved project, entity, group, run_id or sweep_id; `duplicates` names
            the run that already has the cell, to which this run only points.

    Returns:
        the uploaded, current and unreached cells; failures never raise.
    """
    outcome = Outcome(mode)
    runs = {}
    for cell_id in cell_ids:
        if run := _request(results, cell_id, overrides):
            if entry := _uploaded_entry(results, run):
                run["offline"] = entry["folder"]
            if entry and entry["mode"] in ("online", mode):
                outcome.current.append(cell_id)
            else:
                runs[cell_id] = run
    if not runs:
        return outcome
    request = {"mode": mode, "without_key": without_key, "patience": limit, "folder": str(results.resolve())}
    for reply in _upload({**request, "runs": list(runs.values())}, limit, interrupted):
        outcome.no_key |= reply.get("no_key", False)
        outcome.failed = without_secrets(reply["failed"]) if "failed" in reply else outcome.failed
        outcome.mode = reply.get("mode", outcome.mode)
        if "current" in reply:
            outcome.current.append(reply["cell_id"])
        elif uploaded := reply.get("cell_id"):
            outcome.done[uploaded] = reply
            _record_upload(results, runs[uploaded], reply)
    outcome.unreached = [cell_id for cell_id in runs if cell_id not in (*outcome.done, *outcome.current)]
    return outcome


def _request(results: Path, cell_id: str, overrides: dict) -> dict | None:
    """Return the run of a cell with its destination; None if the store has no records of it."""
    content = content_of(results, cell_id)
    if content is None:
        return None
    destination = _marker(results / cell_id / MARKER)["wish"]
    destination = {**destination, **{k: v for k, v in overrides.items() if v is not None}}
    content["group"] = destination.get("group") or content["group"]
    content["tags"] = list(dict.fromkeys([*content["tags"], *destination.get("tags", ())]))
    if original := destination.get("duplicates"):
        content = duplicate_of(content, original)
    content = without_secrets_in(content)  # records of earlier versions may hold some
    request = {
        "content": content,
        "hash": hash_of(content),
        "row_hash": row_hash(content),
        "server": os.environ.get("WANDB_BASE_URL"),
        "project": destination.get("project") or os.environ.get("WANDB_PROJECT") or "positional-lsh",
        "entity": destination.get("entity"),
        "run_id": destination.get("run_id") or cell_id,
        "sweep_id": destination.get("sweep_id"),
        "offline": None,
    }
    return without_secrets_in(request)


def _uploaded_entry(results: Path, run: dict) -> dict | None:
    """Return the entry of an earlier upload of the same content to the same destination.

    Online uploads come before offline ones. None without such an upload, or if its offline folder
    is missing.
    """
    entries = [
        entry
        for entry in _marker(results / run["content"]["cell_id"] / MARKER)["written"]
        if entry["hash"] == run["hash"]
        and all(entry[key] == run[key] for key in DESTINATION_KEYS)
        and (entry["mode"] == "online" or offline_run(results, entry["folder"]))
    ]
    return max(entries, key=lambda entry: entry["mode"] == "online", default=None)


def _record_upload(results: Path, run: dict, reply: dict) -> None:
    """Record an upload in wandb.json, and remove the offline folder that it replaces."""
    path = results / run["content"]["cell_id"] / MARKER
    marker = _marker(path)
    entry = {"mode": reply["mode"], **{key: run[key] for key in DESTINATION_KEYS}, "hash": run["hash"]}
    entry |= {"url": reply["url"], "folder": reply["folder"], "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}

    def destination(upload: dict) -> tuple:
        return (upload["mode"], *(upload[key] for key in DESTINATION_KEYS))

    replaced = [e for e in marker["written"] if destination(e) == destination(entry)]
    remaining = [e for e in marker["written"] if destination(e) != destination(entry)]
    with contextlib.suppress(OSError):
        write_atomic(path, {**marker, "written": [*remaining, entry]})
        for folder in {e["folder"] for e in replaced} - {None, entry["folder"]}:
            remove_offline_run(results, folder)


def offline_run(results: Path, name: object) -> Path | None:
    """Return the folder of an offline run; None if the name is anything else.

    The name comes from a file that anybody may have written: it may be another path, a link, or a
    folder without a run.
    """
    if not isinstance(name, str) or not OFFLINE_RUN.fullmatch(name):
        return None
    folder = results / "wandb" / name
    is_folder = not (folder.is_symlink() or folder.parent.is_symlink()) and folder.is_dir()
    return folder if is_folder and any(folder.glob("run-*.wandb")) else None


def remove_offline_run(results: Path, name: object) -> None:
    """Remove the folder of an offline run, and never anything else (`offline_run`)."""
    if folder := offline_run(results, name):
        rmtree(folder, ignore_errors=True)  # follows no links


def _marker(path: Path) -> dict:
    """Return wandb.json of a cell without malformed parts, since anybody may have written it.

    wish: the saved destination. written: entries of uploads, with all their keys.
    """
    content = read_json(path) or {}
    wish, written = content.get("wish"), content.get("written")
    return {
        **content,
        "wish": {k: v for k, v in wish.items() if _is_wish(k, v)} if isinstance(wish, dict) else {},
        "written": [entry for entry in written if _is_entry(entry)] if isinstance(written, list) else [],
    }


def _is_wish(name: str, value: object) -> bool:
    if name == "tags":
        return isinstance(value, list) and all(isinstance(tag, str) for tag in value)
    return value is None or isinstance(value, str)


def _is_entry(entry: object) -> bool:
    if not isinstance(entry, dict) or entry.get("mode") not in ("online", "offline"):
        return False
    return all(key in entry and (entry[key] is None or isinstance(entry[key], str)) for key in ENTRY_KEYS)


def _upload(request: dict, limit: float, interrupted: Callable[[], bool]) -> list[dict]:
    """Run the uploading process and return its replies before it ended or was killed."""
    deadline = time.monotonic() + limit
    with tempfile.TemporaryDirectory(prefix="wandb-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        (folder / "request.json").write_text(json.dumps(request))
        with (folder / "stderr").open("wb") as stderr:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "harness.tracking.upload", name],
                env=_environment(folder),
                stdin=subprocess.DEVNULL,
                stdout=stderr,
                stderr=stderr,
                start_new_session=True,  # signals to the run's process group are handled by the run
            )
        failure = None
        try:
            while process.poll() is None and failure is None:
                time.sleep(0.02)
                if interrupted():
                    failure = "interrupted"
                elif time.monotonic() > deadline:
                    failure = f"no answer within {limit:g} s"
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)  # wandb-core too
            process.wait()
        replies = _read_replies(folder / "replies.jsonl")
        if failure is None and process.returncode:
            message = (folder / "stderr").read_text(errors="replace").strip().splitlines()[-1:]
            failure = f"exit code {process.returncode}: {''.join(message)[:200]}"
        return [*replies, {"failed": failure}] if failure else replies


def _environment(folder: Path) -> dict[str, str]:
    env = {k: v for k, v in os.environ.items() if k not in [f"WANDB_{name}" for name in NOT_INHERITED]}
    env.setdefault("WANDB_ERROR_REPORTING", "false")
    env["PYTHONPATH"] = os.pathsep.join(p for p in (str(ROOT), env.get("PYTHONPATH")) if p)
    return {**env, "WANDB_DATA_DIR": str(folder), "WANDB_CACHE_DIR": str(folder)}


def _read_replies(path: Path) -> list[dict]:
    replies = []
    with contextlib.suppress(FileNotFoundError):
        for line in path.read_text().splitlines():
            with contextlib.suppress(ValueError):
                replies.append(json.loads(line))
    return replies
