"""The bench on 256 tokens: structure, errors against an independent computation, and no speed for a
wrong result."""

import json
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from kernels import Alibi, PositionalLSH, Window, alibi_slopes
from kernels.bench import cost, dense, measure, methods, ours, record, table
from kernels.bench.__main__ import main
from kernels.bench.clock import HostClock
from kernels.bench.plan import HeadSet
from kernels.bench.problem import Problem

SMALL = HeadSet(4, 16)
NEAR = ("count, near 64", "rb, near 64")
ROWS = [r for quarter in (1, 2, 3, 4) for r in range(64 * quarter - 8, 64 * quarter)]


def problem(queries: int = 256, *, backward: bool = False) -> Problem:
    return Problem(SMALL, 256, queries, backward=backward, device="cpu", dtype=torch.float32)


@pytest.fixture(scope="module")
def found() -> list[methods.Method]:
    p = problem()
    return methods.maskless(p, "sdpa") + methods.masked(p, "sdpa", 16)


def attention(p: Problem, weight: torch.Tensor, rows=ROWS) -> torch.Tensor:
    """Attention under an explicit (heads, tokens, tokens) weight, in float64, for some rows of a
    call on all tokens."""
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
    starts = []  # PLSH and the windows of equal error first, what is slow last
    for kind in ("count", "rb", "exact", *NEAR, "count, systematic", "rb, systematic", "count, grid of 64"):
        starts += [f"plsh {kind}, S=16", "window T="]
    starts += ["alibi, sdpa", "alibi, augmented", "window T=20", "window T=", "window T=", "window T="]
    starts += ["alibi, bias", "plsh count, merged passes"]
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

    def error(cutoff: float, near: int = 0) -> float:
        window = Window(SMALL.slopes, cutoff, 0, near).matrix(256)
        return float((attention(p, window) - exact).norm() / exact.norm())

    for wanted in (0.02, 0.2, 0.5):
        cutoff = p.equal_error_cutoff(wanted)
        assert error(cutoff) <= wanted < error(cutoff - 1e-6)
        assert error(cutoff) > 0.7 * wanted  # the steps of 256 tokens and 4 heads
    assert p.equal_error_cutoff(5.0) == 0.0
    cutoff = p.equal_error_cutoff(0.02, 40)
    assert error(cutoff, 40) <= 0.02 < error(cutoff - 1e-6, 40) and cutoff > 0.0
    assert p.equal_error_cutoff(error(0.0, 40) * 1.001, 40) == 0.0
    lsh = PositionalLSH.draw(SMALL.slopes, 16, seed=0)
    assert p.output_error(lsh) == pytest.approx(
        float((attention(p, lsh.matrix(256)) - exact).norm() / exact.norm()), abs=1e-12
    )


def test_gradients_are_checked_at_the_sampled_rows(found):
    p = problem(backward=True)
    q, k, v = (x.double().requires_grad_() for x in (p.q, p.k, p.v))
    score = torch.exp(q @ k.mT / 4) * explicit_alibi().tril()
    out = (score / score.sum(-1, keepdim=True) @ v)[:, :, ROWS]
    dq, dk, dv = torch.autograd.grad(out, (q, k, v), p.grad_out[:, :, ROWS].double())
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

    def graph(self, call) -> dict:
        return GRAPH


GRAPH = {"median": 0.25, "low": 0.2, "high": 0.3, "calls": 9}


