"""The store as one table: every record once, what has not changed not read again."""

import csv
import json

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest

from harness import collect
from harness.analysis import reader
from harness.results import index
from harness.results.store import TaskStore
from tests.analysis.test_reader import TASK, record

CELLS: dict[str, str] = {}  # ids of the cells of `results`


@pytest.fixture
def results(tmp_path):
    """Two finished records, one that failed and one that was stopped."""
    folder = tmp_path / "results"
    CELLS["alibi"] = record(folder, "alibi", {i: 1.0 for i in range(6)})
    CELLS["plsh"] = record(folder, "plsh", {i: float(i % 2) for i in range(4)}, draws=2, masks=16)
    TaskStore(folder, CELLS["alibi"], "other", TASK).open_part("a").write([{"key": 0}, {"key": 1}])
    failed = {"status": "oom", "error": "MemoryError", "message": "too much", "attempt": "a"}
    TaskStore(folder, CELLS["alibi"], "worse", TASK).record_attempt("a", failed)
    (folder / "torn").mkdir()
    (folder / "torn" / "cell.json").write_text('{"cell')
    return folder


def test_a_row_holds_what_the_record_says(results):
    table, read = collect.collect(results)
    rows = {(row["cell_id"], row["task"]): row for row in table.to_pylist()}
    assert read == 4 and len(rows) == 4
    plsh = rows[CELLS["plsh"], "retrieval"]
    metric = next(r for r in reader.records(results) if r.cell_id == CELLS["plsh"]).metrics["retrieval/accuracy"]
    assert plsh["retrieval/accuracy"] == metric.value == 0.5
    assert (plsh["retrieval/accuracy_low"], plsh["retrieval/accuracy_high"], plsh["retrieval/accuracy_n"]) == (0, 1, 4)
    assert plsh["attn.masks"] == 16 and plsh["context"] == 64 and plsh["model.weights"] == "w"
    assert plsh["status"] == "ok" and plsh["samples"] == 4 and plsh["pairs_per_row.fused"] == 3.0
    worse, other = rows[CELLS["alibi"], "worse"], rows[CELLS["alibi"], "other"]
    assert worse["status"] == "oom" and worse["why"] == "MemoryError: too much" and worse["samples"] == 0
    assert other["status"] == "stopped" and other["samples"] == 2 and other["retrieval/accuracy"] is None


def test_only_what_has_changed_is_read_again(results):
    first, _ = collect.collect(results)
    again, read = collect.collect(results)
    assert read == 0 and again.equals(first)
    TaskStore(results, CELLS["alibi"], "other", TASK).open_part("b").write([{"key": 2}])
    third, read = collect.collect(results)
    assert read == 1 and third.num_rows == 4
    assert {r["samples"] for r in third.to_pylist() if r["task"] == "other"} == {3}
    (results / CELLS["plsh"] / "cell.json").unlink()
    assert collect.collect(results)[0].num_rows == 3
    for cache in (results / "index").glob("*.jsonl"):
        cache.write_text("no cache")
    whole, read = collect.collect(results)
    assert read == 3 and whole.num_rows == 3


def test_a_cell_that_was_written_again_is_read_again(results):
    collect.collect(results)
    file = results / CELLS["plsh"] / "cell.json"
    cell = json.loads(file.read_text())
    cell["pairs_per_row"] = {"fused": 12.5}
    file.write_text(json.dumps(cell))
    table, read = collect.collect(results)
    assert read == 1
    assert {r["pairs_per_row.fused"] for r in table.to_pylist() if r["cell_id"] == CELLS["plsh"]} == {12.5}


def test_a_store_that_was_empty_at_first(tmp_path):
    (tmp_path / "results").mkdir()
    assert collect.collect(tmp_path / "results")[0].num_rows == 0
    record(tmp_path / "results", "alibi", {0: 1.0})
    for read in (1, 0):
        table, again = collect.collect(tmp_path / "results")
        assert table.num_rows == 1 and again == read


def test_a_column_of_two_types_does_not_stop_it(results):
    collect.collect(results)
    record(results, "window", {0: 1.0}, cutoff=2, sinks=16)
    assert pa.types.is_integer(collect.collect(results)[0]["attn.sinks"].type)
    record(results, "stock", {0: 1.0}, sinks="many")
    table, read = collect.collect(results)
    assert table.num_rows == 6 and read == 1
    assert set(table["attn.sinks"].to_pylist()) == {None, "16", "many"}


