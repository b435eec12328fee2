"""`python -m harness.tracking.upload FOLDER`: the process that talks to W&B.

It reads FOLDER/request.json and appends a line to FOLDER/replies.jsonl for each run. Its parent may
kill it at any moment.

A request has mode (online or offline), without_key (the mode without an API key, or null), patience
(seconds), folder (for offline runs) and runs. Each run has content, hash, row_hash, project,
entity, run_id, sweep_id, and offline: the folder that already holds this content, or null.

A reply has cell_id, mode, entity, url and folder for an uploaded run, or cell_id, mode and current
for a run that was up to date. Other replies are {"no_key": true} and {"failed": message}, which is
the last one.
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

CONTENT_HASH, ROW_HASH = "mirror/content", "mirror/row"  # keys of a run's summary


def main(folder: Path) -> None:
    """Upload the runs of folder/request.json, and write folder/replies.jsonl."""
    os.dup2(2, 1)  # wandb may print: stdout is redirected to stderr
    request = json.loads((folder / "request.json").read_text())
    signal.alarm(math.ceil(request["patience"]) + 10)  # in case the parent was killed
    with (folder / "replies.jsonl").open("w") as replies:

        def reply(**fields: object) -> None:
            replies.write(json.dumps(fields) + "\n")
            replies.flush()

        try:
            mode = request["mode"]
            if mode == "online" and not _has_key():
                mode = request["without_key"]
                reply(no_key=True)
            if mode == "online":
                _check_server(min(10.0, request["patience"] / 3))
            target = folder if mode == "online" else Path(request["folder"])
            if mode == "offline":  # keep copies of artifacts with their runs
                os.environ["WANDB_DATA_DIR"] = str(target / "wandb")
            for run in request["runs"] if mode else ():
                cell = {"cell_id": run["content"]["cell_id"], "mode": mode}
                if mode == "offline" and run["offline"]:
                    reply(**cell, current=True)
                else:
                    reply(**cell, **_write(run, mode, target))
        except Exception as error:  # the parent gets a message for any failure
            reply(failed=_one_line(error))


def _has_key() -> bool:
    """Return whether environment, netrc or settings hold an API key."""
    try:
        return bool(wandb.login(verify=False))
    except wandb.errors.UsageError:
        return False


def _check_server(seconds: float) -> None:
    """Raise OSError if the server does not answer, which wandb would notice after half a minute."""
    url = wandb.setup().settings.base_url
    try:
        urllib.request.urlopen(url, timeout=seconds).close()
    except urllib.error.URLError as error:
        if isinstance(error.reason, (ConnectionRefusedError, socket.gaierror, TimeoutError)):
            raise OSError(f"{url}: {error.reason}") from None
    except OSError as error:
        raise OSError(f"{url}: {error}") from None


def settings() -> wandb.Settings:
    """Return settings that keep W&B from collecting data.

    Host, packages, git state, code and console would be those of this process, not of the run, and
    code and console may be confidential. The record has all facts of the run.
    """
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


def _write(request: dict, mode: Literal["online", "offline"], folder: Path) -> dict:
    """Upload a run completely, and return its entity, url and folder."""
    content = request["content"]
    options = settings()
    options.sweep_id = request["sweep_id"]
    run = wandb.init(
        mode=mode,
        dir=folder,
        project=request["project"],
        entity=request["entity"],
        id=request["run_id"],
        resume="allow",
        allow_val_change=True,
        settings=options,
        **{key: content[key] for key in ("name", "group", "job_type", "tags", "config")},
    )
    try:
        summary = dict(run.summary)
        if summary.get(CONTENT_HASH) != request["hash"]:
            _fill(run, request, new_row=summary.get(ROW_HASH) != request["row_hash"])
        if content["status"] == "stopped":
            run.mark_preempting()
        run.finish(exit_code={"ok": 0, "stopped": 75}.get(content["status"], 1))
    except BaseException:
        run.finish(exit_code=1)
        raise
    if mode == "offline":
        return {"entity": request["entity"], "url": None, "folder": Path(run.dir).parent.name}
    _confirm(f"{run.entity}/{run.project}/{run.id}", request["hash"])
    return {"entity": run.entity, "url": run.url, "folder": None}


def _fill(run: wandb.Run, request: dict, *, new_row: bool) -> None:
    content = request["content"]
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
    run.summary.update({**content["summary"], CONTENT_HASH: request["hash"], ROW_HASH: request["row_hash"]})


def _confirm(path: str, content: str) -> None:
    """Raise OSError unless the server has the run: wandb does not report refused uploads."""
    for pause in (0, 1, 3):
        time.sleep(pause)
        if wandb.Api().run(path).summary.get(CONTENT_HASH) == content:
            return
    raise OSError(f"the server did not keep run {path}")


def _one_line(error: Exception) -> str:
    return " ".join((str(error) or type(error).__name__).split())[:300]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
