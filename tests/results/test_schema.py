"""Records of today and of before, read as types and written again; what a later version wrote; the
JSON schemas."""

import json

import pydantic
import pytest

from harness.common.paths import ROOT
from harness.common.stats import Metric
from harness.common.streams import say_once
from harness.results import schema
from harness.results.schema import CellDescription, CountsRow, RepeatRow, SampleRow, TaskOutcome

COMMITTED = ROOT / "docs" / "results"
IDENTITY = {"model": {"weights": "w"}, "dtype": "float32", "attn": {"name": "alibi"}, "context": 64, "data_seed": 0}
CELL = {"cell_id": "c", "identity": IDENTITY, "model": "m", "label": "exact ALiBi"}


@pytest.fixture(autouse=True)
def silent_before():
    """What was said once is said again to the next test."""
    say_once.cache_clear()


def lines_of(pattern: str) -> list[dict]:
    return [json.loads(line) for file in COMMITTED.glob(pattern) for line in file.read_text().splitlines()]


def test_committed_records_are_the_same_bytes_when_they_are_written_again(capsys):
    for pattern, kind in (("*/*/cell.json", CellDescription), ("*/*/*/task.json", TaskOutcome)):
        files = list(COMMITTED.glob(pattern))
        assert files
        for file in files:
            raw = json.loads(file.read_text())
            assert json.dumps(kind.read(raw).as_json()) == json.dumps(raw), file
    samples, repeats = lines_of("*/*/retrieval-*/parts/*.jsonl"), lines_of("*/*/throughput-*/parts/*.jsonl")
    assert samples and repeats
    for raw in samples:
        assert json.dumps(SampleRow.read(raw).as_json()) == json.dumps(raw)
    for raw in repeats:
        row = (CountsRow if raw["measurement"] == "facts" else RepeatRow).read(raw)
        assert json.dumps(row.as_json()) == json.dumps(raw) and not row.more
    assert capsys.readouterr().err == ""


def test_fields_that_came_later_have_defaults_and_are_not_written():
    cell, outcome, row = CellDescription.read(CELL), TaskOutcome.read({}), SampleRow.read({"key": 3})
    assert cell.identity.kernel is None and cell.identity.attn.masks is None and cell.as_json() == CELL
    assert not outcome and not outcome.environment and outcome.rows_are == "samples" and outcome.as_json() == {}
    assert row.score is None and row.draw == 0 and row.as_json() == {"key": 3}


def test_a_whole_number_stays_one():
    """So that a record which is read and written again is the same."""
    metric = {"value": 9, "low": None, "high": 9.0, "n": 1, "unit": "bytes"}
    (found,) = TaskOutcome.read({"metrics": {"t/bytes": metric}}).metrics.values()
    assert json.dumps(found.as_dict()) == json.dumps(metric) and found == Metric(9, None, 9.0, 1, "bytes")


def test_a_file_of_a_later_version_is_refused():
    """What it says may mean something else."""
    for kind, written in ((CellDescription, {**CELL, "schema": 2}), (TaskOutcome, {"status": "ok", "schema": 3})):
        with pytest.raises(ValueError, match="later version .* known here"):
            kind.read(written)


def test_what_a_method_says_of_itself_is_no_later_field(capsys):
    cell = CellDescription.read({**CELL, "schema": 1, "alignment": {"heads": 2}})
    assert cell.more["alignment"] == {"heads": 2} and capsys.readouterr().err == ""


def test_a_field_of_the_wrong_kind_is_left_aside_with_a_note(capsys):
    broken = {"status": "ok", "samples": 3, "environment": {"threads": "many", "host": "h"}}
    broken["metrics"] = {"t/a": {"value": 1.0, "low": None, "high": None, "n": 1, "unit": ""}, "t/b": {"value": 1.0}}
    outcome = TaskOutcome.read(broken)
    assert outcome.environment.host == "h" and outcome.environment.threads is None
    assert outcome.environment.as_json() == {"host": "h", "threads": "many"}  # as collect and W&B get it
    assert list(outcome.metrics) == ["t/a"]
    said = capsys.readouterr().err
    assert "environment.threads" in said and "metrics.t/b" in said
    with pytest.raises(ValueError, match="cell_id"):
        CellDescription.read({name: value for name, value in CELL.items() if name != "cell_id"})


def test_a_file_that_is_no_cell_is_left_out_with_a_note(tmp_path, capsys):
    from harness.analysis import reader

    (tmp_path / "c" / "retrieval-t").mkdir(parents=True)
    (tmp_path / "c" / "cell.json").write_text('{"status": "ok"}')
    assert reader.records(tmp_path) == [] and "cell.json cannot be read" in capsys.readouterr().err


PINNED = f"pydantic=={pydantic.VERSION}\n" in (ROOT / "constraints.txt").read_text()


@pytest.mark.skipif(not PINNED, reason="another pydantic says the same in other words")
@pytest.mark.parametrize("name", schema.TYPES)
def test_the_json_schemas_in_docs_are_those_of_the_types(name):
    committed = (schema.FOLDER / f"{name}.json").read_text()
    assert committed == schema.json_schema(name), "run python -m harness.results.schema --write"


def test_the_command_writes_every_schema(tmp_path):
    assert schema.main(["--write", "--out", str(tmp_path)]) == 0
    assert {file.stem for file in tmp_path.glob("*.json")} == set(schema.TYPES)
    assert {file.stem for file in schema.FOLDER.glob("*.json")} == set(schema.TYPES)


def test_a_record_has_one_note_for_all_that_is_wrong_in_it(capsys):
    say_once.cache_clear()
    cell = CellDescription.read({**CELL, "source": 3, "pairs_per_row": {"fused": "many"}})
    assert (cell.source, cell.pairs_per_row) == (None, {})
    (line,) = capsys.readouterr().err.splitlines()
    assert "source" in line and "pairs_per_row.fused" in line and "they are left aside" in line
    with pytest.raises(ValueError, match="label"):  # whoever reads the file names it, in a line too
        CellDescription.read({**CELL, "source": 3, "label": None})
    assert capsys.readouterr().err == ""
