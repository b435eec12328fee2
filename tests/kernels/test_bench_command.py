"""The bench's command line: what is planned, kept, resumed, said and refused."""

import json
from dataclasses import replace

import pytest
import torch

from kernels.bench import __main__ as command
from kernels.bench import measure, methods, record, table
from kernels.bench.clock import DeviceLost, HostClock
from kernels.bench.plan import head_sets, plan
from kernels.common.environment import written

main = command.main


@pytest.fixture
def quick(monkeypatch):
    """The command line without measuring the memory first."""
    monkeypatch.setattr(HostClock, "memory_rate", lambda self: 10.0)


class SingleClock(HostClock):
    """A host clock that measures one method after the other, as a GPU's does."""

    together = False
    lost = False

    def release(self) -> None:
        if self.lost:
            raise DeviceLost("an illegal memory access")


def test_a_lost_gpu_costs_one_row_and_the_next_run_goes_on_after_it(quick, tmp_path, monkeypatch, capsys):
    file = tmp_path / "bench.json"
    arguments = ["--device", "cpu", "--heads", "2x8", "--calls", "decode-1", "--tokens", "64", "--repeats", "1"]
    arguments += ["--json", str(file)]
    clock = SingleClock(1)
    monkeypatch.setattr(command, "clock_for", lambda *_: clock)
    clock.lost = True
    for rows in (1, 2):
        with pytest.raises(SystemExit, match="an illegal memory access"):
            main(arguments)
        assert len(json.loads(file.read_text())["runs"][0]["methods"]) == rows
    clock.lost = False
    assert len(main(arguments)["runs"][0]["methods"]) == 24
    capsys.readouterr()


def test_rows_of_the_file_are_kept_unless_asked_or_measured_elsewhere(quick, tmp_path, monkeypatch, capsys):
    file = tmp_path / "bench.json"
    arguments = ["--device", "cpu", "--heads", "2x8", "--calls", "decode-1", "--tokens", "64", "--repeats", "1"]
    arguments += ["--json", str(file)]
    first = main(arguments)
    kept = json.loads(file.read_text())
    lost = kept["runs"][0]["methods"].pop()
    kept["runs"][0]["masks"] = []  # stopped before the last row
    kept["runs"][0]["methods"][0]["ms"]["median"] = 1234.5
    file.write_text(json.dumps(kept))
    again = main(arguments)["runs"][0]
    assert again["methods"][0]["ms"]["median"] == 1234.5 and again["masks"] == [16] and again["started"] is None
    assert [r["name"] for r in again["methods"]] == [r["name"] for r in first["runs"][0]["methods"]]
    assert again["methods"][-1]["name"] == lost["name"]
    monkeypatch.setattr(methods, "maskless", None)  # nothing is measured twice
    assert main(arguments)["runs"] == [again]
    monkeypatch.undo()
    assert main([*arguments, "--fresh"])["runs"][0]["methods"][0]["ms"]["median"] != 1234.5
    kept["environment"]["code"] = "other"
    file.write_text(json.dumps(kept))
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2 and "another code: name another file, or use --fresh" in capsys.readouterr().err


def test_a_row_that_the_process_died_in_is_not_run_again(quick, tmp_path, monkeypatch, capsys):
    """It stands in the file before it runs; whoever stops the bench in a row clears it."""
    file = tmp_path / "bench.json"
    arguments = ["--device", "cpu", "--heads", "2x8", "--calls", "decode-1", "--tokens", "64", "--repeats", "1"]
    arguments += ["--json", str(file)]
    monkeypatch.setattr(command, "clock_for", lambda *_: SingleClock(1))
    prepare, kept = measure.prepare, []

    def interrupted(problem, method):
        kept.append((method.name, json.loads(file.read_text())["runs"][0]["started"]))
        if len(kept) == 2:
            raise KeyboardInterrupt
        return prepare(problem, method)

    monkeypatch.setattr(measure, "prepare", interrupted)
    with pytest.raises(KeyboardInterrupt):
        main(arguments)
    assert [name for name, _ in kept] == [started for _, started in kept]
    stopped = json.loads(file.read_text())
    assert stopped["runs"][0]["started"] is None
    stopped["runs"][0]["started"] = kept[1][0]  # as it is where the process died
    file.write_text(json.dumps(stopped))
    run = main(arguments)["runs"][0]
    assert run["masks"] == [16] and len(run["methods"]) == 24 and kept[1][0] not in [name for name, _ in kept[2:]]
    status = "error: the process ended within this row, which --fresh alone tries again"
    assert [(row["name"], row["status"]) for row in run["methods"] if row["status"] == status] == [(kept[1][0], status)]
    capsys.readouterr()


