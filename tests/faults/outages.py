"""Faults of W&B while a run is mirrored: its server is the loopback one, its client the real
one."""

import random
import signal
import time

import psutil

from harness.tracking.content import content_of
from tests.faults.bench import Case, Kind
from tests.faults.stores import Harm
from tests.tracking.conftest import KEY
from tests.tracking.server import Server

MODES = (
    "refused",
    "silent",
    "wrong key",
    "silent after the run was made",
    "dies after the run was made",
    "forbids after the run was made",
)
ACTS = ("kill -9 of the run", "kill -9 of the upload", "SIGTERM during the upload")
TIMEOUT = 8
SWEEP = "sweep"


def outage(case: Case, rng: random.Random) -> list[int] | None:
    """The server fails in one of its ways, or a process dies while it talks to the server."""
    server = Server()
    case.clean.append(server.close)
    case.extra = (f"tracking.timeout={TIMEOUT}",)
    del case.env["WANDB_MODE"]
    case.env |= {"HOME": str(case.results), "WANDB_API_KEY": KEY, "WANDB_BASE_URL": server.url}
    case.beside = lambda: mirrored(case, server)
    if rng.random() < 0.3:  # under an agent
        case.env |= {"WANDB_SWEEP_ID": SWEEP, "WANDB_RUN_ID": "of-the-agent"}
    how = rng.choice(MODES + ACTS)
    if how in MODES:
        if how == "refused":
            case.env["WANDB_BASE_URL"] = "http://127.0.0.1:9"  # where nobody listens

        def restore() -> None:
            server.mode = "up"
            case.env["WANDB_BASE_URL"] = server.url

        server.mode = how
        case.heal.append(restore)
        code = case.end(case.start())
        return [code] if "not mirrored" in case.said[-1] else None
    process = case.start()
    while not server.state.runs and process.poll() is None:
        time.sleep(0.01)
    time.sleep(rng.uniform(0, 0.5))
    if process.poll() is not None:
        return None
    if how == "kill -9 of the upload":
        for child in psutil.Process(process.pid).children():
            child.kill()
        code = case.end(process)
        return [code] if "not mirrored" in case.said[-1] else None
    process.send_signal(signal.SIGKILL if "kill" in how else signal.SIGTERM)
    return [case.end(process)]


def mirrored(case: Case, server: Server) -> Harm:
    """Each cell must have one run with one row of its figures, the agent's if one has claimed the
    cell."""
    runs = {cell: cell for cell, _ in case.run.store}
    for marker in case.results.glob(f"*/wandb-{SWEEP}.json"):
        runs[marker.parent.name] = case.env["WANDB_RUN_ID"]
    done = Harm(doubled=len(server.state.runs.keys() - set(runs.values())))
    done.lost += SWEEP in case.env.values() and set(runs.values()) == set(runs)
    for cell, run in runs.items():
        content, rows = content_of(case.results, cell), server.rows(run)
        done.lost += not rows
        done.doubled += max(0, len(rows) - 1)
        done.changed += bool(rows) and not content["row"].items() <= rows[-1].items()
    return done


OUTAGE = Kind("W&B outage", 20, outage, lambda codes, complete: codes in ([0], [-9]) and complete)
