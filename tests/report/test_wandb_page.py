"""The W&B report: the same sections as the local page, saved once and then kept up to date in
place."""

import json

import pytest

from harness.report import build, wandb_page
from harness.report.__main__ import main
from tests.report import made
from tests.report.reports_server import ENTITY, Server


@pytest.fixture
def server(monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.delenv("WANDB_ENTITY", raising=False)
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    served = Server()
    monkeypatch.setenv("WANDB_BASE_URL", served.url)
    yield served
    served.close()


@pytest.fixture
def store(tmp_path):
    results = tmp_path / "results"
    made.sweep(results, models=["m"], contexts=[256, 512], masks=[4, 16], samples=20)
    return results


def test_saved_once_and_then_in_place(server, store, monkeypatch, capsys):
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    assert main([str(store), "--wandb"]) == 0
    first = json.loads(capsys.readouterr().out.splitlines()[-1])["url"]
    before = next(iter(server.views.values()))["spec"]
    made.record(made.cell(store, made.ALIBI, model="new", fused=127.5), lambda k: 1.0)
    assert main([str(store), "--wandb"]) == 0
    second = json.loads(capsys.readouterr().out.splitlines()[-1])["url"]
    assert first == second
    assert len(server.views) == 1
    assert first.startswith(f"{server.url}/{ENTITY}/positional-lsh/reports/")
    assert next(iter(server.views.values()))["spec"] != before
    assert server.operations.count("upsertView") == 2


def test_every_section_and_value_of_the_page_is_in_it(server, store, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    page = build.build_page(store)
    spec = wandb_page.build_report(page, title="t", entity=ENTITY, project="p")._to_model().spec.model_dump_json()
    for section in page.sections:
        assert json.dumps(section.title)[1:-1] in spec
    exact = next(iter(page.sections[2].blocks[0].panels[0].series)).points[0]
    told = exact.note.split("\n")[1]
    assert told in spec
    assert "retrieval/accuracy" in spec
    assert "masks" in spec


def test_goes_through_the_librarys_own_loader(server, store, monkeypatch):
    import wandb_workspaces.reports.v2 as wr

    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    report = wandb_page.build_report(build.build_page(store), title="t", entity=ENTITY, project="p")
    again = wr.Report._from_model(report._to_model())
    assert [type(b) for b in again.blocks] == [type(b) for b in report.blocks]
    assert [b.text for b in again.blocks if isinstance(b, wr.MarkdownBlock)] == [
        b.text for b in report.blocks if isinstance(b, wr.MarkdownBlock)
    ]
    grids = [b for b in again.blocks if isinstance(b, wr.PanelGrid)]
    assert grids
    assert grids[0].panels[0].y == wr.SummaryMetric("retrieval/accuracy")
    assert "'m'" in str(grids[0].runsets[0].filters), "the runs of other models would be drawn among these"


def test_without_a_key_it_says_what_is_needed(server, store, monkeypatch, capsys):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    assert main([str(store), "--wandb"]) == 2
    assert "WANDB_API_KEY" in capsys.readouterr().err
    assert not server.operations


def test_a_server_that_refuses_is_a_sentence(server, store, monkeypatch, capsys):
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    server.refuse = True
    assert main([str(store), "--wandb"]) == 2
    told = capsys.readouterr()
    assert "did not take the report" in told.err
    assert "Traceback" not in told.err


@pytest.mark.parametrize("operation", ["", "upsertView"])
@pytest.mark.parametrize("code", [200, 400])
def test_a_server_that_is_broken_is_a_sentence(server, store, monkeypatch, capsys, code, operation):
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    server.broken, server.broken_at = code, operation
    assert main([str(store), "--wandb"]) == 2
    told = capsys.readouterr()
    assert "did not take the report" in told.err
    assert "Traceback" not in told.err
    assert json.loads(told.out.splitlines()[-1])["status"] == "invalid"
