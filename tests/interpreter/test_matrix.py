"""Kernel `triton` over the shared matrix of cases, with keys left out, and in the bench."""

import itertools
import math
from dataclasses import replace

import pytest
import torch

from kernels import PositionalLSH, attend
from kernels.bench.clock import HostClock
from kernels.bench.measure import measure
from kernels.bench.methods import masked, maskless
from kernels.bench.plan import CALLS, HeadSet
from kernels.bench.problem import Problem
from kernels.check import calls as check
from kernels.check.compare import case_errors, oracle_per_sequence
from kernels.impl import accuracy
from kernels.impl.tables import law_of
from kernels.impl.triton import attend as triton_attend
from kernels.impl.triton.causal import descriptor, is_streamable
from kernels.impl.triton.decode import decode
from kernels.impl.triton.delta import delta_of
from kernels.impl.triton.launch import step_of
from kernels.impl.triton.packed import bias_on_device, packed_on_device
from tests.kernels.cases import FACTORS, Case, pairwise
from tests.kernels.test_gap import GAPS
from tests.kernels.test_gap import test_what_is_left_out_is_not_seen_by_a_query_that_would_reach_it as not_seen
from tests.kernels.test_gap import test_what_no_row_reaches_may_be_left_out as leave_out
from tests.kernels.test_matrix import test_kernel_agrees_with_the_oracle as agree

# the interpreter takes a millisecond for every few operations on a tile: few heads, short contexts
CASES = pairwise(
    FACTORS
    | {
        "masks": [1, 5, 16, 33, 64],
        "heads": [(1, 1), (4, 2), (3, 1)],
        "shape": [(1, 1, None), (131, 131, None), (150, 1, None), (150, 7, None), (161, 50, 64)],
        "dim": [16, 24, 32],
        "sinks": [0, 3, 40],
    }
)


@pytest.fixture(autouse=True)
def poisoned_memory():
    """Memory that is asked for but not written holds NaN, or the largest number of its type."""
    torch.use_deterministic_algorithms(True)
    assert bool(torch.empty(4).isnan().all())
    yield
    torch.use_deterministic_algorithms(False)


LAWS = ["alibi", "rb/gamma", "rb/systematic", "count/gamma", "count/systematic"]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.id}-d{case.dim}")
def test_matrix(case: Case):
    agree(case, "triton")


@pytest.mark.parametrize("case", GAPS, ids=lambda case: case.id)
def test_gaps(case: Case):
    leave_out(case, 5, "triton")


@pytest.mark.parametrize("queries", [3, 20])
@pytest.mark.parametrize("rule", ["window", "count/gamma", "rb/systematic"])
def test_what_is_left_out_is_not_seen(rule: str, queries: int):
    not_seen(rule, queries, "triton")


# more than 32 are not merged at a time
@pytest.mark.parametrize("rule, splits", [*itertools.product(LAWS, [1, 5]), ("count/gamma", 40)])
def test_decoding_gives_the_same_for_every_split(rule: str, splits: int):
    case = Case(rule=rule, heads=(3, 1), slopes="spread", shape=(150, 7, None), padding="left", sinks=3)
    q, k, v = case.inputs()
    starts = 143 - case.pads()
    weights, places = case.weights(), torch.stack([case.pads(), starts]).int()
    numbers = packed_on_device(weights, q.device)
    out, lse = decode(q, k, v, numbers, bias_on_device(weights, 150, numbers), places, scale=0.25, splits=splits)
    true_out, true_lse = attend(q, k, v, weights, kernel="exact", return_lse=True, **case.options())
    assert (out - true_out).abs().max() < 2e-5 and (lse - true_lse).abs().max() < 2e-5


@pytest.mark.parametrize("rule", LAWS)
def test_a_chunk_builds_tables_for_its_own_rows(rule: str, monkeypatch):
    """A long context is filled in chunks: tables of the whole for each of them would grow with its
    square."""
    case, built = Case(rule=rule, heads=(3, 1), slopes="steep", shape=(400, 70, 250), sinks=3), []
    build = triton_attend.tables_on_device

    def spy(*inputs, **options):
        built.append(build(*inputs, **options))
        return built[-1]

    monkeypatch.setattr(triton_attend, "tables_on_device", spy)
    out = attend(*case.inputs(), case.weights(), kernel="triton", q_offset=250)
    assert (out - attend(*case.inputs(), case.weights(), kernel="exact", q_offset=250)).abs().max() < 2e-5
    (tables,) = built
    assert 0 < tables.origin <= 250 and tables.origin + tables.first.shape[1] < 400 + tables.tile


@pytest.mark.parametrize("near", [0, 64])
@pytest.mark.parametrize("rule", ["window", "count/gamma", "rb/gamma", "rb/systematic"])
def test_decoding_reads_no_key_out_of_reach(rule: str, near: int):
    case = Case(rule=rule, heads=(2, 2), masks=4, slopes="steep", shape=(187, 3, None), near=near)
    weights = case.weights()
    q, k, v = case.inputs()
    true = attend(q, k, v, weights, kernel="exact")
    first, _ = weights.reach(torch.arange(2), torch.full((2, 1), 184))
    assert bool((first > 0).any()) and bool((first[:1] == 184 - near + 1).all()) == (near > 0)
    for head in range(2):
        k[:, head, : first[head, 0]] = math.nan
        v[:, head, : first[head, 0]] = math.nan
    assert (attend(q, k, v, weights, kernel="triton") - true).abs().max() < 2e-5


