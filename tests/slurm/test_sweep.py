"""`sbatch slurm/sweep.sh` on a real Slurm, and what a cluster does to a sweep. After each: every sample once, and the
records are those of an undisturbed run."""

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from harness import reader
from tests.conftest import ROOT
from tests.slurm.cluster import Cluster, missing

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing() or "")
SWEEP = """\
# A sweep of the tests.
name: test
program: harness/run.py
method: grid
parameters:
  model: {value: MODEL}
  attn: {value: plsh}
  masks: {values: [MASKS]}
  draws: {value: 2}
  context: {value: 160}
  samples: {value: SAMPLES}
  batch: {value: 2}
  seed: {value: SEED}
  kernel: {value: sdpa}
  dtype: {value: float32}
  references: {value: none}
  tracking: {value: disabled}
"""
SITE = """\
FLAGS=(--gres=gpu:1 --cpus-per-task=1 --mem=900M)
CAP=2
PYTHON={python}
export OMP_NUM_THREADS=1
"""
FACTS = ("key", "draw", "doc_hash", "prediction", "score")


@pytest.fixture(scope="module")
def cluster():
    """A folder with a short name: sockets lie in it."""
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))
    made = Cluster(folder)
    made.start()
    yield made
    made.stop()
    shutil.rmtree(folder, ignore_errors=True)


class Sweep:
    """A sweep file in a folder of its own, submitted as a user would."""

    def __init__(self, cluster: Cluster, folder: Path, *, masks="2", samples=8, seed=0, model="tiny"):
        self.cluster, self.results, self.file = cluster, folder / "results", folder / "test.yaml"
        text = SWEEP.replace("MASKS", masks).replace("SAMPLES", str(samples)).replace("SEED", str(seed))
        self.file.write_text(text.replace("MODEL", model))
        (folder / "site.sh").write_text(SITE.format(python=sys.executable))
        self.environment = {"SITE": str(folder / "site.sh"), "RESULTS": str(self.results)}
        self.output = folder / "submit-%j.log"

    def submit(self, *flags: str) -> str:
        """sbatch, wait until it has submitted the array; the array's id, or what it said where nothing was missing."""
        command = ("sbatch", "--parsable", f"--output={self.output}", *flags, "slurm/sweep.sh", str(self.file))
        found = subprocess.run(
            command, cwd=ROOT, env=self.cluster.environment | self.environment, capture_output=True, text=True
        )
        assert found.returncode == 0, found.stderr
        job = found.stdout.strip()
        self.cluster.wait_for(job)
        said = Path(str(self.output).replace("%j", job)).read_text()
        return said.split("array job ")[1].split(",")[0] if "array job " in said else said

    def records(self) -> list[reader.Record]:
        return reader.records(self.results)

    def written(self) -> int:
        return sum(part.read_bytes().count(b"\n") for part in self.results.glob("*/*/parts/*.jsonl"))

    def check(self, undisturbed: dict[str, list]) -> None:
        """Every sample once, and what an undisturbed run has."""
        for record in self.records():
            assert record.status == "ok"
            assert facts(record) == undisturbed[record.cell_id]

    def log(self) -> str:
        return "".join(p.read_text() for p in self.results.glob("sweeps/*/*.log"))


def facts(record: reader.Record) -> list:
    return [[row[f] for f in FACTS] for row in record.rows.values()]