def test_times_beside_the_call_are_kept_apart(found):
    """What fails after a call was timed leaves its time, and is said."""
    p = problem(16)
    sound = next(m for m in methods.maskless(p, "sdpa") if m.name == "alibi, sdpa")

    def with_tables(tables):
        return replace(sound, prepare=lambda: replace(sound.prepare(), tables=tables, kernel=lambda *_: tables()))

    def fails(*_):
        raise RuntimeError("no memory for this")

    clock = SingleClock(3)
    good, bad = measure.measure(p, [with_tables(lambda: None), with_tables(fails)], clock)
    assert good["tables_ms"]["median"] < good["ms"]["median"] and good["ms"]["calls"] == good["kernel_ms"]["calls"] == 3
    assert good["graph_ms"] == good["kernel_graph_ms"] == good["tables_graph_ms"] == GRAPH and "untimed" not in good
    clock.graph = fails
    (worse,) = measure.measure(p, [with_tables(fails)], clock)
    reason = "error: RuntimeError: no memory for this"
    assert bad["graph_ms"] == GRAPH and bad["untimed"] == dict.fromkeys(["kernel_ms", "tables_ms"], reason)
    missing = ["kernel_ms", "tables_ms", "graph_ms", "kernel_graph_ms", "tables_graph_ms"]
    assert worse["untimed"] == dict.fromkeys(missing, reason)
    for row in (bad, worse):
        assert row["ms"]["calls"] == 3 and row["status"] == "ok"
    assert table.gaps({"methods": [good, worse]}) == [
        f"alibi, sdpa: its kernel alone was not timed ({reason}).",
        f"alibi, sdpa: building its tables was not timed ({reason}).",
        f"alibi, sdpa: it was not timed in a CUDA graph ({reason}).",
        f"alibi, sdpa: its kernel alone was not timed in a CUDA graph ({reason}).",
        f"alibi, sdpa: building its tables was not timed in a CUDA graph ({reason}).",
    ]


def test_a_call_that_cannot_be_timed_has_no_time(found):
    def fails(_):
        raise torch.OutOfMemoryError("too much")

    clock = SingleClock(1)
    clock.quartiles = fails
    (row,) = measure.measure(problem(), [found[0]], clock)
    assert row["ms"] is None and row["status"] == "out of memory"


@pytest.mark.parametrize(("queries", "timed"), [(256, [False, True]), (16, [True, True])])
def test_short_calls_and_those_that_decode_are_timed_in_a_graph(queries, timed, monkeypatch):
    p, clock = problem(queries), SingleClock(1)
    sound = next(m for m in methods.maskless(p, "sdpa") if m.name == "alibi, sdpa")
    for ms, graph in zip((75.0, 25.0), timed, strict=True):
        monkeypatch.setattr(clock, "quartiles", lambda calls, ms=ms: [GRAPH | {"median": ms}])
        (row,) = measure.measure(p, [sound], clock)
        assert ("graph_ms" in row) == graph


def test_passes_merge_into_the_attention_under_all_masks():
    p = problem()
    weights = PositionalLSH.draw(SMALL.slopes, 5, seed=3)
    made = ours.passes(p, weights, "sdpa")
    assert (made.call(*made.inputs)[:, :, ROWS] - attention(p, weights.matrix(256))).abs().max() < 1e-5


