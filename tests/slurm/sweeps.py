"""Sweeps of one or a few cells on the throw-away cluster, submitted as a user would."""

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import yaml

from harness import reader
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
    """A sweep file in a folder of its own. options: of its cells, in place of CELL's; a list is an axis. account: the
    variables of W&B, which is off without them."""

    def __init__(self, cluster: Cluster, folder: Path, options: Mapping, *, account: Mapping[str, str] | None = None):
        self.cluster, self.results, self.file = cluster, folder / "results", folder / "test.yaml"
        axes = {k: {"values": v} if isinstance(v, list) else {"value": v} for k, v in {**CELL, **options}.items()}
        content = {"program": "harness/run.py", "method": "grid", "parameters": axes}
        self.file.write_text(yaml.safe_dump(content))
        self.site = folder / "site.sh"
        self.site.write_text(SITE.format(python=sys.executable))
        self.environment = {"SITE": str(self.site), "RESULTS": str(self.results)}
        self.environment |= {"WANDB_MODE": "online", **account} if account else {"WANDB_MODE": "disabled"}
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

    def wait_for_rows(self, more: int) -> None:
        """Wait until so many rows more than now are written."""
        before = self.written()
        self.cluster.wait(lambda: self.written() >= before + more, "samples")

    def log(self) -> str:
        return "".join(p.read_text() for p in self.results.glob("sweeps/*/*.log"))


def undisturbed(zygote: Zygote, folder: Path, options: Mapping) -> dict:
    """What the store holds after the same cell without a cluster."""
    arguments = [f"{name}={value}" for name, value in {**CELL, **options}.items()]
    process = zygote.start([*arguments, "tracking=disabled", f"results={folder}"])
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return counted(folder)
