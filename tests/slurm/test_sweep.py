"""`slurm/sweep.sh` on a real Slurm, and what a cluster does to a sweep. After each: every sample
once, the records are those of an undisturbed run, and W&B has one run of each cell."""

import shutil
import tempfile
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.faults.stores import harm, on_disk
from tests.models.random_models import lose_a_weight
from tests.slurm.cluster import Cluster, missing
from tests.slurm.sweeps import Sweep, undisturbed
from tests.tracking.conftest import KEY
from tests.tracking.server import Server

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing() or "")
LONG = {"masks": 3, "samples": 160, "seed": 5}


@pytest.fixture(scope="module")
def cluster():
    """A folder with a short name: sockets lie in it."""
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))
    made = Cluster(folder)
    try:
        made.start()
        yield made
    finally:
        made.stop()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def server():
    server = Server()
    yield server
    server.close()


def account(server: Server, home: Path) -> dict[str, str]:
    return {"WANDB_API_KEY": KEY, "WANDB_BASE_URL": server.url, "HOME": str(home)}


def check(sweep: Sweep, expected: dict, server: Server, *, twice: int = 0) -> None:
    """The store is that of the undisturbed run, and so is W&B. twice: how many rows may have been
    computed again."""
    found = harm(sweep.results, expected, {})
    assert (found.lost, found.doubled, found.changed) == (0, 0, 0) and found.twice <= twice, found
    assert server.state.runs.keys() == {cell for cell, _ in expected}
    for record in sweep.records():
        assert server.state.runs[record.cell_id]["exitcode"] == 0
        (row,) = server.rows(record.cell_id)
        assert row["retrieval/accuracy"] == record.metrics["retrieval/accuracy"].value


# a cell that is stopped after each sample, one that is stopped before the first, one that a signal
# kills as it loads
ENDLESS = """\
#!/bin/bash
case "$2 $3" in
    harness.sweep*) printf '%s\\n' '1 end=sample' '2 end=nothing' '3 end=load' '4 end=good' '5 end=good' ;;
    *end=sample) echo '{"rows_written": 1}'; exit 75 ;;
    *end=nothing) echo '{"rows_written": 0}'; exit 75 ;;
    *end=load) kill -TERM $$ ;;
esac
"""


@pytest.fixture(scope="module")
def endless(cluster, tmp_path_factory):
    """A sweep of such cells, its array, and what a second submission says. Made early: it waits
    most of its time."""
    folder = tmp_path_factory.mktemp("endless")
    sweep = Sweep(cluster, folder, {}, sweep=["endless.yaml"])
    (folder / "python").write_text(ENDLESS)
    (folder / "python").chmod(0o755)
    sweep.set(f"PYTHON={folder}/python", "MAX_REQUEUES=2", "CAP=3")
    return sweep, sweep.submit_here(), sweep.submit()


@pytest.fixture(scope="module")
def broken(cluster, tmp_path_factory):
    """A sweep of one cell whose model lacks a weight, the job that submits its array, early, too,
    and its W&B."""
    folder = tmp_path_factory.mktemp("broken")
    shutil.copytree(ROOT / "harness" / "embedded" / "tiny", folder / "model")
    lose_a_weight(folder / "model")
    server = Server()
    options = {"model": "local", "model.path": str(folder / "model")}
    sweep = Sweep(cluster, folder, options, account=account(server, folder))
    yield sweep, sweep.sbatch(), server
    server.close()


def test_a_sweep_file_to_its_end_with_a_cap(endless, broken, cluster, tmp_path, zygote, server):
    folder, clone = tmp_path / "a folder = (ö)", tmp_path / "a clone"
    folder.mkdir()
    clone.symlink_to(ROOT)
    cells = {"attn": "plsh", "attn.match": "fused", "masks": 4, "context": 256, "samples": 8}
    overrides = [f"{name}={value}" for name, value in cells.items()]
    options = {"sweep": ["sweeps/tiny.yaml", *overrides], "account": account(server, tmp_path), "clone": clone}
    sweep = Sweep(cluster, folder, {}, **options)
    # there is room for four, and none for a second writer; nothing but the site file reaches the
    # cells
    sweep.set("CAP=1", "FLAGS+=(--ntasks-per-node=2 --export=NONE)")
    sweep.set(*(f"export {name}='{value}'" for name, value in sweep.environment.items() if name.startswith("WANDB")))
    array = sweep.submit()
    for model in ("tiny", "tiny-plain"):  # draws and batch as in the file: their defaults
        expected = undisturbed(zygote, tmp_path / "undisturbed", {**cells, "model": model, "draws": 8, "batch": 8})
    most = 0

    def ended() -> bool:
        nonlocal most
        states = list(cluster.states(array).values())
        most = max(most, states.count("RUNNING"))
        return not {"PENDING", "RUNNING", "COMPLETING"} & set(states)

    cluster.wait(ended, "the sweep", 150)
    assert cluster.states(array) == {"0": "COMPLETED", "1": "COMPLETED"}
    assert most == 1, "the cap"
    assert len(expected) == 2
    check(sweep, expected, server)
    assert "Nothing to submit: " in sweep.submit()
    check(sweep, expected, server)
    assert len(list(sweep.results.glob("*/*/parts/*.jsonl"))) == 2, "one process a cell"