@pytest.mark.parametrize("near", [0, 40])
def test_prefill_in_chunks_is_prefill(near: int):
    case = Case(heads=(3, 3), shape=(131, 131, None), near=near)
    q, k, v = case.inputs()
    weights = case.weights()
    whole = attend(q, k, v, weights, kernel="triton")
    for begin, stop in ((0, 41), (41, 57), (57, 131)):
        part = attend(q[:, :, begin:stop], k[:, :, :stop], v[:, :, :stop], weights, kernel="triton", q_offset=begin)
        assert (part - whole[:, :, begin:stop]).abs().max() < 2e-5


BACKWARD = pairwise(
    {
        "rule": ["window", "exact/gamma", "rb/gamma", "rb/systematic", "count/gamma", "count/systematic"],
        "masks": [4, 33],
        "heads": [(2, 1), (2, 2)],
        "slopes": ["press", "spread"],
        "shape": [(75, 75, None), (90, 41, 37), (70, 5, None)],
        "padding": ["none", "left", "all"],
        "causal": [True, False],
        "layout": ["plain", "transposed", "poisoned"],
        "dim": [16, 80],  # half a tile at a time from 65 upwards
        "sinks": [0, 3, 40],
        "near": [0, 16, 64, 100],
    }
)


@pytest.mark.parametrize("case", BACKWARD, ids=lambda case: f"{case.id}-d{case.dim}")
def test_gradients(case: Case):
    weights, inputs = case.weights(), [x.requires_grad_() for x in case.inputs()]
    generator = torch.Generator().manual_seed(3)
    grad_out = torch.randn(inputs[0].shape, generator=generator)
    grad_lse = torch.randn(inputs[0].shape[:3], generator=generator)
    out, lse = attend(*inputs, weights, kernel="triton", return_lse=True, **case.options())
    real = lse > -math.inf
    gradients = torch.autograd.grad((out * grad_out).sum() + (lse[real] * grad_lse[real]).sum(), inputs)
    for i, slots, true in oracle_per_sequence(case, inputs, grad_out, grad_lse):
        for gradient, part in zip(gradients, slots, strict=True):
            assert not bool(gradient[i, :, : part.start].any())
        for gradient, part, expected in zip(gradients, slots, true[2:] if true else [], strict=bool(true)):
            assert (gradient[i, :, part] - expected[0]).abs().max() < 2e-5


@pytest.mark.parametrize("rule, near", [("window", 0), *itertools.product(["rb/gamma", "count/gamma"], [0, 16, 64])])
def test_gradients_of_the_kernels_for_hopper(rule: str, near: int):
    """In half precision, which they ask for: beside a float64 oracle of the same rounded inputs."""
    case = Case(rule=rule, masks=5, heads=(2, 1), slopes="spread", shape=(75, 75, None), padding="left",
                dtype=torch.float16, sinks=3, near=near)  # fmt: skip
    found = case_errors(case, "triton", "cpu")
    assert found.pop("padding") == 0.0 and found.pop("lse") < accuracy.LSE_LIMIT
    assert set(found) == {"out", "dq", "dk", "dv"} and max(found.values()) < accuracy.LIMITS[torch.float16]


def test_a_near_field_of_many_tiles():
    for queries in (150, 3):
        agree(Case(heads=(2, 1), masks=3, slopes="steep", shape=(150, queries, None), near=140), "triton")


@pytest.mark.parametrize("rule", LAWS)
def test_tiles_of_64_in_halves_and_quarters(rule: str, monkeypatch):
    """As on sm_90: a quarter of the interpreter's tiles would be less than the least step."""
    monkeypatch.setattr(triton_attend, "tile_of", lambda dtype, capability: 64)
    case = Case(rule=rule, masks=33, heads=(2, 1), shape=(131, 131, None), causal=False, dim=80, sinks=3, near=70)
    law, quarter = law_of(case.weights()), ("rb", "distance", "sum")
    options = (law, 33, False, 80, torch.float32, 64, 3, 0, False)
    steps = [step_of(kernel, *options) for kernel in ("forward", "dq", "dkdv")]
    assert steps[0] == (16 if law == "sum" else 32) and steps[1] == (16 if law in quarter else 32)
    agree(case, "triton")
    test_gradients(case)


def test_delta_of_rows_that_lie_anywhere():
    draw = torch.Generator().manual_seed(0)
    out = torch.randn(2, 3, 71, 24, generator=draw).half()
    dout = torch.randn(2, 71, 3, 30, generator=draw).half().transpose(1, 2)[..., 3:27]
    for dlse in (torch.randn(2, 71, 3, generator=draw).transpose(1, 2), torch.tensor(0.5).expand(2, 3, 71)):
        true = (out.double() * dout.double()).sum(-1) - dlse
        assert (delta_of(out, dout, dlse) - true).abs().max() < 1e-5


