"""The reader pairs records sample by sample; tables are drawn from it alone."""

from harness.analysis import reader, table
from harness.common.files import short_hash, write_atomic
from harness.results.store import TaskStore

TASK = "0" * 16


def record(results, name, scores, *, draws=1, hashes=None, context=64, **attn):
    """Write one record by hand: scores by sample number. Returns the cell's id."""
    identity = {
        "model": {"weights": "w"},
        "dtype": "float32",
        "context": context,
        "data_seed": 0,
        "draws": draws if draws > 1 else None,
        "attn": {"name": name, **attn},
    }
    cell = {"cell_id": short_hash(identity), "identity": identity, "model": "m", "label": name}
    cell["pairs_per_row"] = {"fused": 3.0}
    write_atomic(results / cell["cell_id"] / "cell.json", cell)
    store = TaskStore(results, cell["cell_id"], "retrieval", TASK)
    part = store.open_part("a")
    hashes = hashes or {}
    for k, s in scores.items():
        part.write([{"key": k, "score": s, "nll": 0.1, "draw": k % draws, "doc_hash": hashes.get(k, f"d{k}")}])
    part.close()
    metric = {"value": sum(scores.values()) / len(scores), "low": 0.0, "high": 1.0, "n": len(scores)}
    metrics = {"retrieval/accuracy": {**metric, "unit": "fraction"}}
    store.finish({"status": "ok", "samples": len(scores), "options": {}, "metrics": metrics})
    return cell["cell_id"]


def by_name(results):
    return {r.attention.name: r for r in reader.records(results)}


def test_difference_is_paired_by_sample(tmp_path):
    record(tmp_path, "alibi", {i: 1.0 for i in range(20)})
    record(tmp_path, "plsh", {i: float(i % 4 != 0) for i in range(16)}, draws=4)
    found = by_name(tmp_path)
    change = reader.difference(found["plsh"], found["alibi"])
    assert change.n == 16 and change.value == -0.25 and change.low < -0.25 < change.high


def test_samples_with_another_document_are_not_paired(tmp_path):
    record(tmp_path, "alibi", {i: 1.0 for i in range(8)})
    record(tmp_path, "window", {i: 0.0 for i in range(8)}, hashes={0: "other", 1: "other"})
    found = by_name(tmp_path)
    assert reader.difference(found["window"], found["alibi"]).n == 6


def test_reference_asks_the_same_question(tmp_path):
    record(tmp_path, "alibi", {0: 1.0}, context=128)
    record(tmp_path, "window", {0: 1.0})
    found = by_name(tmp_path)
    assert reader.reference_of(found["window"], found.values()) is None


def test_unfinished_and_broken_cells_do_not_stop_the_reader(tmp_path):
    cell_id = record(tmp_path, "alibi", {0: 1.0})
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "cell.json").write_text('{"cell')
    TaskStore(tmp_path, cell_id, "other", TASK).open_part("a").write([{"key": 0}])
    assert {(r.task, r.status) for r in reader.records(tmp_path)} == {("retrieval", "ok"), ("other", "stopped")}


def test_table_shows_status_difference_and_escapes_markdown(tmp_path):
    record(tmp_path, "alibi", {i: 1.0 for i in range(20)})
    record(tmp_path, "wi|ndow", {i: 0.5 for i in range(20)})
    drawn = table.comparison(reader.records(tmp_path))
    text = drawn.markdown()
    assert "wi\\|ndow" in text and "-0.500" in text and len({line.count(" | ") for line in text.splitlines()[2:4]}) == 1


def test_results_folder_that_is_not_there_is_empty(tmp_path):
    assert reader.records(tmp_path / "absent") == []
