"""Sweeps of one or a few cells on the throw-away cluster, submitted as a user would."""

import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from harness.analysis import reader
from tests.conftest import ROOT
from tests.faults.stores import counted
from tests.slurm.cluster import Cluster
from tests.zygote import Zygote

CELL = {
    "model": "tiny",
    "attn": "plsh",
    "masks": 2,
    "draws": 2,
    "context": 160,
    "samples": 8,
    "batch": 2,
    "kernel": "sdpa",
    "dtype": "float32",
    "references": "none",
}
SITE = """\
FLAGS=(--gres=gpu:1 --cpus-per-task=1 --mem=900M)
CAP=2
PYTHON={python}
export OMP_NUM_THREADS=1
"""


class Sweep:
    """A sweep in a folder of its own. options: of the cells of a file that is made there, in place
    of CELL's; a list is an axis. sweep: what is submitted instead, a file and overrides. account:
    the variables of W&B, which is off without them. clone: the project's folder."""

    def __init__(
        self,
        cluster: Cluster,
        folder: Path,
        options: Mapping,
        *,
        sweep: Sequence[str] = (),
        account: Mapping[str, str] | None = None,
        clone: Path = ROOT,
    ):
        self.cluster, self.results, self.clone = cluster, folder / "results", clone
        self.sweep = list(sweep) or [str(folder / "test.yaml")]
        if not sweep:
            axes = {k: {"values": v} if isinstance(v, list) else {"value": v} for k, v in {**CELL, **options}.items()}
            content = {"program": "harness/run.py", "method": "grid", "parameters": axes}
            Path(self.sweep[0]).write_text(yaml.safe_dump(content))
        self.site = folder / "site.sh"
        self.site.write_text(SITE.format(python=sys.executable))
        self.environment = {"SITE": str(self.site), "RESULTS": str(self.results)}
        self.environment |= {"WANDB_MODE": "online", **account} if account else {"WANDB_MODE": "disabled"}
        self.output = folder / "submit-%j.log"

    def set(self, *lines: str) -> None:
        """More lines of the site file."""
        self.site.write_text("\n".join((self.site.read_text(), *lines, "")))

    def submit(self, *flags: str) -> str:
        """sbatch, wait until it has submitted the array; the array's id, or what it said where
        nothing was missing."""
        return self.answer(self.sbatch(*flags))

    def sbatch(self, *flags: str) -> str:
        """The number of the job that submits the array."""
        command = ("sbatch", "--parsable", f"--output={self.output}", *flags, "slurm/sweep.sh", *self.sweep)
        return self._call(command).strip()

    def answer(self, job: str) -> str:
        self.cluster.wait_for(job)
        return _array(Path(str(self.output).replace("%j", job)).read_text())

    def submit_here(self) -> str:
        """The same from a shell on the login node."""
        return _array(self._call(("bash", "slurm/sweep.sh", *self.sweep)))

    def _call(self, command: Sequence[str]) -> str:
        environment = self.cluster.environment | self.environment
        found = subprocess.run(command, cwd=self.clone, env=environment, capture_output=True, text=True)
        assert found.returncode == 0, found.stdout + found.stderr
        return found.stdout

    def records(self) -> list[reader.Record]:
        return reader.records(self.results)

    def written(self) -> int:
        return sum(part.read_bytes().count(b"\n") for part in self.results.glob("*/*/parts/*.jsonl"))

    def wait_for_rows(self, more: int) -> None:
        """Wait until so many rows more than now are written."""
        before = self.written()
        self.cluster.wait(lambda: self.written() >= before + more, "samples")

    def arrays(self) -> list[str]:
        """The arrays that were submitted, in order: number of the job, first row, rows."""
        lines = [line for p in self.results.glob("sweeps/*/arrays") for line in p.read_text().splitlines()]
        return sorted(lines, key=lambda line: int(line.split()[0]))

    def log(self) -> str:
        return "".join(p.read_text() for p in self.results.glob("sweeps/*/*.log"))


def _array(said: str) -> str:
    return said.split("array job ")[1].split(",")[0] if "array job " in said else said


def undisturbed(zygote: Zygote, folder: Path, options: Mapping) -> dict:
    """What the store in this folder holds after the same cell without a cluster."""
    arguments = [f"{name}={value}" for name, value in {**CELL, **options}.items()]
    process = zygote.start([*arguments, "tracking=disabled", f"results={folder}"])
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return counted(folder)
