"""Bring W&B up to what the store holds, within a time limit, and remember in
results/<cell_id>/wandb.json what is where. The talking is done by a process of its own
(harness.tracking.upload), which is killed when its time is up, so that no fault of W&B, of the
server or of the network can hold or break a run."""

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
from harness.common.secrets import without_secrets
from harness.tracking.content import content_of, duplicate_of, hash_of, row_hash

MARKER = "wandb.json"
HALF_MADE = 2.0  # seconds to wait for what another agent is writing
DESTINATION = ("server", "project", "entity", "run_id")
ENTRY = ("hash", "folder", "url", *DESTINATION)  # of each run that was written, beside its mode
OFFLINE_RUN = re.compile(r"offline-run-[\w.-]+", re.ASCII)
# of one run under an agent, or said to wandb.init by name: not to be taken from the environment for
# every cell
NOT_INHERITED = ("RUN_ID", "SWEEP_ID", "SWEEP_PARAM_PATH", "MODE", "RESUME", "NAME", "NOTES", "TAGS", "SERVICE")


@dataclass
class Outcome:
    """What became of the cells: done (cell id -> where), current (nothing new), left (not reached),
    and why."""

    mode: str
    done: dict[str, dict] = field(default_factory=dict)
    current: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    no_key: bool = False
    failed: str | None = None


def wish(results: Path, cell_id: str, **wanted: object) -> None:
    """Remember where the run of a cell is to go: project, entity, group, tags, and under an agent
    run_id, sweep_id."""
    path = results / cell_id / MARKER
    marker = _marker(path)
    if path.parent.is_dir() and marker["wish"] != wanted:
        write_atomic(path, {**marker, "wish": wanted})


def claim(results: Path, cell_id: str, sweep_id: str, run_id: str) -> str:
    """The run that has the cell in a W&B sweep: this one, unless another came first. A file that
    exists cannot be made anew, so that of two agents at the same moment one comes first. Raises
    OSError where nothing can be written."""
    path = results / cell_id / f"wandb-{quote(sweep_id, safe='')}.json"
    try:
        _make(path, json.dumps({"run_id": run_id}))
    except FileExistsError:
        until = time.monotonic() + HALF_MADE
        while (first := read_json(path, quiet=True)) is None and time.monotonic() < until:
            time.sleep(0.05)
        return _text(first, "run_id") or run_id
    return run_id


def _make(path: Path, content: str) -> None:
    """Make a file, whole at once where there are hard links. Raises FileExistsError if there is
    one."""
    with draft_of(path) as draft:
        try:
            draft.write_text(content)
            os.link(draft, path)
        except FileExistsError:
            raise
        except OSError:  # no links here, or a full disk, which this shows too
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
    **instead: object,
) -> Outcome:
    """Write the runs of these cells, those that are there already left out. Returns within `limit`
    seconds.

    Args:
        results: the results folder.
        cell_ids: cells whose runs are to be written.
        mode: online or offline.
        without_key: the mode where there is no API key; None to do nothing then.
        limit: seconds.
        interrupted: asked again and again; True ends the upload.
        instead: project, entity, group, run_id or sweep_id in place of the wishes of the cell's
            run; duplicates: the run that has the cell already, to which this one only points.
    """
    outcome = Outcome(mode)
    runs = {}
    for cell_id in cell_ids:
        if wanted := _wanted(results, cell_id, instead):
            if there := _entry(results, wanted):
                wanted["offline"] = there["folder"]
            if there and there["mode"] in ("online", mode):
                outcome.current.append(cell_id)
            else:
                runs[cell_id] = wanted
    if not runs:
        return outcome
    request = {"mode": mode, "without_key": without_key, "patience": limit, "folder": str(results.resolve())}
    for reply in _ask({**request, "runs": list(runs.values())}, limit, interrupted):
        outcome.no_key |= reply.get("no_key", False)
        outcome.failed = without_secrets(reply["failed"]) if "failed" in reply else outcome.failed
        outcome.mode = reply.get("mode", outcome.mode)
        if "current" in reply:
            outcome.current.append(reply["cell_id"])
        elif written := reply.get("cell_id"):
            outcome.done[written] = reply
            _remember(results, runs[written], reply)
    outcome.left = [cell_id for cell_id in runs if cell_id not in (*outcome.done, *outcome.current)]
    return outcome


