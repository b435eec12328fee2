"""A record is believed where its name, its ids, its version and its rows agree, and nowhere else."""

import json
import shutil

import pyarrow.csv
import pytest

from harness import collect, show
from harness.analysis import reader
from harness.common.files import read_json
from harness.sweep import __main__ as sweep
from tests.commands.test_odd_files import CELL, SWEEP, edited, made, plsh_task, results

__all__ = ["made", "results"]  # fixtures


def counted(results, tmp_path, capsys):
    """How many records show, collect and the reader count, and what was said on stderr."""
    capsys.readouterr()
    assert show.main(["--results", str(results)]) == 0
    shown = sum("retrieval" in line for line in capsys.readouterr().out.splitlines())
    assert collect.main([str(results), "--out", str(tmp_path / "o.csv")]) == 0
    table = pyarrow.csv.read_csv(tmp_path / "o.csv")
    assert len(reader.records(results)) == table.num_rows == shown
    return table.num_rows


def statuses(results):
    return {r.attention.name: (r.status, bool(r.metrics)) for r in reader.records(results)}


def rows_of(task):
    (part,) = task.glob("parts/*.jsonl")
    return part, [json.loads(line) for line in part.read_text().splitlines()]


def swept(results, tmp_path, *more):
    (tmp_path / "s.yaml").write_text(SWEEP)
    return sweep.main([str(tmp_path / "s.yaml"), "--results", str(results), *more])


@pytest.mark.parametrize("name", ["{} (copy)", "{}.bak", "{}~", "f" * 16])
def test_a_copy_of_a_cell_is_no_record(results, tmp_path, capsys, name):
    cell = plsh_task(results).parent
    copy = shutil.copytree(cell, results / name.format(cell.name))
    (cell / "result.json").unlink()
    assert counted(results, tmp_path, capsys) == 2
    assert capsys.readouterr().err == ""  # it was said once
    assert reader.records(results, [copy.name]) == []


@pytest.mark.parametrize("name", ["{}.bak", "{}-old", "retrieval-" + "f" * 16, "other-{id}"])
def test_a_copy_of_a_task_is_no_record(results, tmp_path, capsys, name):
    task = plsh_task(results)
    shutil.copytree(task, task.with_name(name.format(task.name, id=task.name.split("-")[1])))
    assert counted(results, tmp_path, capsys) == 2


@pytest.mark.parametrize("name", ["cell.json", "task.json"])
def test_exchanged_files_are_no_records_and_no_run_builds_on_them(results, tmp_path, capsys, run, name):
    cells = [p.parent for p in results.glob("*/cell.json")]
    one, two = (c / name if name == "cell.json" else next(c.glob("retrieval-*")) / name for c in cells)
    one.rename(tmp_path / "x"), two.rename(one), (tmp_path / "x").rename(two)
    assert reader.records(results) == []
    before = one.read_bytes(), two.read_bytes()
    code, document, _, err = run(*CELL, f"results={results}")
    assert code == 1 and document["tasks"] == {"retrieval": "refused"} and "it is of the" in err
    assert (one.read_bytes(), two.read_bytes()) == before and "harness.check" in err


@pytest.mark.parametrize("place", ["cell", "identity", "task"])
def test_a_later_version_is_refused_in_words(results, capsys, run, place):
    path = plsh_task(results) / ("task.json" if place == "task" else "../cell.json")
    edited(path, lambda r: (r["identity"] if place == "identity" else r).update(schema=99))
    assert set(statuses(results)) == {"alibi"} and "schema 99" in capsys.readouterr().err
    before = path.read_bytes()
    code, document, _, err = run(*CELL, f"results={results}")
    assert code == 1 and document["tasks"] == {"retrieval": "refused"} and "later version" in err
    assert path.read_bytes() == before


@pytest.mark.parametrize("left", ["half", "nothing"])
def test_a_finished_task_without_its_rows_is_stopped_until_they_are_computed_again(results, tmp_path, run, left):
    task = plsh_task(results)
    done = read_json(task / "task.json")
    part, rows = rows_of(task)
    part.unlink()
    if left == "half":
        part.write_text("".join(json.dumps(row) + "\n" for row in rows[:2]))
    assert statuses(results)["plsh"] == (("stopped" if left == "half" else "missing"), False)
    assert swept(results, tmp_path, "--status") == 75
    code, document, _, _ = run(*CELL, f"results={results}")
    assert code == 0 and document["rows_written"] == (2 if left == "half" else 4)
    assert statuses(results)["plsh"] == ("ok", True)
    assert read_json(task / "task.json")["metrics"] == done["metrics"]


def test_rows_that_disagree_are_a_conflict_until_one_is_chosen(results, tmp_path, run, capsys):
    task = plsh_task(results)
    part, rows = rows_of(task)
    for row in rows[:2]:
        row["score"] = 1 - row["score"]
    (part.parent / "0-other.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    capsys.readouterr()
    assert statuses(results)["plsh"] == ("conflict", False)
    err = capsys.readouterr().err
    assert "0-other" in err and part.stem in err and "samples 0, 1" in err
    assert swept(results, tmp_path, "--status") == 1
    assert "disagree" in capsys.readouterr().out
    code, document, _, err = run(*CELL, f"results={results}")
    assert code == 1 and document["tasks"] == {"retrieval": "conflict"} and "disagree" in err
    (part.parent / "0-other.jsonl").unlink()
    assert run(*CELL, f"results={results}")[0] == 0 and statuses(results)["plsh"] == ("ok", True)


def test_a_second_attempt_at_the_same_samples_is_no_conflict(results):
    """Of two runs at once, whichever ends later: times and the last digits of likelihoods differ."""
    part, rows = rows_of(plsh_task(results))
    late = [{**row, "seconds": 99.0, "nll": row["nll"] * (1 + 1e-3)} for row in rows]
    (part.parent / "0-late.jsonl").write_text("".join(json.dumps(row) + "\n" for row in late))
    (record,) = (r for r in reader.records(results) if r.attention.name == "plsh")
    assert record.status == "ok" and [r.seconds for r in record.rows.values()] == [r["seconds"] for r in rows]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\n\n"])
def test_a_changed_digit_is_found(results, run, end):
    part, rows = rows_of(plsh_task(results))
    part.write_bytes("".join(json.dumps(row) + end for row in reversed(rows)).encode())
    assert statuses(results)["plsh"] == ("ok", True)  # the same rows, written in another way
    rows[2]["nll"] += 1e-6
    part.write_bytes("".join(json.dumps(row) + end for row in rows).encode())
    assert statuses(results)["plsh"] == ("damaged", False)
    code, document, _, err = run(*CELL, f"results={results}")
    assert code == 1 and document["tasks"] == {"retrieval": "damaged"} and "sample 2" in err


def test_a_record_without_checksums_is_read_and_extended(results, run):
    task = plsh_task(results) / "task.json"
    edited(task, lambda r: (r.pop("checksums"), r.update(schema=1)))
    assert statuses(results)["plsh"] == ("ok", True)
    assert run(*[a for a in CELL if "samples" not in a], "samples=8", f"results={results}")[0] == 0
    written = read_json(task)
    assert written["schema"] == 2 and len(written["checksums"]) == 8 * 8 and statuses(results)["plsh"] == ("ok", True)
