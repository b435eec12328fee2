"""`python -m harness.tracking.upload FOLDER`: the process that talks to W&B. It reads
FOLDER/request.json and appends one line to FOLDER/replies.jsonl for each run; whoever started it
may kill it at any moment.

request: {"mode": online or offline, "without_key": the mode where there is no API key, or null,
"patience": seconds, "folder": where offline runs go, "runs": [{"content", "hash", "row_hash",
"project", "entity", "run_id", "sweep_id", "offline": the folder that holds just this, or null}]}.
reply: {"cell_id", "mode", "entity", "url", "folder"} for a run that was written; {"cell_id",
"mode", "current"} for one that was there; {"no_key": true}; or {"failed": why}, after which nothing
is tried.
"""

import json
import math
import os
import signal
import socket
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Literal

import wandb

CONTENT, ROW = "mirror/content", "mirror/row"  # in a run's summary: what it holds


def main(folder: Path) -> None:
    os.dup2(2, 1)  # whatever wandb prints: this process has no stdout
    request = json.loads((folder / "request.json").read_text())
    signal.alarm(math.ceil(request["patience"]) + 10)  # for the case that whoever started it was killed
    with (folder / "replies.jsonl").open("w") as replies:

        def reply(**answer: object) -> None:
            replies.write(json.dumps(answer) + "\n")
            replies.flush()

        try:
            mode = request["mode"]
            if mode == "online" and not _has_key():
                mode = request["without_key"]
                reply(no_key=True)
            if mode == "online":
                _knock(min(10.0, request["patience"] / 3))
            place = folder if mode == "online" else Path(request["folder"])
            if mode == "offline":  # copies of artifacts stay with the runs that name them
                os.environ["WANDB_DATA_DIR"] = str(place / "wandb")
            for wanted in request["runs"] if mode else ():
                cell = {"cell_id": wanted["content"]["cell_id"], "mode": mode}
                if mode == "offline" and wanted["offline"]:
                    reply(**cell, current=True)
                else:
                    reply(**cell, **_write(wanted, mode, place))
        except Exception as error:  # every fault of the mirror is a sentence to whoever started it
            reply(failed=_told(error))


def _has_key() -> bool:
    """Whether the environment, netrc or W&B's settings hold a key. Nothing is asked: stdin is no
    terminal."""
    try:
        return bool(wandb.login(verify=False))
    except wandb.errors.UsageError:
        return False


def _knock(seconds: float) -> None:
    """Raise OSError if nothing answers at the server's address: wandb itself tries that for half a
    minute."""
    url = wandb.setup().settings.base_url
    try:
        urllib.request.urlopen(url, timeout=seconds).close()
    except urllib.error.URLError as error:
        if isinstance(error.reason, (ConnectionRefusedError, socket.gaierror, TimeoutError)):
            raise OSError(f"{url}: {error.reason}") from None
    except OSError as error:
        raise OSError(f"{url}: {error}") from None


def settings() -> wandb.Settings:
    """What W&B must not collect. All that belongs to a run is in the record: host and process data,
    the packages, the git patch, the code and the console would come from this process, not from the
    one that computed, and console and code may hold what must not be sent."""
    return wandb.Settings(
        console="off",
        disable_code=True,
        disable_git=True,
        disable_job_creation=True,
        program="harness.tracking.upload",
        save_code=False,
        silent=True,
        symlink=False,
        x_disable_machine_info=True,
        x_disable_meta=True,
        x_disable_stats=True,
        x_save_requirements=False,
    )


def _write(wanted: dict, mode: Literal["online", "offline"], place: Path) -> dict:
    """One run, written whole. Returns {"entity", "url", "folder"}."""
    content = wanted["content"]
    chosen = settings()
    chosen.sweep_id = wanted["sweep_id"]
    run = wandb.init(
        mode=mode,
        dir=place,
        project=wanted["project"],
        entity=wanted["entity"],
        id=wanted["run_id"],
        resume="allow",
        allow_val_change=True,
        settings=chosen,
        **{key: content[key] for key in ("name", "group", "job_type", "tags", "config")},
    )
    try:
        before = dict(run.summary)
        if before.get(CONTENT) != wanted["hash"]:
            _fill(run, wanted, new_row=before.get(ROW) != wanted["row_hash"])
        if content["status"] == "stopped":
            run.mark_preempting()
        run.finish(exit_code={"ok": 0, "stopped": 75}.get(content["status"], 1))
    except BaseException:
        run.finish(exit_code=1)
        raise
    if mode == "offline":
        return {"entity": wanted["entity"], "url": None, "folder": Path(run.dir).parent.name}
    _confirm(f"{run.entity}/{run.project}/{run.id}", wanted["hash"])
    return {"entity": run.entity, "url": run.url, "folder": None}


def _fill(run: wandb.Run, wanted: dict, *, new_row: bool) -> None:
    content = wanted["content"]
    run.define_metric("context")
    run.define_metric("masks")
    for task in content["config"]["task"]:
        run.define_metric(f"{task}/*", step_metric="context")
    if content["row"] and new_row:
        tables = {name: wandb.Table(**table, allow_mixed_types=True) for name, table in content["tables"].items()}
        run.log({**content["row"], **tables})
    if content["files"]:
        artifact = wandb.Artifact(f"record-{content['cell_id']}", type="record")
        for name, record in content["files"].items():
            with artifact.new_file(name, mode="w") as file:
                json.dump(record, file, indent=1)
        run.log_artifact(artifact)
    run.summary.update({**content["summary"], CONTENT: wanted["hash"], ROW: wanted["row_hash"]})


def _confirm(path: str, content: str) -> None:
    """Raise OSError unless the server has the run: wandb's finish is silent about uploads that were
    refused."""
    for pause in (0, 1, 3):
        time.sleep(pause)
        if wandb.Api().run(path).summary.get(CONTENT) == content:
            return
    raise OSError(f"the server did not keep run {path}")


def _told(error: Exception) -> str:
    return " ".join((str(error) or type(error).__name__).split())[:300]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