@pytest.mark.parametrize("text", ["{broken", "[]", '{"environment": {}}', '{"environment": {}, "runs": [{}]}', "\x00"])
def test_a_file_that_is_no_record_is_named(text, tmp_path, monkeypatch, capsys):
    file = tmp_path / "bench.json"
    file.write_text(text)
    monkeypatch.setattr(HostClock, "memory_rate", None)  # nothing is measured before
    with pytest.raises(SystemExit) as stopped:
        main(["--device", "cpu", "--json", str(file)])
    assert stopped.value.code == 2 and f"{file} is no record of this bench: name" in capsys.readouterr().err
    assert file.read_text() == text


@pytest.mark.parametrize("stage", ["Problem", "masked"])
def test_a_part_that_cannot_be_prepared_is_recorded_and_the_others_go_on(stage, quick, tmp_path, monkeypatch, capsys):
    """Also when the same command runs again."""
    file, make, tried = tmp_path / "bench.json", getattr(command, stage), []

    def fails(first, *rest, **options):
        tokens = rest[0] if stage == "Problem" else first.tokens
        tried.append(tokens)
        if tokens == 64:
            raise torch.OutOfMemoryError("too much\nof it")
        return make(first, *rest, **options)

    monkeypatch.setattr(command, stage, fails)
    arguments = ["--device", "cpu", "--heads", "2x8", "--calls", "decode-1", "--tokens", "64,128", "--repeats", "1"]
    arguments += ["--json", str(file)]
    report = main(arguments)
    assert json.loads(file.read_text()) == report and report["not_reached"] == []
    lacking, whole = report["runs"]
    assert lacking["failed"] == [{"masks": 16, "reason": "out of memory"}] and lacking["masks"] == []
    assert len(lacking["methods"]) == (0 if stage == "Problem" else 4)  # those without masks were ready
    assert whole["failed"] == [] and whole["masks"] == [16] and len(whole["methods"]) == 24
    assert "16 masks: could not be prepared (out of memory)." in capsys.readouterr().out
    assert main(arguments)["runs"] == report["runs"] and tried == [64, 128]
    assert "not tried again, unless --fresh is given" in capsys.readouterr().out
    monkeypatch.setattr(command, stage, make)
    assert main([*arguments, "--fresh"])["runs"][0]["masks"] == [16]
    capsys.readouterr()


def test_what_was_ready_before_a_failure_is_measured_though_the_minutes_end_between(
    quick, tmp_path, monkeypatch, capsys
):
    def fails(*_):
        raise torch.OutOfMemoryError("too much")

    file, measured = tmp_path / "bench.json", command.measure
    monkeypatch.setattr(command, "masked", fails)
    monkeypatch.setattr(command, "measure", lambda *_: iter(()))  # stopped before the first row
    arguments = ["--device", "cpu", "--heads", "2x8", "--calls", "decode-1", "--tokens", "64", "--repeats", "1"]
    report = main([*arguments, "--minutes", "9", "--json", str(file)])
    assert report["not_reached"] == ["2x8, decode-1, 64 tokens, 16 masks"] and report["runs"][0]["failed"] == []
    monkeypatch.setattr(command, "measure", measured)
    report = main([*arguments, "--json", str(file)])
    assert report["not_reached"] == [] and len(report["runs"][0]["methods"]) == 4
    assert report["runs"][0]["failed"] == [{"masks": 16, "reason": "out of memory"}]
    capsys.readouterr()


def test_what_is_given_twice_is_measured_once():
    given = ["--device", "cpu", "--heads", "small, small", "--tokens", "64,128,64", "--masks", "4,4"]
    options = command.parsed([*given, "--calls", "forward,decode-1,forward"])
    assert list(options.heads) == ["small"] and options.masks == [4]
    assert (options.tokens, options.calls) == ([64, 128], ["forward", "decode-1"])


def test_what_the_minutes_do_not_reach_is_listed(quick, tmp_path, capsys):
    file = tmp_path / "bench.json"
    arguments = ["--device", "cpu", "--heads", "2x8", "--tokens", "64,128", "--calls", "decode-1", "--minutes", "0"]
    report = main([*arguments, "--json", str(file)])
    assert report["runs"] == [] and json.loads(file.read_text())["not_reached"] == [
        "2x8, decode-1, 64 tokens, 16 masks",
        "2x8, decode-1, 128 tokens, 16 masks",
    ]
    assert "not reached in 0 minutes: 2x8, decode-1, 64 tokens" in capsys.readouterr().out


