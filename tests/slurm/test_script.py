"""`slurm/sweep.sh` with stand-ins for Slurm's commands: what a real cluster does too seldom to wait
for it."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT


@pytest.fixture
def project(tmp_path):
    """A folder that looks like the project, with the script in it."""
    folder = tmp_path / "a clone"
    for name in ("harness", "slurm", "bin"):
        (folder / name).mkdir(parents=True)
    (folder / "harness" / "run.py").touch()
    shutil.copy(ROOT / "slurm" / "sweep.sh", folder / "slurm")
    return folder


def stand_in(project: Path, name: str, *lines: str) -> None:
    """A command that the script finds under this name."""
    file = project / "bin" / name
    file.write_text("\n".join(("#!/bin/bash", *lines, "")))
    file.chmod(0o755)


def run(project: Path, script: Path, *arguments: str, cwd: Path | None = None, **environment: str):
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "PLSH_", "SITE", "RESULTS"))}
    kept |= {"PATH": f"{project / 'bin'}:{os.environ['PATH']}", **environment}
    return subprocess.run(["bash", script, *arguments], cwd=cwd or project, env=kept, capture_output=True, text=True)


def run_cell(project: Path, *srun: str, state: str = "RUNNING", **environment: str):
    """A cell in element 0 of array 7, where srun is these lines and the job's state is this one."""
    stand_in(project, "srun", *srun)
    stand_in(project, "scontrol", f'[ "$1" = show ] && echo "JobId=8 JobState={state} X=$4" || echo "$@"')
    (project / "rows").write_text("1 attn=plsh\n")
    cell = {"PLSH_ROOT": str(project), "PLSH_ROWS": str(project / "rows"), "PLSH_FIRST": "0"}
    cell |= {"SLURM_JOB_ID": "8", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "0", **environment}
    return run(project, project / "slurm" / "sweep.sh", **cell)


@pytest.mark.parametrize("warning", ["USR1", "TERM"])
def test_a_step_that_ends_as_the_warning_comes_is_requeued(project, warning):
    """The shell gets the signal while it waits, a moment before the step ends."""
    for _ in range(10):
        found = run_cell(project, "echo '{\"rows_written\": 3}'", f"kill -{warning} $PPID", "exit 75")
        assert found.returncode == 75
        assert found.stdout.splitlines()[-1] == "requeue 7_0"


@pytest.mark.parametrize("state", ["CANCELLED", "COMPLETING", "REQUEUED"])
def test_a_cell_that_somebody_ended_is_not_requeued(project, state):
    found = run_cell(project, "echo '{\"rows_written\": 3}'", "exit 75", state=state)
    assert found.returncode == 75 and "requeue" not in found.stdout


def test_three_stops_without_a_sample_are_the_last_and_one_with_a_sample_begins_again(project):
    for code, rows, requeued in ((75, 0, 1), (143, 0, 1), (75, 2, 1), (138, 0, 1), (75, 0, 1), (143, 0, 0)):
        found = run_cell(project, f"echo '{{\"rows_written\": {rows}}}'", f"exit {code}")
        assert ("requeue 7_0" in found.stdout) == requeued
        assert ("Stopped three times in a row" in found.stdout) != requeued
    for code in (0, 1, 2, 137):
        found = run_cell(project, "exit " + str(code))
        assert found.returncode == code and "requeue" not in found.stdout and "Stopped" not in found.stdout


def test_an_element_without_the_submitting_environment_has_its_row_and_its_step_has_the_site_file_s(project):
    """FLAGS=(--export=NONE): what the element is to do comes with its arguments, and srun is not
    told to do without."""
    submitting(project, "bash", "FLAGS=--export=NONE", "export HF_HOME=/scratch/hf")
    assert run(project, project / "slurm" / "sweep.sh", "test.yaml", RESULTS="a=b").returncode == 0
    (told,) = (project / "told").read_text().splitlines()
    arguments = told.split(" slurm/sweep.sh ")[1]
    assert "--export=NONE" in told and str(project / "a=b" / "sweeps") in arguments
    rows = next(project.glob("a=b/sweeps/*/rows"))
    stand_in(project, "srun", 'echo "${@: -1} $HF_HOME export=${SLURM_EXPORT_ENV:-}"')
    element = {"SLURM_JOB_ID": "8", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "2", "SLURM_EXPORT_ENV": "NONE"}
    given = ("--rows", str(rows), "0", str(project), str(project / "slurm" / "site.sh"))
    found = run(project, project / "slurm" / "sweep.sh", *given, **element)
    assert found.stdout.splitlines() == ["harness.run a=4", "a=4 /scratch/hf export="]


