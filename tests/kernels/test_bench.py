"""The bench on 256 tokens: structure, errors against an independent computation, and no speed for a wrong result."""

import json
from dataclasses import replace

import pytest
import torch

from kernels import Alibi, PositionalLSH, Window, alibi_slopes
from kernels.bench import __main__ as command
from kernels.bench import cost, dense, measure, methods, ours, record, table
from kernels.bench.clock import DeviceLost, HostClock
from kernels.bench.plan import HeadSet, head_sets, plan
from kernels.bench.problem import Problem
from kernels.environment import written

SMALL = HeadSet(4, 16)
main = command.main
ROWS = [r for quarter in (1, 2, 3, 4) for r in range(64 * quarter - 8, 64 * quarter)]


def problem(queries: int = 256, *, backward: bool = False) -> Problem:
    return Problem(SMALL, 256, queries, backward=backward, device="cpu", dtype=torch.float32)


@pytest.fixture(scope="module")
def found() -> list[methods.Method]:
    p = problem()
    return methods.maskless(p, "sdpa") + methods.masked(p, "sdpa", 16)


@pytest.fixture
def quick(monkeypatch):
    """The command line without measuring the memory first."""
    monkeypatch.setattr(HostClock, "memory_rate", lambda self: 10.0)


def attention(p: Problem, weight: torch.Tensor, rows=ROWS) -> torch.Tensor:
    """Attention under an explicit (heads, tokens, tokens) weight, in float64, for some rows of a call on all tokens."""
    score = torch.exp(p.q.double() @ p.k.double().mT / 4) * weight.tril()
    return (score / score.sum(-1, keepdim=True) @ p.v.double())[:, :, rows]


def explicit_alibi() -> torch.Tensor:
    position = torch.arange(256.0, dtype=torch.float64)
    return torch.exp(-alibi_slopes(4)[:, None, None] * (position[:, None] - position).abs())


def results(p: Problem, some: list[methods.Method]) -> list[dict]:
    run = {"methods": list(measure.measure(p, some, HostClock(2)))}
    record.relate(run, 10.0)
    return run["methods"]


def test_report_has_every_method_side_by_side(tmp_path, capsys):
    file = tmp_path / "bench.json"
    report = main(["--device", "cpu", "--heads", "4x16", "--tokens", "256", "--repeats", "2", "--json", str(file)])
    assert json.loads(file.read_text()) == report and not report["not_reached"]
    assert {"torch", "cpu", "threads", "commit", "code", "command"} <= set(report["environment"])
    assert 0.1 < report["environment"]["memory_gb_s"] < 1e4
    assert [run["call"] for run in report["runs"]] == ["forward", "decode-1", "decode-16"]
    starts = ["alibi, augmented", "alibi, bias", "alibi, sdpa", "window T=20"]
    for kind in ("count", "rb", "exact", "count, systematic"):
        starts += [f"plsh {kind}, S=16", "window T="]
    starts += ["window T=", "window T=", "plsh count, merged passes"]
    printed = capsys.readouterr().out
    for run in report["runs"]:
        names = [r["name"] for r in run["methods"]]
        assert len(names) == len(starts) and all(n.startswith(s) for n, s in zip(names, starts, strict=True))
        assert all(name in printed for name in names) and run["shape"] == [1, 4, 256, 16]
        timed = [r for r in run["methods"] if r["ms"]]
        assert len(names) - len(timed) == (run["call"] != "forward")  # passes
        best = min(r["ms"]["median"] for r in timed if r["family"] == "exact")
        for r in timed:
            assert r["check_error"] < 1e-5 and r["ms"]["low"] <= r["ms"]["median"] <= r["ms"]["high"]
            assert r["speedup"] == pytest.approx(best / r["ms"]["median"], rel=1e-3)
            assert r["over_floor"] == pytest.approx(r["ms"]["median"] / r["floor_ms"], rel=1e-3)


def test_errors_are_those_against_exact_alibi(found):
    p = problem()
    exact = attention(p, explicit_alibi())
    for result, method in zip(results(p, found), found, strict=True):
        error = attention(p, method.weights.matrix(256)) - exact
        assert result["max_abs_error"] == pytest.approx(error.abs().max().item(), abs=1e-5)
        assert result["rms_relative_error"] == pytest.approx((error.norm() / exact.norm()).item(), abs=1e-5)


def test_a_few_rows_see_the_whole_context():
    """The rows at the end of a context of their own give what they give as part of it."""
    p, whole = problem(16), problem()
    whole.q = torch.cat([whole.q[:, :, :240], p.q], dim=2)
    whole.k, whole.v = p.k, p.v
    true = attention(whole, explicit_alibi(), list(range(240, 256)))
    assert (p.truth(p.exact)[0] - true).abs().max() < 1e-12
    for method in methods.maskless(p, "sdpa"):
        assert (measure.prepare(p, method).outcome()[0] - true).abs().max() < 1e-4