def test_the_plan_begins_with_what_tells_most():
    sets = head_sets(["mpt-7b", "storywriter", "bloom-7b1"])
    assert list(sets) == ["mpt-7b and bloom-7b1", "storywriter"]
    works = plan(sets, ["forward", "decode-1", "decode-16", "backward"], [4096, 32768, 131072], [16, 4])
    assert [w.title for w in works[:2]] == [
        f"mpt-7b and bloom-7b1, forward, {n} tokens, 16 masks" for n in (32768, 131072)
    ]
    assert len(works) == len(set(works)) == 2 * 4 * 3 * 2
    for work in works:  # the methods without masks come before what is compared to them
        at = works.index(work)
        assert work.first or replace(work, masks=16, first=True) in works[:at]


@pytest.mark.parametrize(
    ("own", "other", "verdict"),
    [((1.0, 1.2), (1.3, 1.4), "faster"), ((1.0, 1.2), (1.1, 1.4), "even"), ((1.5, 1.6), (1.3, 1.4), "slower")],
)
def test_whether_plsh_beats_the_window_of_equal_error_is_said(own, other, verdict):
    common = {"floor_bytes": 10, "operations": 1, "dense_operations": 1, "rms_relative_error": 0.25}
    rows = [
        {"name": "plsh rb, S=4", "family": "plsh", "match": None, "ms": {"median": 2.0, "low": own[0], "high": own[1]}},
        {"name": "window T=1.5, as rb, S=4", "family": "window", "match": "plsh rb, S=4"},
    ]
    rows[1] |= {"ms": {"median": 3.0, "low": other[0], "high": other[1]}, "rms_relative_error": 0.21}
    run = {"call": "forward", "methods": [common | row for row in rows]}
    record.relate(run, 1.0)
    equal = run["methods"][0]["equal_error"]
    assert (equal["ratio"], equal["verdict"]) == (1.5, verdict)
    words = {"faster": "faster than", "even": "within the spread of", "slower": "slower than"}[verdict]
    window = "the window of equal error (window T=1.5, error 21.0% beside 25.0%)"
    assert table.verdicts(run) == [f"plsh rb, S=4: {words} {window}, 1.50 times its speed."]
    assert "(window T=1.5, error of its gradients 21.0% beside" in table.verdicts(run | {"call": "backward"})[0]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--tokens", "16"], "whole numbers from 32 on"),
        (["--tokens", "256,"], "whole numbers from 32 on"),
        (["--masks", "many"], "whole numbers from 1 on"),
        (["--repeats", "0"], "whole numbers from 1 on"),
        (["--heads", "gpt"], "Unknown heads 'gpt'"),
        (["--calls", "prefill"], "--calls takes forward"),
        (["--device", "cpu", "--calls", "backward"], "needs --device cuda"),
        (["--json", "/nowhere/b.json"], "there is no folder"),
        (["--json", "/"], "/ is a folder"),
        (["--minutes", "-1"], "from 0 on, not -1"),
        (["--minutes", "nan"], "from 0 on, not nan"),
    ],
)
def test_what_makes_no_sense_is_refused(arguments, said, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2 and said in capsys.readouterr().err


def test_rows_are_compared_by_what_both_of_them_have():
    """A time in a CUDA graph to one, else a call's to a call's."""
    common = {"floor_bytes": 10**6, "operations": 10, "dense_operations": 10, "match": None, "rms_relative_error": 0.2}

    def times(median: float) -> dict:
        return {"median": median, "low": 0.9 * median, "high": 1.1 * median}

    rows = [
        {"name": "a", "family": "exact", "ms": times(8.0), "graph_ms": times(6.0)},
        {"name": "b", "family": "exact", "ms": times(7.0)},
        {"name": "failed", "family": "exact", "ms": None},
        {"name": "plsh", "family": "plsh", "ms": times(4.0), "graph_ms": times(1.0)},
        {"name": "w", "family": "window", "ms": times(3.0), "graph_ms": times(2.0), "match": "plsh"},
        {"name": "plsh 2", "family": "plsh", "ms": times(4.0), "graph_ms": times(1.0)},
        {"name": "w 2", "family": "window", "ms": times(3.0), "match": "plsh 2"},
    ]
    run = {"methods": [common | row for row in rows]}
    record.relate(run, 1.0)
    of = {row["name"]: row for row in run["methods"]}
    # to a: 6 to 1 in a graph; to b: 7 to 4 by calls; the fastest exact way is the nearest
    assert of["plsh"]["speedup"] == 1.75 and of["a"]["speedup"] == 0.875 and of["b"]["speedup"] == 1.0
    assert of["plsh"]["over_floor"] == 1.0 and of["b"]["over_floor"] == 7.0
    assert (of["plsh"]["equal_error"]["ratio"], of["plsh"]["equal_error"]["verdict"]) == (2.0, "faster")
    assert (of["plsh 2"]["equal_error"]["ratio"], of["plsh 2"]["equal_error"]["verdict"]) == (0.75, "slower")
    assert "speedup" not in of["failed"]


def test_ratios_are_of_the_whole_call_and_the_kernels_alone_stand_beside_them():
    def times(median: float) -> dict:
        return {"median": median, "low": 0.99 * median, "high": 1.01 * median}

    common = {"floor_bytes": 10**6, "operations": 10, "dense_operations": 10, "rms_relative_error": 0.2, "masks": 4}
    rows = [
        {"name": "alibi", "family": "exact", "match": None, "ms": times(60.0), "kernel_ms": times(59.0)},
        {"name": "plsh rb, S=4", "family": "plsh", "match": None, "issued": {"forward": 2, "tables": 4}},
        {"name": "window T=2, as rb, S=4", "family": "window", "match": "plsh rb, S=4", "ms": times(2.0)},
        {"name": "window T=2, as rb, S=4, FlexAttention", "family": "window", "match": "plsh rb, S=4"},
    ]
    rows[1] |= {"ms": times(5.0), "kernel_ms": times(2.5), "graph_ms": times(3.0), "kernel_graph_ms": times(2.0)}
    rows[3] |= {"ms": times(1.0)}  # the fastest implementation counts
    run = {"call": "forward", "methods": [common | row for row in rows]}
    rate = record.issue_rate({"multiprocessors": 2, "clock_mhz": 0.0005})
    assert rate == 4.0 and record.issue_rate({}) is None  # instructions a ms
    record.relate(run, 1.0, rate)
    record.relate(run, 1.0, rate)  # again with each row
    own = run["methods"][1]
    assert (own["speedup"], own["over_floor"], own["over_issue"], own["equal_error"]["ratio"]) == (12.0, 3.0, 2.0, 0.2)
    assert own["kernel"]["speedup"] == pytest.approx(59 / 2.5) and own["kernel"]["equal_error"]["ratio"] == 0.4
    assert own["kernel"]["over_floor"] == 2.0 and own["issue_ms"] == 1.5 and own["kernel"]["over_issue"] == 4.0
    assert "kernel" in run["methods"][0] and "kernel" not in run["methods"][2]  # which builds nothing
    (said,) = table.verdicts(run)
    assert said.startswith("plsh rb, S=4: slower than the window of equal error (window T=2 by FlexAttention, ")
    assert said.endswith(
        "0.20 times its speed with its tables, which the window does not need; 0.40 by the kernels alone."
    )


def test_a_record_is_json_with_a_line_for_each_row():
    content = {"environment": {"a": 1, "b": [1.5]}, "runs": [{"n": 1, "methods": [{"x": {"y": 2}}, {}]}], "none": []}
    text = written(content)
    assert json.loads(text) == content
    assert [line.strip() for line in text.splitlines() if "x" in line] == ['{"x": {"y": 2}},']
    assert len(text.splitlines()) == 16


def test_markdown_holds_every_forward_row_and_says_why_one_has_no_time(quick, capsys):
    content = main(
        ["--device", "cpu", "--heads", "2x8", "--calls", "forward,decode-1", "--tokens", "64", "--repeats", "1"]
    )
    row = content["runs"][0]["methods"][0]
    row["ms"], row["status"] = None, "out of memory"
    lines = table.markdown(content).splitlines()
    drawn = [line.count(" | ") for line in lines if line.startswith("| ")]
    assert drawn == [len(table.MARKDOWN_COLUMNS) - 1] * (1 + len(content["runs"][0]["methods"]))
    assert f"| {row['name']} | out of memory | " in "\n".join(lines)
    assert f"    {content['environment']['command']}" in lines
    capsys.readouterr()