def test_a_cell_is_one_process_with_all_cores_of_its_job(project):
    told = run_cell(project, 'echo "$@"', SLURM_CPUS_PER_TASK="8", SLURM_NTASKS_PER_NODE="2").stdout
    assert "--ntasks=1 --cpus-per-task=8 " in told
    assert "cpus-per-task" not in run_cell(project, 'echo "$@"').stdout


JOB = "JobId=8 JobName=bash Partition=debug Account=me QOS=short TimeLimit=00:10:00 WorkDir=/home/me"


def submitting(project: Path, command: str, *site: str, most: int = 1001) -> None:
    """A job 8 that was started with this command, a sweep of three cells, and sbatch, which keeps
    what it is told. site: lines of the site file. most: MaxArraySize."""
    stand_in(project, "python", f'echo "$@" >> "{project}/asked"', "printf '%s\\n' '1 a=1' '3 a=3' '4 a=4'")
    shown = f"case \"$*\" in *config) echo 'MaxArraySize = {most}' ;; *-o*) echo '{JOB}' ;;"
    stand_in(project, "scontrol", f"{shown} *) printf '%s\\n' JobId=8 '   Command={command} a.yaml b=1' ;; esac")
    stand_in(project, "squeue")
    stand_in(project, "sbatch", f'echo "$@ ${{SLURM_JOB_ID:-}}" >> "{project}/told"', "echo 17")
    (project / "slurm" / "site.sh").write_text("\n".join((f"PYTHON='{project}/bin/python'", *site, "")))


def test_a_shell_in_an_interactive_job_submits_from_its_own_project(project):
    submitting(project, "bash")
    found = run(project, Path("sweep.sh"), "test.yaml", cwd=project / "slurm", SLURM_JOB_ID="8")
    assert found.returncode == 0, found.stderr
    (told,) = (project / "told").read_text().splitlines()
    assert told.endswith(f"/rows 0 {project} {project}/slurm/site.sh ")
    assert "debug" not in told and "00:10:00" not in told, "the limits of the interactive job are not the cells'"


def as_job(project: Path, folder: Path, **environment: str):
    """Run the copy of the script that sbatch makes."""
    copy = shutil.copy(project / "slurm" / "sweep.sh", folder / "slurm_script")
    return run(project, Path(copy), "test.yaml", SLURM_JOB_ID="8", **environment)


def test_a_copy_that_sbatch_runs_finds_the_project_and_hands_on_its_flags(project, tmp_path):
    submitting(project, str(project / "slurm" / "sweep.sh"))
    found = as_job(project, tmp_path)
    assert found.returncode == 0, found.stderr
    (told,) = (project / "told").read_text().splitlines()
    assert told.endswith(f"/rows 0 {project} {project}/slurm/site.sh ")
    assert "--partition=debug --account=me --qos=short --time=00:10:00 --gres=gpu:1" in told
    assert (
        f"as array job 17, at most 16 at once: {told.split('--export=ALL ')[1].split(' --job-name')[0]}" in found.stdout
    )


@pytest.mark.parametrize("flag", ["--partition=gpu", "-p gpu", "--account=other"])
def test_the_first_job_s_time_does_not_follow_into_a_partition_of_the_site_file(project, tmp_path, flag):
    """A cluster gives every job a time and a QOS: those of a partition that the cells are not
    in."""
    submitting(project, str(project / "slurm" / "sweep.sh"), f"FLAGS=({flag})")
    assert as_job(project, tmp_path).returncode == 0
    (told,) = (project / "told").read_text().splitlines()
    assert flag in told and "--time" not in told and "--qos" not in told


