"""Several processes on one cell: they divide its samples, and none waits for one that is gone."""

import json
import os
import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest
from torch.distributed import HashStore

from harness.analysis import reader
from harness.common import ranks
from harness.common.errors import UserError
from harness.common.ranks import Team
from harness.experiment.refusals import refuse_ranks
from harness.tasks.retrieval.task import RETRIEVAL
from harness.tasks.throughput.task import THROUGHPUT

OPTIONS = ("context=160", "samples=9", "draws=4", "batch=2", "masks=4", "references=none")


def rows(results) -> list[dict]:
    """All rows in all part files, by key, without what differs by machine."""
    found = [json.loads(line) for part in results.glob("*/*/parts/*.jsonl") for line in part.read_text().splitlines()]
    return sorted(({k: v for k, v in row.items() if k != "seconds"} for row in found), key=lambda row: row["key"])


@pytest.fixture
def in_team(monkeypatch):
    """in_team(rank): a team of two, whose ranks all live in this process and have this store
    between them."""
    store = HashStore()
    monkeypatch.setattr(Team, "_join", lambda self: setattr(self, "_store", store))
    monkeypatch.setenv("WORLD_SIZE", "2")

    def call(rank: int) -> Team:
        monkeypatch.setenv("RANK", str(rank))
        return Team().__enter__()

    call.store = store
    return call


@pytest.fixture
def impatient(monkeypatch):
    for name, seconds in {"JOIN_TIMEOUT": 0.3, "HEARTBEAT_TIMEOUT": 0.2, "STOP_TIMEOUT": 0.1}.items():
        monkeypatch.setattr(ranks, name, seconds)


def test_two_processes_have_the_rows_of_one(run, tmp_path):
    _, alone, _, _ = run(*OPTIONS, f"results={tmp_path / 'one'}")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "-m", "harness.run"]
    done = subprocess.run(
        [*command, *OPTIONS, f"results={tmp_path / 'two'}"], capture_output=True, text=True, env=dict(os.environ)
    )
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("{")]
    document = json.loads(line)
    assert document["cell_id"] == alone["cell_id"]
    assert document["rows_written"] == 9
    assert done.stdout.count("PLSH S=4") == 2  # once in each of the two tables
    assert rows(tmp_path / "two") == rows(tmp_path / "one")
    parts = [len(p.read_text().splitlines()) for p in (tmp_path / "two").glob("*/*/parts/*.jsonl")]
    assert sorted(parts) == [4, 5]
    (record,) = reader.records(tmp_path / "two")
    assert record.environment.ranks == 2
    assert record.summary()["metrics"] == alone["metrics"]


def test_what_rank_0_decides_holds_for_the_turn(in_team):
    lead, other = in_team(0), in_team(1)
    for team in (lead, other):
        team.next_job()
        team.next_turn()
    lead.decide(None)
    lead.decide("ok")  # of a task that was computed: nobody waits for it any more
    assert other.decision(lambda: False) is None
    other.report(status="ok", rows=3, failure=None)
    assert lead.reports(lambda: False) == [{"rank": 1, "status": "ok", "rows": 3, "failure": None}]
    for team in (lead, other):
        team.next_turn()
    lead.decide("ok")
    assert other.decision(lambda: False) == "ok"


def test_a_rank_that_is_gone_is_not_waited_for(in_team, impatient):
    lead, other = in_team(0), in_team(1)
    for team in (lead, other):
        team.next_job()
        team.next_turn()
    assert other.decision(lambda: False) == "stopped"  # rank 0 never gave a sign
    in_team.store.set("beat/1", "1")
    assert lead.reports(lambda: False)[0]["status"] == "stopped"  # nor another one after its first
    threading.Timer(0.1, other.end_job).start()
    assert lead.reports(lambda: False)[0]["status"] == "stopped"  # left without a report


@pytest.mark.parametrize(
    ("told", "code", "status"),
    [
        ({"status": "stopped", "rows": 1, "failure": None}, 75, "stopped"),
        ({"status": "oom", "rows": 0, "failure": {"status": "oom", "error": "MemoryError", "message": "no"}}, 1, "oom"),
        ({"status": "ok", "rows": 9, "failure": None}, 2, "error"),  # rows in another folder that is called the same
    ],
)
def test_what_another_rank_met_is_the_outcome(run, in_team, impatient, monkeypatch, tmp_path, told, code, status):
    monkeypatch.setattr("harness.experiment.execute.ROWS_TIMEOUT", 0.2)
    monkeypatch.setenv("RANK", "0")
    in_team.store.set("report/1/1/1", json.dumps(told))
    found, document, _, err = run(*OPTIONS, f"results={tmp_path}")
    (record,) = reader.records(tmp_path)
    assert found == code
    assert record.status == status
    assert len(record.rows) == 5
    assert ("rank 1: no" in err) == (status == "oom")


def test_another_rank_prints_nothing_and_leaves_no_record(run, in_team, impatient, monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(sys, "argv", ["harness.run", *OPTIONS, f"results={tmp_path}"])
    in_team.store.set("go/1/1", '{"status": null}')
    from harness.run import main

    assert main() == 0
    assert capsys.readouterr().out == ""
    assert len(rows(tmp_path)) == 4
    assert not [p for p in tmp_path.glob("**/*.json") if "data" not in p.parts]
    assert json.loads(in_team.store.get("report/1/1/1")) == {"status": "ok", "rows": 4, "failure": None}


@pytest.mark.parametrize(
    ("task", "device_map", "says"),
    [(RETRIEVAL, "auto", "model.device_map=auto"), (THROUGHPUT, None, "task=throughput")],
)
def test_what_cannot_be_divided_is_refused(monkeypatch, task, device_map, says):
    model = SimpleNamespace(device_map=device_map)
    refuse_ranks(task, model)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match=says):
        refuse_ranks(task, model)
    refuse_ranks(RETRIEVAL, SimpleNamespace(device_map=None))


@pytest.mark.parametrize("environment", [{"WORLD_SIZE": "two"}, {"WORLD_SIZE": "2", "RANK": "0"}])
def test_an_environment_without_a_launcher_is_a_sentence(run, monkeypatch, environment):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    code, document, _, _ = run(*OPTIONS)
    assert code == 2
    assert "torchrun" in document["message"]