def test_pairs_operations_and_bytes_are_counted(found):
    """By dense masks, for every method; the floor by hand."""
    by_name = {r["name"]: r for r in results(problem(), found)}
    for method in found:
        row = by_name[method.name]
        seen = sum((w.matrix(256).tril(-1) > 0).sum().item() for w in method.visited)
        assert row["pairs_per_row"] * 4 * 256 == pytest.approx(seen, rel=1e-4)
        assert row["operations"] == 4 * 16 * (seen + len(method.visited) * 4 * 256)
        assert row["floor_bytes"] == 4 * (4 * 256 * 16) * 4  # q, k, v, out of 4 heads of 16 in float32
    assert by_name["plsh count, merged passes, S=16"]["bytes"] == 16 * 4 * 4 * 256 * 16 * 4
    assert by_name["alibi, bias tensor"]["bytes"] == (4 * 4 * 256 * 16 + 4 * 256 * 256) * 4


def test_floor_of_decoding_is_what_is_reached():
    slopes = SMALL.slopes  # 1/4, 1/16, 1/64, 1/256
    some = cost.cost(problem(16), Window(slopes, 0.5))
    reached = sum(16 + reach for reach in (2, 8, 32, 128))
    assert some.floor == 4 * (2 * 4 * 16 * 16 + 2 * reached * 16)
    assert some.dense == 4 * sum(range(241, 257))
    assert cost.cost(problem(1), Alibi(slopes)).floor == 4 * (2 * 4 * 16 + 2 * 4 * 256 * 16)
    assert cost.cost(problem(backward=True), Alibi(slopes)).floor == 4 * 8 * 4 * 256 * 16


def test_window_of_equal_error_errs_as_much_and_no_narrower_one_does():
    p = problem()
    exact = attention(p, explicit_alibi())

    def error(cutoff: float) -> float:
        window = Window(SMALL.slopes, cutoff).matrix(256)
        return float((attention(p, window) - exact).norm() / exact.norm())

    for wanted in (0.02, 0.2, 0.5):
        cutoff = p.equal_error_cutoff(wanted)
        assert error(cutoff) <= wanted < error(cutoff - 1e-6)
        assert error(cutoff) > 0.7 * wanted  # the steps of 256 tokens and 4 heads
    assert p.equal_error_cutoff(5.0) == 0.0
    lsh = PositionalLSH.draw(SMALL.slopes, 16, seed=0)
    assert p.output_error(lsh) == pytest.approx(
        float((attention(p, lsh.matrix(256)) - exact).norm() / exact.norm()), abs=1e-12
    )


def test_gradients_are_checked_at_the_sampled_rows(found):
    p = problem(backward=True)
    q, k, v = (x.double().requires_grad_() for x in (p.q, p.k, p.v))
    score = torch.exp(q @ k.mT / 4) * explicit_alibi().tril()
    out = (score / score.sum(-1, keepdim=True) @ v)[:, :, ROWS]
    dq, dk, dv = torch.autograd.grad(out, (q, k, v), p.toward[:, :, ROWS].double())
    for mine, true in zip(p.truth(p.exact), (dq[:, :, ROWS], dk, dv), strict=True):
        assert (mine - true).abs().max() < 1e-12
    tensor = next(m for m in methods.maskless(p, "sdpa") if m.name == "alibi, bias tensor")
    wrong = replace(tensor, name="other weights", weights=Alibi(2 * SMALL.slopes))
    right, wrong = results(p, [tensor, wrong])
    assert right["ms"] and right["check_error"] < 1e-5 and right["operations"] == 10 * 16 * 4 * 256 * 257 / 2
    assert wrong["ms"] is None and wrong["status"].startswith("check failed")


def test_what_lies_or_raises_shows_no_speed_and_the_rest_goes_on(found):
    p = problem()
    sound = next(m for m in found if m.name == "alibi, sdpa")

    def lies() -> dense.Prepared:
        own = sound.prepare()
        return replace(own, call=lambda q, k, v: own.call(q, k, v) * 1.002)

    def raises() -> dense.Prepared:
        raise torch.OutOfMemoryError("too much\nof it")

    def left_out() -> dense.Prepared:
        raise dense.LeftOut("not installed")

    some = [
        replace(sound, name="lies", prepare=lies),
        replace(sound, name="raises", prepare=raises),
        replace(sound, name="left out", prepare=left_out),
        replace(sound, name="other weights", weights=Window(SMALL.slopes, 1.0)),
        sound,
    ]
    for clock in (HostClock(1), SingleClock(1)):
        rows = list(measure.measure(p, some, clock))
        statuses = [row["status"] for row in rows]
        assert statuses[0].startswith("check failed: 2.0e-03 > 1.0e-03") and statuses[3].startswith("check failed")
        assert statuses[1:3] == ["out of memory", "left out: not installed"] and statuses[4] == "ok"
        assert [row["ms"] is None for row in rows] == [True, True, True, True, False]
    run = {"methods": rows, "shape": [1, 4, 256, 16], "queries": 256, "heads": "4x16", "call": "c", "dtype": "float32"}
    record.relate(run, 10.0)
    drawn = {line.split("  ")[0]: line for line in table.table(run).splitlines()}
    assert drawn["lies"].endswith("check failed: 2.0e-03 > 1.0e-03") and drawn["raises"].endswith("out of memory")
    assert rows[0].get("speedup") is None and rows[4]["speedup"] == 1.0


