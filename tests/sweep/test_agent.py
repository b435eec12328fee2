"""The same file under `wandb sweep` and `wandb agent`: the same rows in the same order, and
duplicates that say so."""

import errno
import json
import os
import resource
import shlex
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import yaml
from hydra import compose, initialize_config_dir

from harness.common.paths import CONF
from harness.common.signals import StopRequest
from harness.experiment.config import register_schema
from harness.experiment.plan import plan
from harness.sweep.__main__ import main
from harness.sweep.cells import expand
from harness.sweep.grid import read_grid
from harness.tracking.mirror import claim
from harness.tracking.options import TrackingConfig
from harness.tracking.tracker import Tracker
from tests.conftest import ROOT
from tests.sweep.agents import ENTITY, sweep_server
from tests.tracking.conftest import cell_of, made, nobody, results  # noqa: F401

# wandb's own command line; its agent looks for work every five seconds otherwise
WANDB = "import wandb.wandb_agent as a; a.Agent.POLL_INTERVAL = 0.05; from wandb.cli.cli import cli; cli()"
# in the place of `-m harness.run`: note the arguments
NOTE = "import json, sys; print(json.dumps(sys.argv[1:]), file=open('rows', 'a'))"
# likewise: run them in a process that the zygote forks
FORK = "import sys, pathlib, tests.zygote as z; sys.exit(z.fork(pathlib.Path(sys.argv[1]), sys.argv[2:]).wait())"


@pytest.fixture
def server(nobody, monkeypatch):  # noqa: F811
    server = sweep_server()
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef0123456789abcdef01234567")
    monkeypatch.setenv("WANDB_BASE_URL", server.url)
    yield server
    server.close()


def test_three_roads_give_the_same_rows_in_the_same_order(server, tmp_path, monkeypatch, capsys):
    parameters = {
        "masks": {"values": [4, 2]},
        "task": {"value": ["retrieval"]},
        "attn": {"values": ["plsh", "alibi"]},
        "references": {"value": "none"},
        "attn.cutoff": {"value": "null"},
    }
    content = {"program": "harness/run.py", "method": "grid", "parameters": parameters}
    (tmp_path / "ours.yaml").write_text(yaml.safe_dump(content))
    note = ["${env}", "${interpreter}", "-c", NOTE, "${args_no_hyphens}"]
    (tmp_path / "theirs.yaml").write_text(yaml.safe_dump({**content, "command": note}))
    monkeypatch.chdir(tmp_path)
    for arguments in (["sweep", "--project", "p", "theirs.yaml"], ["agent", f"{ENTITY}/p/sweep1"]):
        done = subprocess.run([sys.executable, "-c", WANDB, *arguments], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
    agent = [json.loads(line) for line in (tmp_path / "rows").read_text().splitlines()]
    grid = read_grid(tmp_path / "ours.yaml")
    rows = [list(grid.overrides(number)) for number in range(1, len(grid) + 1)]
    assert agent == rows
    assert len(rows) == 4
    assert main(["ours.yaml", "--missing"]) == 0  # what Slurm's script reads: rows that are one cell told once
    missing = [line.split(" ", 1) for line in capsys.readouterr().out.splitlines()]
    assert [int(number) for number, _ in missing] == [1, 2, 3]
    words = ["bash", "-c", f"printf '%s\\n' {missing[2][1]}"]
    assert subprocess.run(words, capture_output=True, text=True).stdout.splitlines()[:-1] == rows[2]


def test_two_agents_at_once_compute_each_cell_once_or_say_whose_it_is(server, zygote, tmp_path, monkeypatch, capsys):
    """The first two rows are one cell: both agents begin with it."""
    fixed = {"draws": 2, "context": 96, "samples": 8, "kernel": "sdpa", "references": "none", "lease": 60}
    parameters = {name: {"value": value} for name, value in fixed.items()}
    parameters |= {"attn": {"values": ["alibi", "plsh"]}, "masks": {"values": [2, 4]}}
    command = ["${env}", "${interpreter}", "-c", FORK, str(zygote.place), f"results={tmp_path / 'results'}"]
    content = {"program": "harness/run.py", "method": "grid", "parameters": parameters}
    (tmp_path / "ours.yaml").write_text(yaml.safe_dump(content))
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump({**content, "command": [*command, "${args_no_hyphens}"]}))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.chdir(tmp_path)
    subprocess.run([sys.executable, "-c", WANDB, "sweep", "--project", "p", "sweep.yaml"], check=True, timeout=120)
    agent = [sys.executable, "-c", WANDB, "agent", f"{ENTITY}/p/sweep1"]
    agents = [subprocess.Popen(agent, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) for _ in range(2)]
    assert [process.wait(timeout=200) for process in agents] == [0, 0]
    runs = server.state.runs
    configs = {name: json.loads(run["config"]) for name, run in runs.items()}
    assert len(runs) == 4
    assert all(run["exitcode"] == 0 for run in runs.values())
    of_cell: dict[str, list[str]] = {}
    for name, config in configs.items():
        of_cell.setdefault(config["cell_id"]["value"], []).append(name)
    assert len(of_cell) == 3
    assert set(of_cell) == {row.cell_id for row in expand(read_grid(tmp_path / "ours.yaml"))}
    assert main(["ours.yaml", "--missing", "--results", "none"]) == 0  # what Slurm's script runs
    missing = [shlex.split(line)[1:] for line in capsys.readouterr().out.splitlines()]
    register_schema()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        assert set(of_cell) == {plan(compose("config", overrides=line)).cell.cell_id for line in missing}
    for names in of_cell.values():
        (first,) = [name for name in names if "duplicate_of" not in configs[name]]
        assert all(configs[name]["duplicate_of"]["value"] == first for name in names if name != first)
        assert {name: len(server.rows(name)) for name in names} == {name: int(name == first) for name in names}
    keys = [json.loads(line)["key"] for p in tmp_path.glob("results/*/*/parts/*") for line in p.open()]
    assert len(keys) == 3 * 8


