"""`slurm/sweep.sh` with stand-ins for Slurm's commands: what a real cluster does too seldom or too late to be waited for."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT


@pytest.fixture
def project(tmp_path):
    """A folder that looks like the project, with the script in it."""
    for name in ("harness", "slurm", "bin"):
        (tmp_path / name).mkdir()
    (tmp_path / "harness" / "run.py").touch()
    shutil.copy(ROOT / "slurm" / "sweep.sh", tmp_path / "slurm")
    return tmp_path


def stand_in(project: Path, name: str, *lines: str) -> None:
    """A command that the script finds under this name."""
    file = project / "bin" / name
    file.write_text("\n".join(("#!/bin/bash", *lines, "")))
    file.chmod(0o755)


def run(project: Path, script: Path, *arguments: str, cwd: Path | None = None, **environment: str):
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "PLSH_", "SITE", "RESULTS"))}
    kept |= {"PATH": f"{project / 'bin'}:{os.environ['PATH']}", **environment}
    return subprocess.run(["bash", script, *arguments], cwd=cwd or project, env=kept, capture_output=True, text=True)


@pytest.mark.parametrize("warning", ["USR1", "TERM"])
def test_a_step_that_ends_as_the_warning_comes_is_requeued(project, warning):
    """The shell gets the signal while it waits, a moment before the step ends."""
    stand_in(project, "srun", "echo '{\"rows_written\": 3}'", f"kill -{warning} $PPID", "exit 75")
    stand_in(project, "scontrol", 'echo "$@"')
    (project / "rows").write_text("1 attn=plsh\n")
    cell = {"PLSH_ROOT": str(project), "PLSH_ROWS": str(project / "rows"), "PLSH_FIRST": "0"}
    cell |= {"SLURM_JOB_ID": "8", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "0"}
    for _ in range(10):
        found = run(project, project / "slurm" / "sweep.sh", **cell)
        assert found.returncode == 75
        assert found.stdout.splitlines()[-1] == "requeue 7_0"