class SingleClock(HostClock):
    """A host clock that measures one method after the other, as a GPU's does."""

    together = False
    lost = False

    def release(self) -> None:
        if self.lost:
            raise DeviceLost("an illegal memory access")


def test_a_lost_gpu_costs_one_row_and_the_next_run_goes_on_after_it(quick, tmp_path, monkeypatch, capsys):
    file = tmp_path / "bench.json"
    arguments = ["--device", "cpu", "--heads", "2x8", "--calls", "decode-1", "--tokens", "64", "--json", str(file)]
    clock = SingleClock(1)
    monkeypatch.setattr(command, "clock_for", lambda *_: clock)
    clock.lost = True
    for rows in (1, 2):
        with pytest.raises(SystemExit, match="an illegal memory access"):
            main(arguments)
        assert len(json.loads(file.read_text())["runs"][0]["methods"]) == rows
    clock.lost = False
    assert len(main(arguments)["runs"][0]["methods"]) == 15
    capsys.readouterr()


def test_times_beside_the_call_are_kept_apart(found):
    """What fails after a call was timed leaves its time."""
    p = problem()
    sound = next(m for m in found if m.name == "alibi, sdpa")

    def with_tables(tables):
        return replace(sound, prepare=lambda: replace(sound.prepare(), tables=tables))

    def fails():
        raise RuntimeError("no memory for tables")

    good, bad = measure.measure(p, [with_tables(lambda: None), with_tables(fails)], SingleClock(3))
    assert good["tables_ms"]["median"] < good["ms"]["median"] and good["ms"]["calls"] == 3
    assert bad["ms"] and bad["status"] == "error: RuntimeError: no memory for tables"


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
    assert again["methods"][0]["ms"]["median"] == 1234.5 and again["masks"] == [16]
    assert [r["name"] for r in again["methods"]] == [r["name"] for r in first["runs"][0]["methods"]]
    assert again["methods"][-1]["name"] == lost["name"]
    monkeypatch.setattr(methods, "maskless", None)  # nothing is measured twice
    assert main(arguments)["runs"] == [again]
    monkeypatch.undo()
    assert main([*arguments, "--fresh"])["runs"][0]["methods"][0]["ms"]["median"] != 1234.5
    kept["environment"]["code"] = "other"
    file.write_text(json.dumps(kept))
    with pytest.raises(SystemExit, match="another code: name another file, or use --fresh"):
        main(arguments)
    capsys.readouterr()


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
    rows[1]["ms"] = {"median": 3.0, "low": other[0], "high": other[1]}
    run = {"methods": [row | common for row in rows]}
    record.relate(run, 1.0)
    equal = run["methods"][0]["equal_error"]
    assert (equal["ratio"], equal["verdict"]) == (1.5, verdict)
    words = {"faster": "faster than", "even": "within the spread of", "slower": "slower than"}[verdict]
    expected = f"plsh rb, S=4: {words} the window of equal error (window T=1.5, error 25.0%), 1.50 times its speed."
    assert table.verdicts(run) == [expected]


def test_passes_merge_into_the_attention_under_all_masks():
    p = problem()
    weights = PositionalLSH.draw(SMALL.slopes, 5, seed=3)
    made = ours.passes(p, weights, "sdpa")
    assert made.times == 5
    assert (made.call(*made.inputs)[:, :, ROWS] - attention(p, weights.matrix(256))).abs().max() < 1e-5


def test_bias_tensor_above_the_limit_is_left_out_with_a_reason(monkeypatch):
    monkeypatch.setattr(dense, "BIAS_BYTES", 1000)
    with pytest.raises(dense.LeftOut, match="above the limit"):
        dense.with_bias(problem())


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
    ],
)
def test_what_makes_no_sense_is_refused(arguments, said, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2 and said in capsys.readouterr().err


def test_low_precision_stays_below_the_limit_and_above_one_rounding():
    """What torch's own attention loses in bf16, ALiBi in three further dimensions included."""
    p = Problem(HeadSet(4, 64), 2048, 2048, backward=False, device="cpu", dtype=torch.bfloat16)
    made = dense.augmented(p)
    assert made.inputs[1].shape[3] == 72 and made.inputs[1].dtype == torch.bfloat16
    (row,) = measure.measure(p, methods.maskless(p, "sdpa")[:1], HostClock(1))
    assert 1e-3 < row["check_error"] < row["check_limit"] == 2.0**-7 and row["ms"]


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
    assert drawn == [7] * (1 + len(content["runs"][0]["methods"]))
    assert f"| {row['name']} | out of memory | " in "\n".join(lines)
    assert f"    {content['environment']['command']}" in lines
    capsys.readouterr()
