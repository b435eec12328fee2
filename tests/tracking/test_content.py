"""What a W&B run holds of a cell: the store's names and numbers, and never a prompt."""

import json
import shutil

from harness.common.files import read_json, write_atomic
from harness.results.store import TaskStore
from harness.tracking.content import MAX_TEXT, content_of, hash_of, row_hash
from tests.tracking.conftest import cell_of, stop_after, task_json


def test_names_and_values_are_those_of_the_store(results):
    cell_id = cell_of(results)
    content, record = content_of(results, cell_id), read_json(task_json(results))
    for name, metric in record["metrics"].items():
        assert content["row"][name] == metric["value"]
        assert name not in content["summary"]
        assert content["summary"].get(f"{name}_low") == metric["low"]  # some figures have no interval
    assert content["row"]["context"] == 160
    assert content["row"]["masks"] == 4
    assert content["config"]["cell_id"] == cell_id
    assert content["config"]["attn"]["name"] == "plsh"
    assert content["config"]["task"]["retrieval"] == record["options"]
    assert content["summary"]["retrieval/samples"] == 8
    assert content["status"] == "ok"
    table = content["tables"]["retrieval/rows"]
    assert len(table["data"]) == 8
    assert {"key", "score", "depth", "doc_hash", "prediction"} <= set(table["columns"])


def test_the_hash_follows_the_content(results):
    cell_id = cell_of(results)
    before = content_of(results, cell_id)
    assert hash_of(before) == hash_of(content_of(results, cell_id))
    record = read_json(task_json(results))
    record["environment"]["host"] = "another"
    write_atomic(task_json(results), record)
    moved = content_of(results, cell_id)
    assert hash_of(moved) != hash_of(before)
    assert row_hash(moved) == row_hash(before)
    record["metrics"]["retrieval/accuracy"]["value"] += 0.1
    write_atomic(task_json(results), record)
    assert row_hash(content_of(results, cell_id)) != row_hash(before)


def test_text_of_rows_and_errors_stays_at_home(results):
    cell_id, secret = cell_of(results), "The vault behind the mill opens with the brass key. " * 4
    (part,) = results.glob("*/retrieval-*/parts/*.jsonl")
    rows = [json.loads(line) for line in part.read_text().splitlines()]
    extra = {"prompt": secret, "arguments": [secret], "doc": {"text": secret}, "note": secret, "prediction": secret}
    extra["values"] = {"accuracy": 0.5}
    part.write_text("".join(json.dumps({**row, **extra}) + "\n" for row in rows))
    write_atomic(task_json(results), {**read_json(task_json(results)), "checksums": None})
    store = TaskStore(results, cell_id, "broken", "0" * 16)
    store.record_attempt("a", {"attempt": "a", "status": "error", "error": "E", "message": secret, "traceback": secret})
    content = content_of(results, cell_id)
    assert content["summary"]["broken/error_type"] == "E"
    assert content["status"] == "error"
    columns = set(content["tables"]["retrieval/rows"]["columns"])
    assert columns & {*extra, "doc.text"} == {"prediction"}
    assert "values.accuracy" in columns
    text = json.dumps(content)
    assert secret[:MAX_TEXT] in text
    assert secret[: MAX_TEXT + 1] not in text


def test_a_stopped_cell_has_a_status_and_no_metrics(results):
    stop_after(results, 3)
    content = content_of(results, cell_of(results))
    assert content["status"] == "stopped"
    assert content["row"] == {}
    assert content["tables"] == {}
    assert content["summary"]["retrieval/samples"] == 3


def test_one_task_with_two_options_keeps_both(results):
    """The newest has the plain name."""
    cell_id, record = cell_of(results), read_json(task_json(results))
    record["environment"]["start"] = "2030-01-01T00:00:00Z"
    record["metrics"]["retrieval/accuracy"]["value"] = 0.125
    other = TaskStore(results, cell_id, "retrieval", "f" * 16)
    shutil.copytree(task_json(results).parent / "parts", other.folder / "parts")
    other.finish({**record, "task_id": other.task_id})
    row = content_of(results, cell_id)["row"]
    older = task_json_id(results)
    assert row["retrieval/accuracy"] == 0.125
    assert row[f"retrieval-{older[:6]}/accuracy"] != 0.125


def task_json_id(results) -> str:
    return next(p.name.split("-")[1] for p in results.glob("*/retrieval-*") if not p.name.endswith("f" * 16))


def test_nothing_in_the_store_is_nothing_to_send(tmp_path):
    assert content_of(tmp_path, "0" * 16) is None