def test_a_cell_that_gets_nowhere_is_not_requeued_for_ever(cluster, endless):
    """In arrays as long as this cluster has them, three cells, one after the other."""
    sweep, array, again = endless
    assert again == "Not submitted again: 5 cells that wait or run in earlier arrays.\n"
    later = sweep.arrays()[1].split()[0]
    assert sweep.arrays() == [f"{array} 0 3", f"{later} 3 2"]
    assert cluster.wait_for(later) == {"0": "COMPLETED", "1": "COMPLETED"}
    assert cluster.states(array) == {"0": "FAILED", "1": "FAILED", "2": "FAILED"}
    sample, nothing, load = (next(sweep.results.glob(f"sweeps/*/{array}_{i}.log")).read_text() for i in range(3))
    assert "Requeued 3 times, more than MAX_REQUEUES=2: not again." in sample
    for log in (nothing, load):
        assert log.count("harness.run end=") == 3 and "Stopped three times in a row before a single sample" in log


def test_a_cell_that_fails_and_a_second_submission(cluster, broken):
    sweep, job, server = broken
    assert cluster.wait_for(sweep.answer(job)) == {"0": "FAILED"}
    (record,) = sweep.records()
    assert record.status == "error" and not record.rows
    assert {run: found["exitcode"] for run, found in server.state.runs.items()} == {record.cell_id: 1}
    assert "is not whole" in sweep.log()
    said = sweep.submit_here()
    assert said.startswith("Nothing to submit") and "or failed (--retry failed runs those again)" in said


def test_a_cell_to_which_everything_happens_loses_nothing(cluster, tmp_path, zygote, server):
    expected = undisturbed(zygote, tmp_path / "undisturbed", LONG)
    sweep = Sweep(cluster, tmp_path, LONG, account=account(server, tmp_path))
    array = sweep.submit("--partition=scavenge")
    job = f"{array}_0"

    def stopped() -> None:
        cluster.wait(lambda: cluster.states(array).get("0") == "PENDING", "the stop")

    cluster.wait(lambda: cluster.states(array).get("0") == "RUNNING", "the start")
    command = ("sbatch", "--parsable", "--exclusive", "--nodes=2", "--output=/dev/null", "--wrap=true")
    assert cluster.wait_for(cluster.call(*command).strip()) == {"0": "COMPLETED"}, "the job that preempts it"
    stopped()
    assert sweep.written() == 0 and cluster.fact(job, "Restarts") == "1"
    for interrupt in (("scancel", "--signal=USR1", job), ("scontrol", "requeue", job)):
        sweep.wait_for_rows(10)
        cluster.call(*interrupt)
        stopped()
    sweep.wait_for_rows(10)
    cluster.call("scancel", array)
    assert cluster.wait_for(array) == {"0": "CANCELLED"}
    assert 30 <= sweep.written() < LONG["samples"] and cluster.fact(job, "Restarts") == "3"

    cluster.call("scontrol", "update", "NodeName=n2", "State=DRAIN", "Reason=test")
    array = sweep.submit()
    job = f"{array}_0"
    sweep.wait_for_rows(4)
    assert cluster.fact(job, "NodeList") == "n1", "a drained node got a cell"
    cluster.call("scontrol", "update", "NodeName=n2", "State=RESUME")
    safe = on_disk(sweep.results)
    assert sum(map(len, safe.values())) == sum(len({row["key"] for row in rows}) for rows in safe.values()), "twice"
    cluster.kill_node("n1")  # the cell lives on there, and is started on the other node when this is noticed
    cluster.call("scontrol", "update", "NodeName=n1", "State=DOWN", "Reason=test")
    stopped()
    assert cluster.wait_for(array) == {"0": "COMPLETED"} and cluster.fact(job, "Restarts") == "1"
    cluster.start_node("n1")
    check(sweep, expected, server, twice=LONG["samples"])
    assert len(list(sweep.results.glob("*/*/parts/*.jsonl"))) >= 4, "it was stopped three times with rows, and went on"
