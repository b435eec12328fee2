"""`slurm/sweep.sh` with stand-ins for Slurm's commands: what a real cluster does too seldom to wait for it."""

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


JOB = "JobId=8 JobName=bash Partition=debug Account=me TimeLimit=00:10:00 Command={} WorkDir=/home/me"


def submitting(project: Path, command: str) -> None:
    """A job 8 that was started with this command, a sweep of three cells, and sbatch, which keeps what it is told."""
    stand_in(project, "python", "printf '%s\\n' '1 a=1' '3 a=3' '4 a=4'")
    stand_in(project, "scontrol", f"[ $2 = config ] && echo 'MaxArraySize = 1001' || echo '{JOB.format(command)}'")
    stand_in(project, "squeue")
    stand_in(project, "sbatch", f'echo "$PLSH_ROOT $@ ${{SLURM_JOB_ID:-}}" >> {project}/told', "echo 17")
    (project / "slurm" / "site.sh").write_text(f"PYTHON={project}/bin/python\n")


def test_a_shell_in_an_interactive_job_submits_from_its_own_project(project):
    submitting(project, "bash")
    found = run(project, Path("sweep.sh"), "test.yaml", cwd=project / "slurm", SLURM_JOB_ID="8")
    assert found.returncode == 0, found.stderr
    (told,) = (project / "told").read_text().splitlines()
    assert told.startswith(f"{project} ") and told.endswith("slurm/sweep.sh ")
    assert "debug" not in told and "00:10:00" not in told, "the limits of the interactive job are not the cells'"


def test_a_copy_that_sbatch_runs_finds_the_project_and_hands_on_its_flags(project, tmp_path_factory):
    submitting(project, str(project / "slurm" / "sweep.sh"))
    copy = shutil.copy(project / "slurm" / "sweep.sh", tmp_path_factory.mktemp("spool") / "slurm_script")
    found = run(project, Path(copy), "test.yaml", SLURM_JOB_ID="8")
    assert found.returncode == 0, found.stderr
    (told,) = (project / "told").read_text().splitlines()
    assert told.startswith(f"{project} ") and "--partition=debug --account=me --time=00:10:00" in told


def test_cells_that_wait_or_run_are_not_submitted_again(project):
    submitting(project, "bash")
    script, told = project / "slurm" / "sweep.sh", project / "told"
    assert "Submitted 3 of 3 cells as array job 17" in run(project, script, "test.yaml").stdout
    assert "--gres=gpu:1" in told.read_text(), "one GPU where the site file says nothing"
    # rows 1 and 4 are in the queue; an element of somebody else's job and the end of the second cell change nothing
    stand_in(project, "squeue", "printf '%s\\n' '17 0' '17 2' '16 1'")
    stand_in(project, "sbatch", "echo 18")
    said = run(project, script, "test.yaml").stdout
    assert "Not submitted again: 2 cells" in said and "Submitted 1 of 1 cells as array job 18" in said
    (rows,) = [p.parent / "rows" for p in project.glob("results/sweeps/*/arrays") if p.read_text() == "18 0 1\n"]
    assert rows.read_text() == "3 a=3\n"
    stand_in(project, "squeue", "printf '%s\\n' '17 0' '17 2' '18 0'")
    stand_in(project, "sbatch", "exit 1")
    said = run(project, script, "test.yaml")
    assert (said.returncode, said.stdout) == (0, "Not submitted again: 3 cells that wait or run in earlier arrays.\n")
