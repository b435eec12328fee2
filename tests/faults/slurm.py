"""Faults of a cluster, on the throw-away Slurm: a cell of a sweep that `sbatch slurm/sweep.sh` has
submitted."""

import contextlib
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from harness.common.signals import StopRequest
from tests.faults.bench import Tally
from tests.faults.stores import Harm, harm, on_disk
from tests.slurm.cluster import NODES, Cluster
from tests.slurm.sweeps import Sweep, undisturbed
from tests.tracking.conftest import KEY
from tests.tracking.server import Server
from tests.zygote import Zygote

SHORT, LONG = {"samples": 100, "seed": 7}, {"samples": 250, "seed": 7}
LONGEST = {"samples": 800, "seed": 8, "context": 96}


def warn(cluster: Cluster, sweep: Sweep, job: str) -> None:
    cluster.call("scancel", "--signal=USR1", job)


def terminate(cluster: Cluster, sweep: Sweep, job: str) -> None:
    cluster.call("scancel", "--signal=TERM", job)


def cancel(cluster: Cluster, sweep: Sweep, job: str) -> None:
    """A user's scancel: the cell stays cancelled until it is submitted again."""
    cluster.call("scancel", job)
    states = cluster.wait_for(job)
    assert states == {"0": "CANCELLED"}, f"a cancelled cell ended as {states}"
    sweep.submit("--partition=scavenge")


def requeue(cluster: Cluster, sweep: Sweep, job: str) -> None:
    cluster.call("scontrol", "requeue", job)


def preempt(cluster: Cluster, sweep: Sweep, job: str) -> None:
    cluster.call("sbatch", "--exclusive", "--nodes=2", "--output=/dev/null", "--wrap=sleep 1")


def preempt_early(cluster: Cluster, sweep: Sweep, job: str) -> None:
    preempt(cluster, sweep, job)
    cluster.wait(lambda: cluster.states(job)["0"] != "RUNNING", "the preemption")
    assert not parts(sweep), "it had samples already"


def drain(cluster: Cluster, sweep: Sweep, job: str) -> None:
    """The node of the cell takes nothing new, and the cell is requeued: to the other one."""
    node = node_of(cluster, job)
    cluster.call("scontrol", "update", f"NodeName={node}", "State=DRAIN", "Reason=fault")
    cluster.call("scontrol", "requeue", job)
    cluster.wait(lambda: cluster.states(job)["0"] == "RUNNING" and node_of(cluster, job) != node, "the other node")
    cluster.call("scontrol", "update", f"NodeName={node}", "State=RESUME")


def kill_daemon(cluster: Cluster, sweep: Sweep, job: str) -> None:
    """The node's daemon dies; the cell lives on as an orphan, and another is started on the other
    node."""
    node = node_of(cluster, job)
    cluster.kill_node(node)
    try:
        cluster.wait(lambda: cluster.states(job)["0"] != "RUNNING", "the loss of the node to be noticed")
    finally:
        cluster.start_node(node)


def time_out(cluster: Cluster, sweep: Sweep, job: str) -> None:
    """The job's time limit ends 30 to 90 s from now, before its cell, until it is requeued. A
    minute from the start leaves a busy machine no time for the first sample, and a cell that gets
    none in its time is given up."""
    told = cluster.call("scontrol", "show", "job", "-o", job)
    hours, minutes, seconds = map(int, told.split(" RunTime=")[1].split()[0].split(":"))
    limit = 60 * hours + minutes + (seconds + 30) // 60 + 1
    cluster.call("scontrol", "update", f"JobId={job}", f"TimeLimit={limit}")
    cluster.wait(lambda: cluster.states(job)["0"] != "RUNNING", "the time-out", 300)
    cluster.call("scontrol", "update", f"JobId={job}", "TimeLimit=60")


# what is done, how often of 1,000 faults, and to which cell
FAULTS: tuple[tuple[str, Callable, int, dict], ...] = (
    ("Slurm: warning of a time limit (USR1)", warn, 2, SHORT),
    ("Slurm: SIGTERM by scancel", terminate, 1, SHORT),
    ("Slurm: scancel, submitted again", cancel, 2, SHORT),
    ("Slurm: requeue", requeue, 3, SHORT),
    ("Slurm: preemption", preempt, 3, SHORT),
    ("Slurm: preemption before the first sample", preempt_early, 2, SHORT),
    ("Slurm: drained node", drain, 2, SHORT),
    ("Slurm: killed slurmd, its orphan writes on", kill_daemon, 2, LONG),
    ("Slurm: time limit", time_out, 1, LONGEST),
)