def in_one_go(folder: Path, **options) -> dict[str, list]:
    """What the same cells give without a cluster."""
    sweep = Sweep(None, folder, **options)
    command = [sys.executable, "-m", "harness.sweep", str(sweep.file), "--results", str(sweep.results)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return {r.cell_id: facts(r) for r in sweep.records()}


LONG = {"masks": "3", "samples": 400, "seed": 5}


@pytest.fixture(scope="module")
def long_run(tmp_path_factory):
    return in_one_go(tmp_path_factory.mktemp("undisturbed"), **LONG)


def test_a_sweep_to_its_end_with_a_cap_and_a_failing_cell(cluster, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(ROOT / "harness" / "embedded" / "tiny", broken)
    (broken / "model.safetensors").write_bytes(b"not weights")
    sweep = Sweep(cluster, tmp_path, masks="2, 4, 8")
    text = sweep.file.read_text()
    sweep.file.write_text(
        text.replace(
            "model: {value: tiny}",
            f"model: {{value: local}}\n  model.path: {{values: [{broken}, {broken.parent / 'whole'}]}}",
        ).replace("masks: {values: [2, 4, 8]}", "masks: {values: [2, 4]}")
    )
    shutil.copytree(ROOT / "harness" / "embedded" / "tiny", tmp_path / "whole")
    array = sweep.submit()
    most = 0

    def ended() -> bool:
        nonlocal most
        states = list(cluster.states(array).values())
        most = max(most, states.count("RUNNING"))
        return bool(states) and not {"PENDING", "RUNNING", "COMPLETING"} & set(states)

    cluster.wait(ended, "the sweep", 150)
    assert sorted(cluster.states(array).values()) == ["COMPLETED", "COMPLETED", "FAILED", "FAILED"]
    assert most == 2, "the cap"
    assert sorted(r.status for r in sweep.records()) == ["error", "error", "ok", "ok"]
    assert "could not be loaded" in sweep.log()
    assert sweep.submit().startswith("Nothing is missing")


def test_a_warned_a_requeued_and_a_preempted_cell_lose_nothing(cluster, tmp_path, long_run):
    sweep = Sweep(cluster, tmp_path, **LONG)
    array = sweep.submit("--partition=scavenge")

    def interrupted(how) -> None:
        before = sweep.written()
        cluster.wait(lambda: sweep.written() > before + 20, "samples")
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
    sweep.check(long_run)
    parts = list(sweep.results.glob("*/*/parts/*.jsonl"))
    assert len(parts) >= 4, "it was stopped three times and went on"
    assert sum(p.read_bytes().count(b"\n") for p in parts) == LONG["samples"], "a sample was computed twice"


def test_a_drained_node_and_a_node_that_dies_with_its_orphan(cluster, tmp_path, long_run):
    cluster.call("scontrol", "update", "NodeName=n2", "State=DRAIN", "Reason=test")
    sweep = Sweep(cluster, tmp_path, **LONG)
    array = sweep.submit()
    cluster.wait(lambda: sweep.written() > 20, "samples")
    job = cluster.call("scontrol", "show", "job", "-o", f"{array}_0")
    assert "NodeList=n1" in job, "a drained node got a cell"
    cluster.call("scontrol", "update", "NodeName=n2", "State=RESUME")
    cluster.kill_node("n1")
    assert cluster.wait_for(array, 200) == {"0": "COMPLETED"}
    sweep.check(long_run)
    cluster.start_node("n1")
    cluster.wait(lambda: cluster.call("sinfo", "-h", "-N", "-p", "main", "-o", "%t").split() == ["idle"] * 2, "n1")


def test_a_cell_that_is_stopped_before_its_first_sample_is_not_requeued_for_ever(cluster, tmp_path):
    sweep = Sweep(cluster, tmp_path, masks="2", samples=40)
    (sweep.results).mkdir()
    site = Path(sweep.environment["SITE"])
    site.write_text(site.read_text() + "PYTHON=$PLSH_FAKE\nMAX_REQUEUES=2\n")
    fake = tmp_path / "python"
    line = json.dumps({"status": "stopped", "rows_written": 0})
    fake.write_text(f'#!/bin/bash\n[ "$2" = harness.sweep ] && exec {sys.executable} "$@"\necho \'{line}\'\nexit 75\n')
    fake.chmod(0o755)
    sweep.environment["PLSH_FAKE"] = str(fake)
    array = sweep.submit()
    assert cluster.wait_for(array) == {"0": "FAILED"}
    assert "Give the job more time" in sweep.log()
