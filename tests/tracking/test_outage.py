"""A server that refuses, is silent or dies cannot hold or break anything; what was missed is
uploaded later, once."""

import json
import os
import subprocess
import sys
from shutil import copytree
from types import SimpleNamespace

import psutil
import pytest

from harness.tracking.mirror import mirror
from tests.conftest import ROOT
from tests.tracking.conftest import FAST, KEY, cell_of
from tests.tracking.server import Server

GIVEN_UP, PATIENT = 12, 60  # seconds for a server that is silent, and for one that says what it lacks
OUTAGES = {  # limit, message
    "refused": (PATIENT, "Connection refused"),
    "silent": (GIVEN_UP, ""),
    "wrong key": (PATIENT, "401"),
    "silent after the run was made": (GIVEN_UP, f"no answer within {GIVEN_UP} s"),
    "dies after the run was made": (GIVEN_UP, ""),
    "forbids after the run was made": (PATIENT, "403"),
}


def environment(server: Server, home) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_")}
    return {**kept, "HOME": str(home), "WANDB_API_KEY": KEY, "WANDB_BASE_URL": server.url}


@pytest.fixture(scope="module")
def outages(made, tmp_path_factory):
    """The mirror of one finished cell against each outage, all at once: name -> (server, results,
    process, what it printed)."""
    running, told = {}, {}

    def start(name, server, results):
        return subprocess.Popen(
            [sys.executable, "-m", "harness.sync", str(results), "--timeout", str(OUTAGES[name][0])],
            cwd=ROOT,
            env=environment(server, results.parent),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    for name in OUTAGES:
        server, folder = Server(), tmp_path_factory.mktemp("outage")
        results = copytree(made, folder / "results")
        if name == "refused":
            server.refuse()
        server.mode = name
        running[name] = server, results, start(name, server, results)
    for name, (server, results, process) in running.items():
        out, err = process.communicate(timeout=PATIENT + 60)
        if OUTAGES[name][0] == PATIENT and "no answer within" in err:
            # where six start at once wandb hangs now and then before it asks the server: again, alone
            process = start(name, server, results)
            out, err = process.communicate(timeout=PATIENT + 60)
        told[name] = server, results, process, out, err
    yield told
    for server, *_ in told.values():
        server.close()


@pytest.mark.parametrize("name", OUTAGES)
def test_every_outage_ends_and_is_told_in_a_line(outages, name):
    server, results, process, out, err = outages[name]
    assert process.returncode == 1
    document = json.loads(out.splitlines()[-1])
    assert document["status"] == "failed"
    assert document["left"] == [cell_of(results)]
    (line,) = err.splitlines()
    assert "1 cells are not uploaded" in line
    assert OUTAGES[name][1] in line
    assert not (results / cell_of(results) / "wandb.json").exists()
    assert not (results / "wandb").exists()


@pytest.mark.parametrize("mode", ["refused", "forbids after the run was made"])
def test_a_run_ends_as_if_nothing_had_happened(run, account, results, mode):
    """Its exit code, its table and its last line are those of a run without W&B; on stderr there is
    one line more."""
    if mode == "refused":
        account.refuse()
    account.mode = mode
    options = (*FAST, f"results={results}", "tracking.project=mine")
    expected = run(*options, "tracking=disabled")
    code, document, out, err = run(*options, "tracking.timeout=30")
    assert (code, document, out) == expected[:3]
    assert code == 0
    (line,) = [line for line in err.splitlines() if "Memory" not in line and line not in expected[3].splitlines()]
    assert line.startswith("W&B: 1 of 1 cells not mirrored (")
    assert f"python -m harness.sync {results}" in line
    marker = json.loads((results / cell_of(results) / "wandb.json").read_text())
    assert marker == {"wish": {"project": "mine", "entity": None, "group": None, "tags": []}}


def test_nothing_goes_on_running(outages):
    urls = {server.url for server, *_ in outages.values()}
    for process in psutil.process_iter():
        try:
            found = process.environ().get("WANDB_BASE_URL")
        except (psutil.Error, OSError):
            continue
        assert found not in urls, process.cmdline()


@pytest.mark.parametrize("name", [name for name in OUTAGES if "after" in name])
def test_what_was_missed_is_uploaded_later_once(outages, monkeypatch, name):
    server, results, *_ = outages[name]
    server.mode = "up"
    for key, value in environment(server, results.parent).items():
        monkeypatch.setenv(key, value)
    monkeypatch.delenv("WANDB_MODE")
    for _ in range(2):
        outcome = mirror(results, [cell_of(results)], mode="online", limit=60)
        assert not outcome.failed
        assert not outcome.unreached
    (row,) = server.rows(cell_of(results))
    assert row["retrieval/accuracy"] == server.state.summary[cell_of(results)]["retrieval/accuracy"]


def test_a_silent_server_is_noticed_before_wandb_waits_for_it(server, monkeypatch):
    from harness.tracking import upload

    monkeypatch.setattr(upload.wandb, "setup", lambda: SimpleNamespace(settings=SimpleNamespace(base_url=server.url)))
    upload._check_server(30)
    server.mode = "silent"
    with pytest.raises(OSError, match="timed out"):
        upload._check_server(0.2)


def test_a_second_signal_ends_the_wait(account, results):
    account.mode = "silent"
    outcome = mirror(results, [cell_of(results)], mode="online", limit=60, interrupted=lambda: True)
    assert outcome.unreached
    assert outcome.failed == "interrupted"


def test_a_broken_wandb_is_a_sentence(nobody, results, monkeypatch, tmp_path):
    (tmp_path / "wandb.py").write_text("raise ImportError('built for another machine')\n")
    monkeypatch.setattr("harness.tracking.mirror.ROOT", f"{tmp_path}{os.pathsep}{ROOT}")
    outcome = mirror(results, [cell_of(results)], mode="offline", limit=60)
    assert outcome.unreached
    assert "built for another machine" in outcome.failed