def parts(sweep: Sweep) -> list[Path]:
    return list(sweep.results.glob("*/*/parts/*.jsonl"))


def node_of(cluster: Cluster, job: str) -> str:
    told = cluster.call("scontrol", "show", "job", "-o", job)
    return told.split(" NodeList=")[1].split()[0]


def inject(zygote: Zygote, wanted: dict[str, int], tallies: Sequence[Tally], seed: int, stop: StopRequest) -> None:
    """So many faults of each name in FAULTS, one after the other, each in a sweep of one cell, into
    the tally of its place there. Whatever one of them raises is a broken promise of its own and
    does not cost the others."""
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))
    cluster = Cluster(folder)
    try:
        expected = {}
        for number, options in enumerate((SHORT, LONG, LONGEST)):
            expected[str(options)] = undisturbed(zygote, folder / f"undisturbed-{number}", options)
        cluster.start()
        turns = [(number, i) for i, (name, *_) in enumerate(FAULTS) for number in range(wanted[name])]
        for number, i in sorted(turns):  # by turns, so that an interrupted measurement has some of each
            if stop.requested:
                break
            (name, act, _, options), tally = FAULTS[i], tallies[i]
            began, place = time.monotonic(), folder / f"{i}-{number}"
            place.mkdir()
            rng = random.Random(f"{seed} {name} {number}")
            try:
                tally.add(*_one(cluster, place, act, options, expected[str(options)], rng))
            except Exception as error:
                tally.broken.append(f"{number}: {error!r}")
                _put_right(cluster)
            tally.seconds += time.monotonic() - began
            told = f"{tally.injected} injected, {len(tally.broken)} promises broken"
            print(f"{name}: {told}", file=sys.stderr, flush=True)
    finally:
        cluster.stop()
        shutil.rmtree(folder, ignore_errors=True)


def _put_right(cluster: Cluster) -> None:
    """No job and no drained node is left for the next fault."""
    cluster.call("scancel", "-u", "root", check=False)
    for node in NODES:
        cluster.call("scontrol", "update", f"NodeName={node}", "State=RESUME", check=False)


def _one(
    cluster: Cluster, place: Path, act: Callable, options: dict, expected: dict, rng: random.Random
) -> tuple[Harm, list[str], list[str]]:
    with contextlib.closing(Server()) as server:
        account = {"WANDB_API_KEY": KEY, "WANDB_BASE_URL": server.url, "HOME": str(place)}
        sweep = Sweep(cluster, place, options, account=account)
        if act is time_out:
            sweep.site.write_text(sweep.site.read_text() + "FLAGS+=(--time=60 --signal=USR1@20)\n")
        cluster.wait(cluster.idle, "idle nodes")
        first = sweep.submit("--partition=scavenge")
        if act is preempt_early:
            cluster.wait(lambda: cluster.states(first).get("0") == "RUNNING", "the start")
            time.sleep(rng.uniform(0, 2))
        else:
            sweep.wait_for_rows(rng.randint(4, 20))
        act(cluster, sweep, f"{first}_0")
        safe = on_disk(sweep.results)
        last = sweep.arrays()[-1].split()[0]
        states = cluster.wait_for(last, 600)
        found = harm(sweep.results, expected, safe)
        cell = next(iter(expected))[0]
        rows = server.rows(cell)
        found += Harm(lost=not rows, doubled=max(0, len(rows) - 1) + len(server.state.runs.keys() - {cell}))
        broken = [] if states == {"0": "COMPLETED"} else [f"the job ended as {states}"]
        if found.lost or found.doubled or found.changed:
            broken.append(str(found))
        # an orphan may come to the end alone
        if len(parts(sweep)) < 2 and act not in (kill_daemon, preempt_early):
            broken.append("the fault did not interrupt the cell")
        if "Traceback (most recent call last)" in sweep.log():
            broken.append("a traceback")
        ends = [state for job in dict.fromkeys((first, last)) for state in cluster.states(job).values()]
        return found, ends, [f"{what}: {sweep.log()[-600:]}" for what in broken]
