"""`sbatch slurm/sweep.sh` on a real Slurm, and what a cluster does to a sweep. After each: every sample once, and the
records are those of an undisturbed run."""

import json
import shutil
import sys
import tempfile
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.faults.stores import Harm, harm
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
    made.start()
    yield made
    made.stop()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def long_run(zygote, tmp_path_factory):
    return undisturbed(zygote, tmp_path_factory.mktemp("undisturbed"), LONG)


@pytest.fixture
def server():
    server = Server()
    yield server
    server.close()


def test_a_sweep_to_its_end_with_a_cap_and_a_failing_cell(cluster, tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    for folder in (whole, broken):
        shutil.copytree(ROOT / "harness" / "embedded" / "tiny", folder)
    (broken / "model.safetensors").write_bytes(b"not weights")
    sweep = Sweep(cluster, tmp_path, {"model": "local", "model.path": [str(broken), str(whole)]})
    sweep.site.write_text(sweep.site.read_text() + "CAP=1\n")  # there is room for two
    array = sweep.submit()
    most = 0

    def ended() -> bool:
        nonlocal most
        states = list(cluster.states(array).values())
        most = max(most, states.count("RUNNING"))
        return bool(states) and not {"PENDING", "RUNNING", "COMPLETING"} & set(states)

    cluster.wait(ended, "the sweep", 150)
    assert sorted(cluster.states(array).values()) == ["COMPLETED", "FAILED"]
    assert most == 1, "the cap"
    assert sorted(r.status for r in sweep.records()) == ["error", "ok"]
    assert "could not be loaded" in sweep.log()
    assert sweep.submit().startswith("Nothing is missing")


def test_a_warned_a_requeued_and_a_preempted_cell_lose_nothing(cluster, tmp_path, long_run, server):
    account = {"WANDB_API_KEY": KEY, "WANDB_BASE_URL": server.url, "HOME": str(tmp_path)}
    sweep = Sweep(cluster, tmp_path, LONG, account=account)
    array = sweep.submit("--partition=scavenge")

    def interrupted(how) -> None:
        sweep.wait_for_rows(10)
        how()
        cluster.wait(lambda: cluster.states(array)["0"] != "RUNNING", "the stop")

    interrupted(lambda: cluster.call("scancel", "--signal=USR1", f"{array}_0"))
    assert 0 < sweep.written() < LONG["samples"]
    interrupted(lambda: cluster.call("scontrol", "requeue", f"{array}_0"))
    urgent = []

    def preempt() -> None:
        job = cluster.call("sbatch", "--parsable", "--exclusive", "--nodes=2", "--output=/dev/null", "--wrap=sleep 1")
        urgent.append(job.strip())

    interrupted(preempt)
    assert cluster.wait_for(urgent[0]) == {"0": "COMPLETED"}
    assert cluster.wait_for(array) == {"0": "COMPLETED"}
    assert harm(sweep.results, long_run, {}) == Harm(), "lost, changed, or a sample was computed twice"
    assert len(list(sweep.results.glob("*/*/parts/*.jsonl"))) >= 4, "it was stopped three times and went on"
    (record,) = sweep.records()
    assert list(server.state.runs) == [record.cell_id] and server.state.runs[record.cell_id]["exitcode"] == 0
    (row,) = server.rows(record.cell_id)
    assert row["retrieval/accuracy"] == record.metrics["retrieval/accuracy"]["value"]


def test_a_drained_node_and_a_node_that_dies_with_its_orphan(cluster, tmp_path, long_run):
    cluster.call("scontrol", "update", "NodeName=n2", "State=DRAIN", "Reason=test")
    sweep = Sweep(cluster, tmp_path, LONG)
    array = sweep.submit()
    sweep.wait_for_rows(4)
    job = cluster.call("scontrol", "show", "job", "-o", f"{array}_0")
    assert "NodeList=n1" in job, "a drained node got a cell"
    cluster.call("scontrol", "update", "NodeName=n2", "State=RESUME")
    cluster.kill_node("n1")
    assert cluster.wait_for(array, 200) == {"0": "COMPLETED"}
    found = harm(sweep.results, long_run, {})
    assert (found.lost, found.doubled, found.changed) == (0, 0, 0)
    cluster.start_node("n1")
    cluster.wait(cluster.idle, "n1")


def test_a_cell_that_waits_is_not_submitted_again(cluster, tmp_path):
    sweep = Sweep(cluster, tmp_path, {})
    sweep.site.write_text(sweep.site.read_text() + "FLAGS+=(--hold)\n")
    array = sweep.submit()
    assert sweep.submit().startswith("Not submitted again: 1 cells")
    cluster.call("scancel", array)


def test_a_cell_that_is_stopped_before_its_first_sample_is_not_requeued_for_ever(cluster, tmp_path):
    sweep = Sweep(cluster, tmp_path, {})
    sweep.results.mkdir()
    sweep.site.write_text(sweep.site.read_text() + "PYTHON=$PLSH_FAKE\nMAX_REQUEUES=2\n")
    fake = tmp_path / "python"
    line = json.dumps({"status": "stopped", "rows_written": 0})
    fake.write_text(f'#!/bin/bash\n[ "$2" = harness.sweep ] && exec {sys.executable} "$@"\necho \'{line}\'\nexit 75\n')
    fake.chmod(0o755)
    sweep.environment["PLSH_FAKE"] = str(fake)
    array = sweep.submit()
    assert cluster.wait_for(array) == {"0": "FAILED"}
    assert "Give the job more time" in sweep.log()