@pytest.mark.parametrize(("queries", "cutoff"), [(512, 2.0), (512, 0.0), (300, 20.0), (130, 0.5), (1, 2.0)])
def test_flex_window_visits_what_the_window_holds(queries, cutoff, monkeypatch):
    """Its blocks: every pair of the window lies in one, those that are not whole ones are masked to
    it."""
    monkeypatch.setattr(dense, "BLOCK", 32)
    p = Problem(SMALL, 512, queries, backward=False, device="cpu", dtype=torch.float32)
    weights = Window(SMALL.slopes, cutoff)
    blocks = dense.window_blocks(p, weights)
    seen = (weights.matrix(512).tril() > 0)[:, 512 - queries :]
    row, column = torch.arange(queries)[:, None], torch.arange(512)
    allowed = torch.stack([blocks.mask_mod(0, h, row, column) for h in range(4)])
    assert torch.equal(allowed, seen)
    for count, index, whole in (
        (blocks.kv_num_blocks, blocks.kv_indices, False), (blocks.full_kv_num_blocks, blocks.full_kv_indices, True),
    ):  # fmt: skip
        for h in range(4):
            for r in range(-(-queries // 32)):
                for c in index[0, h, r, : count[0, h, r]].tolist():
                    block = seen[h, 32 * r : 32 * r + 32, 32 * c : 32 * c + 32]
                    assert bool(block.all() if whole else block.any() and not block.all())
                    seen[h, 32 * r : 32 * r + 32, 32 * c : 32 * c + 32] = False if whole else torch.zeros(())
                    # no block is visited twice
    assert not seen.any()


def test_flash_attn_takes_each_window_with_its_heads(monkeypatch):
    """Against a stand-in for the package that computes what its documentation says."""
    launches = []

    def flash_attn_func(q, k, v, causal, alibi_slopes, window_size):
        launches.append((q.shape[2], window_size))
        i, j = torch.arange(q.shape[1])[:, None] + k.shape[1] - q.shape[1], torch.arange(k.shape[1])
        seen = (j <= i) & ((j >= i - window_size[0]) | (window_size[0] < 0))
        score = torch.einsum("bihd,bjhd->bhij", q, k) / 4 - alibi_slopes[:, None, None] * (i - j).abs()
        return torch.einsum("bhij,bjhd->bihd", score.masked_fill(~seen, -torch.inf).softmax(-1), v)

    monkeypatch.setitem(sys.modules, "flash_attn", SimpleNamespace(flash_attn_func=flash_attn_func))
    p = problem()
    for weights in (Window(SMALL.slopes, 1.0), Window(SMALL.slopes, 8.0), None):
        made = dense.flash_attn(p, weights)
        true = attention(p, (weights or p.exact).matrix(256))
        assert (made.call(*made.inputs)[:, :, ROWS] - true).abs().max() < 1e-5
    assert launches[:4] == [(1, (n, 0)) for n in (4, 16, 64, 256)] and launches[-1] == (4, (-1, -1))
    assert launches[4:-1] == [(1, (32, 0)), (1, (128, 0)), (2, (256, 0))]


def test_on_a_gpu_rows_are_in_the_order_of_their_worth():
    p = problem()
    p.device, p.output_error, p.equal_error_cutoff = SimpleNamespace(type="cuda"), lambda _: 0.1, lambda *_: 2.0
    some = sorted(methods.maskless(p, "triton") + methods.masked(p, "triton", 4), key=lambda m: m.rank)
    names = [m.name for m in some]
    assert names[0] == "plsh count, S=4" and names.index("alibi, triton") == 6
    assert all(n.startswith(("plsh", "window")) and "S=4" in n for n in names[:6])
    of_others = [m for m in some if m.by]
    assert {m.by for m in of_others} == {"FlexAttention", "flash-attn"} and len(of_others) == 2 * 3
    assert names.index("alibi, augmented q k, cuDNN") < min(some.index(m) for m in of_others)
    assert [m.match for m in some if m.name.startswith(names[1])] == [names[0]] * 3


def test_bias_tensor_above_the_limit_is_left_out_with_a_reason(monkeypatch):
    monkeypatch.setattr(dense, "MAX_BIAS_BYTES", 1000)
    with pytest.raises(dense.LeftOut, match="above the limit"):
        dense.with_bias(problem())


def test_low_precision_stays_below_the_limit_and_above_one_rounding():
    """What torch's own attention loses in bf16, ALiBi in three further dimensions included."""
    p = Problem(HeadSet(4, 64), 2048, 2048, backward=False, device="cpu", dtype=torch.bfloat16)
    made = dense.augmented(p)
    assert made.inputs[1].shape[3] == 72 and made.inputs[1].dtype == torch.bfloat16
    (row,) = measure.measure(p, methods.maskless(p, "sdpa")[:1], HostClock(1))
    assert 1e-3 < row["check_error"] < row["check_limit"] == 2.0**-7 and row["ms"]