def test_a_column_of_booleans_and_numbers_does_not_stop_it(results):
    record(results, "window", {0: 1.0}, cutoff=2, sinks=True)
    assert pa.types.is_boolean(collect.collect(results)[0]["attn.sinks"].type)
    record(results, "window", {0: 1.0}, cutoff=3, sinks=1)
    table, read = collect.collect(results)
    assert read == 1 and set(table["attn.sinks"].to_pylist()) == {None, "True", "1"}
    assert pa.types.is_integer(table["attn.masks"].type)  # what goes together stays what it is


def test_an_integer_of_over_64_bits_does_not_stop_it(results):
    record(results, "window", {0: 1.0}, cutoff=2, sinks=2**70)
    assert set(collect.collect(results)[0]["attn.sinks"].to_pylist()) == {None, str(2**70)}


def test_a_cache_of_another_version_is_read_anew(results, monkeypatch):
    collect.collect(results)
    row_of = collect.row_of
    monkeypatch.setattr(collect, "row_of", lambda record: {**row_of(record), "new": 1})
    monkeypatch.setattr(index, "VERSION", 0)
    table, read = collect.collect(results)
    assert read == 4 and table["new"].to_pylist() == [1] * 4
    assert collect.collect(results)[1] == 0


def test_both_formats_hold_the_same(results, tmp_path, capsys):
    for name in ("o.parquet", "o.csv"):
        assert collect.main([str(results), "--out", str(tmp_path / name)]) == 0
    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    (torn,) = document.pop("left_out")
    assert torn["where"] == str(results / "torn" / "cell.json") and torn["why"]
    assert document == {"status": "ok", "records": 4, "read": 0, "out": str(tmp_path / "o.csv")}
    a, b = pyarrow.parquet.read_table(tmp_path / "o.parquet"), pyarrow.csv.read_csv(tmp_path / "o.csv")
    assert a.column_names == b.column_names and "_trace" not in a.column_names
    assert a["retrieval/accuracy"].to_pylist() == b["retrieval/accuracy"].to_pylist()


def test_no_text_is_a_formula_to_a_spreadsheet(results, tmp_path):
    formula = '=HYPERLINK("http://evil","x")'
    for number, text in enumerate((formula, "+1+1", "-2+3", "@SUM(A1)", "\t=1", "a=b", "plain")):
        record(results, "window", {0: 1.0}, cutoff=-number, note=text)
    table, _ = collect.collect(results)
    collect.write(table, tmp_path / "o.csv")
    collect.write(table, tmp_path / "o.parquet")
    text = (tmp_path / "o.csv").read_text()
    with (tmp_path / "o.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert not [v for row in rows for n, v in row.items() if v[:1] in tuple("=+@\t\r") or n[:1] == "="]
    assert {r["attn.note"] for r in rows} >= {f"'{formula}", "'+1+1", "'-2+3", "'@SUM(A1)", "'\t=1", "a=b", "plain"}
    assert "-6" in {r["attn.cutoff"] for r in rows} and ",-6," in text  # numbers are what they are
    assert formula in pyarrow.parquet.read_table(tmp_path / "o.parquet")["attn.note"].to_pylist()


def test_mistakes_are_answered_in_a_sentence(results, tmp_path, capsys):
    for arguments, says in (
        (["--out", "x.xlsx"], "must end in"),
        ([str(tmp_path / "absent"), "--out", "x.csv"], "no folder"),
        ([str(results), "--out", str(results / "torn" / "cell.json" / "x.csv")], "cannot be written"),
    ):
        assert collect.main(arguments) == 2
        out, err = capsys.readouterr()
        assert says in err and json.loads(out.splitlines()[-1])["status"] == "invalid"


def test_the_status_of_a_sweep_and_the_table_share_one_cache(results):
    """Neither makes the other ask again, and neither takes the other's word for its own."""
    key = (CELLS["alibi"], f"other-{TASK}")
    collect.collect(results)
    assert index.Index(results).look(CELLS["alibi"][:2], {key: 5})[key].status == "stopped"
    (shard,) = (results / "index").glob(CELLS["alibi"][:2] + ".jsonl")
    stands = shard.read_text()
    assert collect.collect(results)[1] == 0 and index.Index(results).look(CELLS["alibi"][:2], {key: 5})[key].rows == 2
    assert shard.read_text() == stands
    TaskStore(results, *(CELLS["alibi"], "other", TASK)).open_part("b").write([{"key": 2}])
    assert index.Index(results).look(CELLS["alibi"][:2], {key: 5})[key].rows == 3 and collect.collect(results)[1] == 1