def test_what_it_cannot_do_is_said():
    case = Case(heads=(2, 2), shape=(33, 33, None))
    double, wide = replace(case, dtype=torch.float64), replace(case, dim=160)
    for wrong, hint in ((double, "float16, bfloat16"), (wide, "up to 128")):
        with pytest.raises(ValueError, match=hint):
            attend(*wrong.inputs(), wrong.weights(), kernel="triton")


def test_a_head_may_have_hundreds_of_masks():
    case = Case(heads=(2, 2), shape=(90, 90, None))
    weights = PositionalLSH.draw(case.slope_list(), 100, seed=0)
    with pytest.raises(ValueError, match="at most 64 masks"):
        attend(*case.inputs(), weights, kernel="triton")
    rb = PositionalLSH.draw(case.slope_list(), 100, seed=0, weights="rb")
    q, k, v = case.inputs()
    assert (attend(q, k, v, rb, kernel="triton") - attend(q, k, v, rb, kernel="exact")).abs().max() < 2e-5


def test_the_check_for_a_gpu_runs_and_fails_what_is_wrong(monkeypatch):
    monkeypatch.setattr(accuracy, "HEADS", 2)
    monkeypatch.setattr(accuracy, "KV_HEADS", 1)
    steep = PositionalLSH.draw(torch.tensor([0.5, 0.25]), 4, seed=1, sinks=3)
    monkeypatch.setattr(check, "all_weights", lambda: {"count": steep})
    monkeypatch.setattr(check, "DIMS", (16,))
    monkeypatch.setattr(check, "GAP_LENGTH_FACTOR", 4)
    some, every = ("causal", "decoding 3, padded", "chunk, gap", "decoding 3, gap"), check.calls
    monkeypatch.setattr(check, "calls", lambda tokens: {name: every(tokens)[name] for name in some})
    rows = check.check("count", torch.float32, kernel="triton", device="cpu", tokens=33)
    assert [set(row["errors"]) for row in rows] == [{"out", "lse", "dq", "dk", "dv"}] + [{"out", "lse"}] * 3
    assert [check.failure(row) for row in rows] == [None] * 4
    failed = [check.failure(row | {"limit": 1e-12}) for row in rows]
    assert failed[0].startswith("count, causal, head dimension 16, float32: out ") and all(failed)


@pytest.mark.parametrize("call", ["forward", "decode-1", "backward"])
def test_the_bench_measures_this_kernel_on_prepared_tables(call: str):
    tokens = 64
    p = Problem(HeadSet(2, 16), tokens, CALLS[call] or tokens, backward=call == "backward", device="cpu",
                dtype=torch.float32)  # fmt: skip
    methods = [m for m in [*maskless(p, "triton"), *masked(p, "triton", 3)] if "window" not in m.name]
    for row in measure(p, methods, HostClock(1)):
        if "bias" in row["name"] or "augmented" in row["name"]:
            continue
        if "passes" in row["name"] and call != "forward":
            assert row["status"].startswith("left out")
            continue
        assert row["status"] == "ok" and row["check_error"] < 1e-5, row
        times = 3 if "passes" in row["name"] else 1
        tables = row["bytes"] - times * row["floor_bytes"]
        assert tables == 0 if "decode" in call else tables > 0


@pytest.mark.parametrize("queries", [90, 3])
def test_masks_on_a_grid(queries: int):
    weights = PositionalLSH.draw(torch.tensor([0.5, 0.01]), 5, seed=1, sinks=2, align=12)
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 2, n, 16, generator=generator).half() for n in (queries, 90, 90))
    true, true_lse = attend(q.double(), k.double(), v.double(), weights, kernel="exact", return_lse=True)
    out, lse = attend(q, k, v, weights, kernel="triton", return_lse=True)
    assert (out - true).abs().max() < 4e-3 and (lse - true_lse).abs().max() < 1e-4
    off = attend(q, k, v, PositionalLSH.draw(weights.slopes, 5, seed=1, sinks=2), kernel="triton")
    assert (off - true)[:, 1].abs().max() > 0.01  # the flat head is on the grid


def test_what_the_copy_engine_can_fetch():
    """Addresses and strides in multiples of 16 bytes, those of a dense tensor of the same shape
    too; a dimension of one may have any stride."""
    x = torch.zeros(2, 3, 8, 32, dtype=torch.float16)
    assert (
        is_streamable(x) and is_streamable(x.mT.contiguous().mT[..., :8].contiguous()) and is_streamable(x[:, :, ::2])
    )
    assert (
        not is_streamable(x[..., :12])
        and not is_streamable(x[..., 1:9])
        and not is_streamable(x[:, :1].expand(-1, 3, -1, -1))
    )
    one = torch.zeros(1000, dtype=torch.float16).as_strided((1, 3, 1, 32), (7, 64, 5, 1))
    assert is_streamable(one)
    assert descriptor(one, 16).strides == [32, 64, 32, 1]