def _wanted(results: Path, cell_id: str, instead: dict) -> dict | None:
    """The run of a cell and where it goes; None if the store has nothing of the cell."""
    content = content_of(results, cell_id)
    if content is None:
        return None
    given = _marker(results / cell_id / MARKER)["wish"]
    given = {**given, **{k: v for k, v in instead.items() if v is not None}}
    content["group"] = given.get("group") or content["group"]
    content["tags"] = list(dict.fromkeys([*content["tags"], *given.get("tags", ())]))
    if first := given.get("duplicates"):
        content = duplicate_of(content, first)
    return {
        "content": content,
        "hash": hash_of(content),
        "row_hash": row_hash(content),
        "server": os.environ.get("WANDB_BASE_URL"),
        "project": given.get("project") or os.environ.get("WANDB_PROJECT") or "positional-lsh",
        "entity": given.get("entity"),
        "run_id": given.get("run_id") or cell_id,
        "sweep_id": given.get("sweep_id"),
        "offline": None,
    }


def _entry(results: Path, wanted: dict) -> dict | None:
    """The note that this very content is at its destination, online before offline; None if it is
    not, or if the offline folder is gone."""
    there = [
        entry
        for entry in _marker(results / wanted["content"]["cell_id"] / MARKER)["written"]
        if entry["hash"] == wanted["hash"]
        and all(entry[key] == wanted[key] for key in DESTINATION)
        and (entry["mode"] == "online" or offline_run(results, entry["folder"]))
    ]
    return max(there, key=lambda entry: entry["mode"] == "online", default=None)


def _remember(results: Path, wanted: dict, reply: dict) -> None:
    """Note what is where. An offline folder that this one replaces is removed: of a cell the last
    state counts."""
    path = results / wanted["content"]["cell_id"] / MARKER
    marker = _marker(path)
    entry = {"mode": reply["mode"], **{key: wanted[key] for key in DESTINATION}, "hash": wanted["hash"]}
    entry |= {"url": reply["url"], "folder": reply["folder"], "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}

    def place(of: dict) -> tuple:
        return (of["mode"], *(of[key] for key in DESTINATION))

    replaced = [e for e in marker["written"] if place(e) == place(entry)]
    kept = [e for e in marker["written"] if place(e) != place(entry)]
    with contextlib.suppress(OSError):
        write_atomic(path, {**marker, "written": [*kept, entry]})
        for folder in {e["folder"] for e in replaced} - {None, entry["folder"]}:
            remove_offline_run(results, folder)


def offline_run(results: Path, name: object) -> Path | None:
    """The folder of an offline run that the mirror has made; None where the name, which comes from
    a file that anybody may have written, stands for anything else: another path, a link, a folder
    without a run in it."""
    if not isinstance(name, str) or not OFFLINE_RUN.fullmatch(name):
        return None
    folder = results / "wandb" / name
    plain = not (folder.is_symlink() or folder.parent.is_symlink()) and folder.is_dir()
    return folder if plain and any(folder.glob("run-*.wandb")) else None


def remove_offline_run(results: Path, name: object) -> None:
    """Remove the folder of an offline run; nothing else in the world, whatever the name says."""
    if folder := offline_run(results, name):
        rmtree(folder, ignore_errors=True)  # follows no link within, and none put in the folder's place


def _marker(path: Path) -> dict:
    """wandb.json of a cell: "wish", and "written", a list of entries that have all their keys. What
    is not of this form is left out: the file may come from anywhere, and W&B decides nothing."""
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
    return all(key in entry and (entry[key] is None or isinstance(entry[key], str)) for key in ENTRY)


def _text(content: object, key: str) -> str | None:
    value = content.get(key) if isinstance(content, dict) else None
    return value if isinstance(value, str) else None


def _ask(request: dict, limit: float, interrupted: Callable[[], bool]) -> list[dict]:
    """What the uploading process answered before it ended or was killed."""
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
                start_new_session=True,  # a signal to the run's group is the run's to answer
            )
        why = None
        try:
            while process.poll() is None and why is None:
                time.sleep(0.02)
                if interrupted():
                    why = "interrupted"
                elif time.monotonic() > deadline:
                    why = f"no answer within {limit:g} s"
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)  # wandb-core too
            process.wait()
        replies = _lines(folder / "replies.jsonl")
        if why is None and process.returncode:
            last = (folder / "stderr").read_text(errors="replace").strip().splitlines()[-1:]
            why = f"exit code {process.returncode}: {''.join(last)[:200]}"
        return [*replies, {"failed": why}] if why else replies


def _environment(folder: Path) -> dict[str, str]:
    env = {k: v for k, v in os.environ.items() if k not in [f"WANDB_{name}" for name in NOT_INHERITED]}
    env.setdefault("WANDB_ERROR_REPORTING", "false")
    env["PYTHONPATH"] = os.pathsep.join(p for p in (str(ROOT), env.get("PYTHONPATH")) if p)
    return {**env, "WANDB_DATA_DIR": str(folder), "WANDB_CACHE_DIR": str(folder)}


def _lines(path: Path) -> list[dict]:
    replies = []
    with contextlib.suppress(FileNotFoundError):
        for line in path.read_text().splitlines():
            with contextlib.suppress(ValueError):
                replies.append(json.loads(line))
    return replies
