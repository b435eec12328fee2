"""The mirror with the real wandb-core: offline, online, again, resumed, and from an offline
folder."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from harness import sync
from harness.common.files import read_json, short_hash, write_atomic
from harness.tracking.content import content_of
from harness.tracking.mirror import mirror, offline_run, remove_offline_run, save_destination
from tests.tracking.conftest import cell_of, finish_again, stop_after, task_json
from tests.tracking.server import ENTITY

WANDB = str(Path(sys.executable).with_name("wandb"))


def offline_folders(results: Path) -> list[Path]:
    return sorted((results / "wandb").glob("offline-run-*"))


def inspect(folder: Path, *arguments: str) -> str:
    """What W&B's own reader finds in an offline run."""
    command = [WANDB, "leet", "inspect", *arguments, str(folder)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def without_files(row: dict) -> dict:
    return {k: v for k, v in row.items() if not k.startswith("_") and not isinstance(v, dict)}


def test_offline_run_reads_back_as_the_store_says(nobody, results):
    cell_id = cell_of(results)
    outcome = mirror(results, [cell_id], mode="offline", limit=60)
    assert list(outcome.done) == [cell_id]
    assert not outcome.failed
    (folder,) = offline_folders(results)
    summary = json.loads(inspect(folder, "--summary", "--json"))
    content, text = content_of(results, cell_id), json.dumps(summary)
    assert cell_id in text
    assert content["name"] in text
    assert '"exit_code": 0' in text
    records = inspect(folder, "--json")
    for name, value in content["row"].items():
        assert name in records
        assert str(value)[:6] in records

    assert mirror(results, [cell_id], mode="offline", limit=60).current == [cell_id]
    assert mirror(results, [cell_id], mode="online", without_key="offline", limit=60).current == [cell_id]
    assert offline_folders(results) == [folder]
    record = read_json(task_json(results))
    record["metrics"]["retrieval/accuracy"]["value"] = 0.25
    write_atomic(task_json(results), record)
    mirror(results, [cell_id], mode="offline", limit=60)
    (newer,) = offline_folders(results)  # the last state counts
    assert newer != folder


def test_online_run_holds_the_record_once(account, results):
    cell_id = cell_of(results)
    content = content_of(results, cell_id)
    assert sync.main([str(results)]) == 0
    run = account.state.runs[cell_id]
    assert (run["state"], run["exitcode"]) == ("finished", 0)
    assert (run["project"], run["groupName"], run["jobType"]) == ("positional-lsh", "tiny 160 tokens", "eval")
    assert run["displayName"] == content["name"]
    assert run["tags"] == content["tags"]
    config = json.loads(run["config"])
    assert {k: v["value"] for k, v in config.items() if k != "_wandb"} == content["config"]
    named = json.dumps(config["_wandb"])
    assert all(f'"{metric}"' in named for metric in ("context", "masks", "retrieval/*"))
    (row,) = account.rows(cell_id)
    assert without_files(row) == content["row"]
    assert content["summary"].items() <= account.state.summary[cell_id].items()
    (table,) = [v for k, v in account.state.files.items() if k.startswith(f"{cell_id}/media/table/retrieval/rows")]
    assert len(json.loads(table)["data"]) == 8
    (view,) = [v for k, v in account.state.files.items() if k.startswith("artifact/") and k.endswith("/result.json")]
    assert json.loads(view) == content["files"]["result.json"]
    assert not list(results.glob("wandb/*"))  # an online run leaves nothing behind

    operations = len(account.state.operations)
    assert sync.main([str(results)]) == 0
    assert len(account.state.operations) == operations
    (results / cell_id / "wandb.json").unlink()  # as if another machine had uploaded it
    assert sync.main([str(results)]) == 0
    assert len(account.rows(cell_id)) == 1


def test_a_requeued_cell_continues_its_run(account, results):
    cell_id = cell_of(results)
    finished = stop_after(results, 3)
    assert not mirror(results, [cell_id], mode="online", limit=60).unreached
    run = account.state.runs[cell_id]
    assert run["exitcode"] == 75
    assert run["preempting"]
    assert account.rows(cell_id) == []
    assert account.state.summary[cell_id]["retrieval/samples"] == 3
    finish_again(results, finished)
    assert not mirror(results, [cell_id], mode="online", limit=60).unreached
    assert list(account.state.runs) == [cell_id]
    assert account.state.runs[cell_id]["exitcode"] == 0
    (row,) = account.rows(cell_id)
    assert without_files(row) == content_of(results, cell_id)["row"]
    assert account.state.summary[cell_id]["retrieval/status"] == "ok"
    config = json.loads(account.state.runs[cell_id]["config"])
    assert config["environment"]["value"]["start"].startswith("2030")
    record = read_json(task_json(results))  # more samples, other metrics: one row more, and the last one counts
    record["metrics"]["retrieval/accuracy"]["value"] = 0.375
    write_atomic(task_json(results), record)
    assert not mirror(results, [cell_id], mode="online", limit=60).unreached
    assert [r["retrieval/accuracy"] for r in account.rows(cell_id)] == [row["retrieval/accuracy"], 0.375]
    assert account.state.summary[cell_id]["retrieval/accuracy"] == 0.375


def test_wandb_sync_of_the_offline_folder_and_harness_sync_agree(account, results, tmp_path):
    cell_id = cell_of(results)
    mirror(results, [cell_id], mode="offline", limit=60)
    (folder,) = offline_folders(results)
    subprocess.run([WANDB, "sync", "--yes", str(folder)], cwd=tmp_path, check=True, capture_output=True)
    by_wandb = without_files(account.rows(cell_id)[0])
    assert by_wandb == content_of(results, cell_id)["row"]
    assert sync.main([str(results)]) == 0
    assert len(account.rows(cell_id)) == 1
    assert account.state.runs[cell_id]["exitcode"] == 0


def test_under_an_agent_the_server_names_the_run(account, monkeypatch, results):
    """The cell's own run is the agent's; its references keep their own ids and stay out of the
    sweep."""
    from harness.common.signals import StopRequest
    from harness.tracking.options import TrackingConfig
    from harness.tracking.tracker import Tracker

    cell_id = cell_of(results)
    about = read_json(results / cell_id / "cell.json")
    about["identity"]["data_seed"] = 1
    other = about["cell_id"] = short_hash(about["identity"])
    shutil.copytree(results / cell_id, results / other)
    write_atomic(results / other / "cell.json", about)
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep1")
    monkeypatch.setenv("WANDB_RUN_ID", "dictated")
    config = TrackingConfig(mode="online", project="sweeps", entity=ENTITY, group=None, tags=["mine"])
    with Tracker(StopRequest()) as tracker:
        tracker.add(results, cell_id, config, requested=True)
        tracker.add(results, other, config, requested=False)
    runs = account.state.runs
    assert set(runs) == {"dictated", other}
    assert runs["dictated"]["sweep"] == "sweep1"
    assert not runs[other].get("sweep")
    assert json.loads(runs["dictated"]["config"])["cell_id"]["value"] == cell_id
    assert runs["dictated"]["project"] == "sweeps"
    assert "mine" in runs["dictated"]["tags"]


def test_sync_without_a_key_or_a_record_says_what_to_do(nobody, results, tmp_path, capsys):
    assert sync.main([str(results)]) == 2
    assert "wandb login" in capsys.readouterr().err
    assert sync.main([str(tmp_path / "nothing")]) == 2
    assert "no records" in capsys.readouterr().err
    assert sync.main([str(results), "--cell", "abc"]) == 2
    assert cell_of(results) in capsys.readouterr().err


def test_destination_is_remembered_for_a_later_sync(account, results):
    cell_id = cell_of(results)
    save_destination(results, cell_id, project="theirs", entity=ENTITY, group="g7", tags=[])
    assert sync.main([str(results)]) == 0
    assert (account.state.runs[cell_id]["project"], account.state.runs[cell_id]["groupName"]) == ("theirs", "g7")
    assert sync.main([str(results), "--project", "mine"]) == 0  # another project: uploaded there too
    assert account.state.runs[cell_id]["project"] == "mine"


@pytest.mark.parametrize("state", ["unwritable", "gone"])
def test_a_store_that_cannot_be_written_is_no_crash(nobody, results, state, monkeypatch):
    monkeypatch.setattr("harness.tracking.mirror.write_atomic", lambda *_: (_ for _ in ()).throw(OSError(28, "full")))
    cells = [cell_of(results)] if state == "unwritable" else ["0" * 16]
    outcome = mirror(results, cells, mode="offline", limit=60)
    assert not outcome.failed
    assert len(outcome.done) == (state == "unwritable")


def test_only_a_run_of_the_mirror_is_ever_removed(tmp_path):
    results, precious = tmp_path / "results", tmp_path / "precious"
    for folder in (precious, results / "cell", results / "wandb" / "offline-run-made", results / "wandb" / "notes"):
        folder.mkdir(parents=True)
        (folder / "run-x.wandb").touch()
    (results / "wandb" / "offline-run-empty").mkdir()
    (results / "wandb" / "offline-run-file").touch()
    (results / "wandb" / "offline-run-link").symlink_to(precious)
    before = sorted(tmp_path.rglob("*"))
    odd = ["..", ".", "", "/", "../cell", "../../precious", str(precious), "notes", "offline-run-made/../notes"]
    odd += ["offline-run-empty", "offline-run-file", "offline-run-link", "offline-run-made/", "offline-run-gone"]
    for name in [*odd, "offline-run-made\n", "offline-run-made\0", None, 7, ["offline-run-made"]]:
        assert offline_run(results, name) is None
        remove_offline_run(results, name)
    assert sorted(tmp_path.rglob("*")) == before
    (results / "wandb" / "offline-run-made" / "files").symlink_to(precious)
    remove_offline_run(results, "offline-run-made")
    assert not (results / "wandb" / "offline-run-made").exists()
    assert (precious / "run-x.wandb").exists()


def test_nothing_is_removed_through_a_link_in_place_of_the_folder_of_all_runs(tmp_path):
    results, theirs = tmp_path / "results", tmp_path / "theirs"
    (theirs / "offline-run-a").mkdir(parents=True)
    (theirs / "offline-run-a" / "run-a.wandb").touch()
    results.mkdir()
    (results / "wandb").symlink_to(theirs)
    remove_offline_run(results, "offline-run-a")
    assert (theirs / "offline-run-a").is_dir()


@pytest.mark.parametrize("folder", ["..", "/precious"])
def test_a_note_that_names_another_folder_removes_nothing(nobody, results, folder):
    cell_id = cell_of(results)
    precious = results.parent / "precious"
    precious.mkdir()
    folder = str(precious) if folder == "/precious" else folder
    mirror(results, [cell_id], mode="offline", limit=60)
    note = results / cell_id / "wandb.json"
    content = read_json(note)
    content["written"][0]["folder"] = folder
    write_atomic(note, content)
    record = read_json(task_json(results))
    record["metrics"]["retrieval/accuracy"]["value"] = 0.25
    write_atomic(task_json(results), record)
    assert list(mirror(results, [cell_id], mode="offline", limit=60).done) == [cell_id]
    assert precious.is_dir()
    assert task_json(results).is_file()


def test_a_note_of_another_form_is_as_none(nobody, results):
    cell_id = cell_of(results)
    note, forms = results / cell_id / "wandb.json", ["[1]", "7", '"text"', "[" * 5000, "\0"]
    forms += ['{"wish": [1], "written": {"a": 1}}', '{"written": [null, {"mode": "offline"}, {"mode": [1]}]}']
    for content in [*forms, '{"wish": {"tags": 3, "project": [1]}}']:
        note.write_text(content)
        save_destination(results, cell_id, project="theirs", tags=["a"])
        assert read_json(note) == {"wish": {"project": "theirs", "tags": ["a"]}}
    note.write_text('{"wish": {"tags": 3, "project": [1]}, "written": [null, {"mode": "offline"}, {"mode": [1]}]}')
    assert list(mirror(results, [cell_id], mode="offline", limit=60).done) == [cell_id]
    assert mirror(results, [cell_id], mode="offline", limit=60).current == [cell_id]