def test_a_duplicate_says_whose_it_is_and_shows_no_figures(server, links, monkeypatch, results):  # noqa: F811
    cell_id = cell_of(results)
    config = TrackingConfig(mode="online", project="p", entity=ENTITY, group=None)
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep1")
    for run_id in ("first", "second", "first"):  # the third is the first, requeued
        monkeypatch.setenv("WANDB_RUN_ID", run_id)
        with Tracker(StopRequest()) as tracker:
            tracker.add(results, cell_id, config, requested=True)
    runs = server.state.runs
    assert set(runs) == {"first", "second"}
    assert all(run["exitcode"] == 0 for run in runs.values())
    first, second = (json.loads(runs[name]["config"]) for name in ("first", "second"))
    assert "duplicate_of" not in first
    assert second["duplicate_of"]["value"] == "first"
    assert second["cell_id"]["value"] == first["cell_id"]["value"] == cell_id
    assert len(server.rows("first")) == 1
    assert server.rows("second") == []
    assert "duplicate" in runs["second"]["tags"]
    assert runs["second"]["sweep"] == "sweep1"
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep2")
    monkeypatch.setenv("WANDB_RUN_ID", "other")
    with Tracker(StopRequest()) as tracker:
        tracker.add(results, cell_id, config, requested=True)
    assert len(server.rows("other")) == 1  # another sweep has a run of its own, with figures


@pytest.fixture(params=["hard links", "no hard links"])
def links(request, monkeypatch):
    """A file system with hard links, or one without."""

    def refused(*_):
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    if request.param == "no hard links":
        monkeypatch.setattr(os, "link", refused)


def test_of_two_agents_at_the_same_moment_one_has_the_cell(links, tmp_path):
    (tmp_path / "cell").mkdir()
    runs = [f"run{i}" for i in range(8)]
    for sweep_id in map(str, range(30)):
        gate = threading.Barrier(len(runs))

        def ask(run_id: str, sweep_id=sweep_id, gate=gate) -> str:
            gate.wait()
            return claim(tmp_path, "cell", sweep_id, run_id)

        with ThreadPoolExecutor(len(runs)) as pool:
            (first,) = set(pool.map(ask, runs))
        assert first in runs
        assert claim(tmp_path, "cell", sweep_id, "late") == first
    assert len(list((tmp_path / "cell").iterdir())) == 30  # no draft is left


def test_on_a_full_disk_nothing_is_claimed_and_nothing_left(tmp_path):
    (tmp_path / "cell").mkdir()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        with pytest.raises(OSError):
            claim(tmp_path, "cell", "sweep", "run")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list((tmp_path / "cell").iterdir())
    assert claim(tmp_path, "cell", "sweep", "other") == "other"
