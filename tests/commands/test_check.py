"""A store is held to what it says of itself; what is wrong is set aside, and the next run heals it."""

import json
import os
import shutil

import pytest

from harness import check
from harness.analysis import reader
from harness.common.files import read_json
from tests.commands.test_odd_files import CELL, edited, made, plsh_task, results
from tests.commands.test_trust import rows_of
from tests.conftest import ROOT

__all__ = ["made", "results"]  # fixtures


def checked(results, capsys, *arguments):
    capsys.readouterr()
    code = check.main([str(results), *arguments])
    out = capsys.readouterr().out
    return code, json.loads(out.splitlines()[-1]), out


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def flip(row):
    return {**row, "score": 1 - row["score"]}


def merge(task, change=flip, name="0-other"):
    part, rows = rows_of(task)
    write_rows(part.parent / f"{name}.jsonl", [change(row) for row in rows[:2]] + rows[2:])


def without_checksums(task):
    edited(task / "task.json", lambda r: (r.pop("checksums"), r.update(schema=1)))


def damage(task):
    part, rows = rows_of(task)
    write_rows(part, [*rows[:3], {**rows[3], "nll": 7.0}])


def needle(results):
    file = max((p for p in (results / "data").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def cut(task):
    part, rows = rows_of(task)
    write_rows(part, rows[:2])


WRONG = {  # what is done to the folder of a task, the kind of problem, rows that a run then computes
    "copy of a cell": (lambda t: shutil.copytree(t.parent, t.parents[1] / f"{t.parent.name}.bak"), "cell", 0),
    "copy of a task": (lambda t: shutil.copytree(t, t.with_name(f"{t.name}.bak")), "task", 0),
    "another's outcome": (lambda t: edited(t / "task.json", lambda r: r.update(task_id="0" * 16)), "task", 4),
    "another's cell": (lambda t: edited(t.parent / "cell.json", lambda r: r["identity"].update(context=1)), "cell", 0),
    "no outcome": (lambda t: (t / "task.json").write_text("[1]"), "task", 0),
    "a pipe": (lambda t: os.mkfifo(t / "parts" / "x.jsonl"), "task", 0),
    "options": (lambda t: edited(t / "task.json", lambda r: r["options"].update(haystack="x")), "task", 0),
    "a metric": (lambda t: edited(t / "task.json", lambda r: r["metrics"].update(x=1)), "task", 0),
    "rows gone": (cut, "rows", 2),
    "a digit": (damage, "rows", 1),
    "two machines": (merge, "rows", 0),
    "two machines, version 1": (lambda t: (without_checksums(t), merge(t)), "rows", 2),
    "garbage": (lambda t: next(t.glob("parts/*")).open("ab").write(b"x\ny\n"), "rows", 0),
    "a draft": (lambda t: (t / ".task.json.0123456789ab").write_text("{"), "draft", 0),
    "data": (lambda t: needle(t.parents[1]), "data", 0),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_wrong_is_found_set_aside_and_healed(results, run, capsys, wrong):
    task = plsh_task(results)
    before = {r.attention.name: r.metrics for r in reader.records(results)}
    assert checked(results, capsys)[:2] == (0, {**checked(results, capsys)[1], "status": "ok", "problems": []})
    harm, kind, computed = WRONG[wrong]
    harm(task)
    stands = {p: p.stat().st_mtime_ns for p in results.rglob("*")}
    code, document, out = checked(results, capsys)
    assert code == 1 and document["status"] == "failed"
    assert [p["what"] for p in document["problems"]] == [kind] and document["problems"][0]["where"] in out
    assert {p: p.stat().st_mtime_ns for p in results.rglob("*")} == stands
    code, document, _ = checked(results, capsys, "--fix")
    assert code == 0 and document["problems"][0]["aside"] and any((results / "aside").iterdir())
    assert checked(results, capsys)[0] == 0
    code, document, _, _ = run(*CELL, f"results={results}")
    assert code == 0 and document["rows_written"] == computed
    assert {r.attention.name: r.metrics for r in reader.records(results)} == before
    assert checked(results, capsys)[0] == 0


def test_of_a_later_version_nothing_is_touched(results, capsys):
    path = plsh_task(results) / "task.json"
    edited(path, lambda r: r.update(schema=99))
    content = path.read_bytes()
    code, document, _ = checked(results, capsys, "--fix")
    assert code == 1 and "later version" in document["problems"][0]["why"] and path.read_bytes() == content


def test_versions_side_by_side_are_said_and_are_no_fault(results, capsys):
    without_checksums(plsh_task(results))
    code, document, _ = checked(results, capsys)
    assert code == 0 and document["notes"] == ["Outcomes of several versions: 1 of version 1, 1 of version 2."]


@pytest.mark.parametrize("store", ["first", "throughput_cpu"])
def test_the_committed_records_are_whole(store, capsys):
    code, document, _ = checked(ROOT / "docs" / "results" / store, capsys)
    assert code == 0 and document["tasks"] == len(list((ROOT / "docs" / "results" / store).glob("*/*/task.json")))


def test_a_finished_task_that_lacks_rows_keeps_its_outcome_aside(results, run):
    """Nothing is thrown away by the run that computes them again either."""
    task = plsh_task(results)
    done = read_json(task / "task.json")
    cut(task)
    assert run(*CELL, f"results={results}")[0] == 0
    (kept,) = (results / "aside").glob("*/*/*/task.json")
    assert read_json(kept) == done


def test_the_next_run_removes_the_drafts_of_a_killed_one(results, run):
    task = plsh_task(results)
    places = [task.parent, task, results / "data", results / "index"]
    for place in places:
        place.mkdir(exist_ok=True)
        (place / ".task.json.0123456789ab").write_text("{")
        os.utime(place / ".task.json.0123456789ab", (0, 0))
    assert run(*CELL, f"results={results}")[0] == 0
    assert not [path for path in results.rglob(".*")]


def test_a_folder_that_is_not_there(tmp_path, capsys):
    assert checked(tmp_path / "absent", capsys)[0] == 2