def test_cells_that_wait_or_run_are_not_submitted_again(project):
    submitting(project, "bash")
    script, told = project / "slurm" / "sweep.sh", project / "told"
    said = run(project, script, "test.yaml").stdout
    assert "Submitted 3 of 3 cells as array job 17" in said
    assert "--gres=gpu:1" in told.read_text(), "one GPU where the site file says nothing"
    name = said.split("scancel --name=")[1].strip()
    assert f"--job-name={name} " in told.read_text()
    # rows 1 and 4 are in the queue; another's element and a job of the same number on another
    # cluster change nothing
    stand_in(project, "squeue", f"printf '%s\\n' '17 0 {name}' '17 2 {name}' '16 1 {name}' '17 1 masks'")
    stand_in(project, "sbatch", "echo 18")
    said = run(project, script, "test.yaml").stdout
    assert "Not submitted again: 2 cells" in said and "Submitted 1 of 1 cells as array job 18" in said
    (rows,) = [p.parent / "rows" for p in project.glob("results/sweeps/*/arrays") if p.read_text() == "18 0 1\n"]
    assert rows.read_text() == "3 a=3\n"
    other = rows.parent.name
    stand_in(project, "squeue", f"printf '%s\\n' '17 0 {name}' '17 2 {name}' '18 0 {other}'")
    stand_in(project, "sbatch", "exit 1")
    said = run(project, script, "test.yaml")
    assert (said.returncode, said.stdout) == (0, "Not submitted again: 3 cells that wait or run in earlier arrays.\n")


def test_arrays_are_as_long_as_slurm_and_the_site_file_allow(project):
    submitting(project, "bash", "MAX_ARRAY=2")
    assert run(project, project / "slurm" / "sweep.sh", "test.yaml").returncode == 0
    first, second = (project / "told").read_text().splitlines()
    assert "--array=0-1%16" in first and "afterany" not in first
    assert "--array=0-0%16" in second and "--dependency=afterany:17" in second
    for most, size in ((2, 2), (1, 1), (1001, 3)):
        (project / "told").unlink()
        submitting(project, "bash", most=most)
        assert run(project, project / "slurm" / "sweep.sh", "test.yaml").returncode == 0
        assert f"--array=0-{size - 1}%16" in (project / "told").read_text().splitlines()[0]


def test_what_slurm_refuses_is_said_and_can_be_submitted_later(project):
    submitting(project, "bash", "MAX_ARRAY=2")
    stand_in(project, "sbatch", 'case "$*" in *afterany*) echo "sbatch: too many" >&2; exit 1 ;; esac', "echo 17")
    found = run(project, project / "slurm" / "sweep.sh", "test.yaml")
    assert found.returncode == 1 and "sbatch: too many" in found.stderr
    assert "Slurm refused 1 cells" in found.stdout and "2 of 3 were submitted" in found.stdout
    (arrays,) = project.glob("results/sweeps/*/arrays")
    assert arrays.read_text() == "17 0 2\n"
    shutil.rmtree(project / "results")
    stand_in(project, "sbatch", "exit 1")
    assert run(project, project / "slurm" / "sweep.sh", "test.yaml").returncode == 1
    assert not list(project.glob("results/sweeps/*"))


def test_mistakes_have_a_sentence_and_leave_nothing(project, tmp_path):
    submitting(project, str(project / "slurm" / "sweep.sh"), most=0)
    script = project / "slurm" / "sweep.sh"
    for found, said in (
        (run(project, script, "test.yaml"), "There can be no array: Slurm's MaxArraySize"),
        (run(project, script, "test.yaml", SITE="absent.sh"), f"SITE names {project}/absent.sh, which cannot be read."),
        (as_job(project, tmp_path, SLURM_ARRAY_TASK_ID="1"), "Give sbatch no --array"),
        (as_job(project, tmp_path, PLSH_ROOT=str(tmp_path)), f"There is no project in {tmp_path}."),
    ):
        assert found.returncode == 2 and said in found.stderr
    stand_in(project, "python", "echo 'row 2: a mistake' >&2", "exit 2")
    assert run(project, script, "test.yaml").returncode == 2
    assert not (project / "results").exists() and not (project / "told").exists()


def test_the_sweep_the_results_and_the_site_file_are_named_from_where_one_is(project, tmp_path):
    submitting(project, "bash")
    script, asked = project / "slurm" / "sweep.sh", project / "asked"
    site = tmp_path / "site.sh"
    shutil.copy(project / "slurm" / "site.sh", site)
    (tmp_path / "mine.yaml").touch()
    assert run(project, script, "mine.yaml", cwd=tmp_path, SITE="site.sh", RESULTS="out").returncode == 0
    assert asked.read_text() == f"-m harness.sweep {tmp_path}/mine.yaml --results {tmp_path}/out --missing\n"
    for arguments, file in (
        ((), "tiny"),
        (("a=1",), "tiny"),
        (("--retry", "failed"), "tiny"),
        (("sweeps/b.yaml",), "b"),
    ):
        asked.unlink()
        assert run(project, script, *arguments, cwd=tmp_path).returncode == 0
        assert f"harness.sweep sweeps/{file}.yaml --results {project}/results --missing" in asked.read_text()
