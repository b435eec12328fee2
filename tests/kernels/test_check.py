"""`python -m kernels.check` on the CPU: what it says of a sound kernel, of wrong ones, and of one
that crashes."""

import itertools
import json
import math
import subprocess

import pytest
import torch

from kernels import Window, alibi_slopes
from kernels.attend import attend
from kernels.check import __main__ as command
from kernels.check import calls as check
from kernels.check import compare
from kernels.check.cases import FACTORS, Case
from kernels.common.environment import written
from kernels.impl import accuracy

MATRIX, WEIGHTS = check.matrix, check.all_weights
CASES = [
    Case(rule="count/gamma", masks=4, heads=(2, 1), shape=(41, 41, None), padding="left", layout="poisoned", sinks=3),
    Case(rule="count/gamma", masks=4, heads=(2, 1), shape=(41, 5, None), layout="transposed", dtype=torch.float32),
    Case(rule="count/gamma", masks=4, heads=(2, 2), shape=(40, 40, None), causal=False, dtype=torch.float16),
]


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(check, "TOKENS", {"cpu": 40})
    monkeypatch.setattr(check, "DIMS", (64, 16))
    steep = torch.logspace(0, -4, 8, base=2.0, dtype=torch.float64)
    monkeypatch.setattr(check, "all_weights", lambda: {"window": Window(steep, 3.0, 2)})
    monkeypatch.setattr(check, "matrix", lambda: CASES)


def test_a_sound_kernel_passes_and_its_errors_are_written(tmp_path, capsys):
    file = tmp_path / "check.json"
    assert command.main(["--device", "cpu", "--json", str(file)]) == 0
    assert "12 calls in" in capsys.readouterr().out
    found = json.loads(file.read_text())
    assert found["kernel"] == "sdpa" and found["failed"] == [] and found["environment"]["device"] == "cpu"
    assert all(0 < row["worst"] < 1 and row["lse_limit"] == 1e-4 for row in found["rows"]) and found["left"] == []
    of_weights = [row for row in found["rows"] if row["weights"] == "window"]
    assert {(row["dtype"], row["dim"]) for row in of_weights} == {("bfloat16", 16)}
    assert {"causal", "padded", "decoding 1", "decoding 16", "chunk, gap"} <= {row["call"] for row in of_weights}
    assert [row["call"] for row in of_weights if "dv" in row["errors"]] == [
        "causal",
        "bidirectional",
        "padded",
        "chunk",
    ]
    of_matrix = [row for row in found["rows"] if row["weights"] == "matrix count/gamma"]
    assert [row["call"] for row in of_matrix] == [case.id for case in CASES]
    assert [set(row["errors"]) - {"out", "lse", "padding"} for row in of_matrix] == [{"dq", "dk", "dv"}, set()] + [
        {"dq", "dk", "dv"}
    ]


def test_the_matrix_meets_every_pair_of_levels_and_the_parts_hold_all_of_it(monkeypatch):
    monkeypatch.undo()
    cases, levels = MATRIX(), FACTORS | {"masks": [1, 4, 16, 33, 64], "dim": list(check.DIMS)}
    for a, b in itertools.combinations(levels, 2):
        met = {(getattr(case, a), getattr(case, b)) for case in cases}
        assert set(itertools.product(levels[a], levels[b])) <= met
    parts = check.parts()
    assert len(set(parts)) == len(parts)
    assert {(check.MATRIX + case.rule, case.dtype) for case in cases} <= set(parts)
    # what the bench measures: bfloat16 at head dimension 128, every law with gradients
    assert {(name, torch.bfloat16) for name in WEIGHTS()} <= set(parts) and check.DIMS[-1] == 128
    assert {"alibi", "window", "rb gamma S=16", "count gamma S=16"} <= set(WEIGHTS())
    gradients = [name for name, call in check.calls(777).items() if call.get("gradients")]
    assert gradients == [
        "causal",
        "bidirectional",
        "padded",
        "chunk",
    ]


def test_one_part_tells_all_ranks_of_a_tile_apart():
    """With MPT's slopes: pairs within a tile of 64 that a row sees and the highest bit of the ranks
    alone keeps apart. Without it a mask more would count."""
    weights = WEIGHTS()[check.COUNT_32_HEADS]
    assert weights.slopes.tolist() == alibi_slopes(32).tolist()
    row = torch.arange(768)
    first = weights.reach(torch.arange(32), row[None].expand(32, -1))[0].view(32, 12, 64)
    opened = (weights.masks.starts(torch.arange(32), row[None].expand(32, -1)) == row[:, None]) & (row % 64 > 0)[
        :, None
    ]
    rank = opened.view(32, 12, 64, 16).cumsum(2)
    distance = torch.arange(64)[:, None] - torch.arange(64)
    seen = (distance >= 0) & (row.view(12, 1, 64) >= first[..., None])
    alike = sum(((rank[..., s][..., :, None] - rank[..., s][..., None, :]) == 32) for s in range(16)) > 0
    assert (alike & seen).flatten(1).any(1).sum() >= 3


def only_in_part(out: torch.Tensor) -> torch.Tensor:
    """What a kernel gives that forgets the last row."""
    written = torch.empty_like(out)
    written[:, :, :-1] = out[:, :, :-1]
    return written


WRONG = {  # what is done to q, out and the log-sum-exp, and where it shows
    "out": (lambda q, out, lse: (1.01 * out, lse), {"out"}),
    "lse": (lambda q, out, lse: (out, lse + 1e-3), {"lse"}),
    "unwritten": (lambda q, out, lse: (only_in_part(out), lse), {"out"}),
    "padding": (lambda q, out, lse: (torch.where(out == 0, 1.0, out), lse), {"padding", "out"}),
    "gradient": (lambda q, out, lse: (out + 0.01 * (q - q.detach()).nan_to_num(0.0), lse), {"dq"}),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_kernel_is_found(wrong, monkeypatch, capsys):
    """In the matrix and in the calls of one kind of weights."""
    harm, shows = WRONG[wrong]

    def harmed(q, k, v, weights, *, kernel, return_lse=False, **options):
        found = attend(q, k, v, weights, kernel=kernel, return_lse=True, **options)
        found = found if kernel == "exact" else harm(q, *found)
        return found if return_lse else found[0]

    monkeypatch.setattr(compare, "attend", harmed)
    monkeypatch.setattr(check, "attend", harmed)
    assert command.main(["--device", "cpu", "--part", "matrix count/gamma", "float32"]) == 1
    assert f"FAILED matrix count/gamma, {CASES[0].id}, head dimension 16, float32: " in capsys.readouterr().out
    rows = check.check("window", torch.float32, kernel="sdpa", device="cpu", tokens=40)
    rows += check.check("matrix count/gamma", torch.float32, kernel="sdpa", device="cpu", tokens=40)
    over = {
        name
        for row in rows
        for name, error in row["errors"].items()
        if not error <= accuracy.limit_of(name, row["limit"])
    }
    assert shows <= over <= shows | {"dq", "dk", "dv"}
    if wrong != "padding":
        assert check.failure(rows[0]).startswith("window, causal, head dimension 16, float32: ")


def test_a_wrong_call_is_named_and_the_others_are_checked(monkeypatch, capsys):
    def wrong(q, k, v, weights, *, kernel, **options):
        if kernel != "exact" and q.shape[2] == 1:
            raise RuntimeError("out of resources\nmore")
        found = attend(q, k, v, weights, kernel=kernel, **options)
        if kernel == "exact" or options.get("padding") is None:
            return found
        return (found[0] + 1.0, found[1]) if options.get("return_lse") else found

    monkeypatch.setattr(check, "attend", wrong)
    assert command.main(["--device", "cpu", "--part", "window", "bfloat16"]) == 1
    printed = capsys.readouterr().out
    assert "FAILED window, decoding 1, head dimension 16, bfloat16: RuntimeError: out of resources\n" in printed
    assert "FAILED window, padded, head dimension 16, bfloat16: out " in printed
    assert printed.count("FAILED") == 3 and "9 calls in" in printed and "3 failed" in printed


def test_a_log_sum_exp_that_is_off_shows_in_every_dtype(monkeypatch):
    """Also where the products of the dtype are rounded more coarsely."""

    def harmed(*inputs, kernel, **options):
        found = attend(*inputs, kernel=kernel, **options)
        return (found[0], found[1] + 3e-4) if kernel != "exact" and options.get("return_lse") else found

    monkeypatch.setattr(check, "attend", harmed)
    for dtype in accuracy.LIMITS:
        rows = check.check("window", dtype, kernel="sdpa", device="cpu", tokens=40)
        assert rows and all(": lse 3" in check.failure(row) for row in rows)


def test_parts_that_have_ended_are_kept_when_the_check_is_stopped(tmp_path, monkeypatch, capsys):
    file, done = tmp_path / "check.json", check.check

    def stopped(name, dtype, **options):
        if dtype == torch.float16:
            raise KeyboardInterrupt
        return done(name, dtype, **options)

    monkeypatch.setattr(check, "check", stopped)
    with pytest.raises(KeyboardInterrupt):
        command.main(["--device", "cpu", "--json", str(file)])
    found = json.loads(file.read_text())
    assert found["left"] == ["matrix count/gamma, float16"] and len(found["rows"]) == 11 and found["failed"] == []
    assert capsys.readouterr().out.count("of its limit\n") == 2


def test_memory_is_poisoned_for_the_kernel_alone():
    with accuracy.poisoned():
        assert bool(torch.empty(4).isnan().all()) and int(torch.empty(1, dtype=torch.int32)) == 2**31 - 1
        with pytest.raises(ZeroDivisionError), accuracy.poisoned():
            1 / 0  # noqa: B018
        assert torch.are_deterministic_algorithms_enabled()
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.layout)
def test_a_layout_lies_on_the_device_as_it_should(case):
    """A copy to another device would make odd slices dense."""
    q, k, _ = case.inputs("meta")
    assert [x.stride() for x in (q, k)] == [x.stride() for x in case.inputs()[:2]]
    assert (q.stride(2) == 16 + 3) == (case.layout == "poisoned")


def test_a_process_that_dies_or_hangs_is_a_failure_in_words(monkeypatch):
    def died(command, **_):
        return subprocess.CompletedProcess(command, -11, "", "first\nCUDA error: an illegal memory access")

    def hung(command, timeout, **_):
        raise subprocess.TimeoutExpired(command, timeout)

    for fake, said in ((died, "ended with -11: CUDA error: an illegal"), (hung, "took longer than 280 s")):
        monkeypatch.setattr(subprocess, "run", fake)
        (row,) = command.in_a_process("window", torch.float16, "triton", "cuda")
        assert check.failure(row).startswith(f"window, all, head dimension 0, float16: {said}")


def test_a_part_runs_in_a_process_of_its_own():
    rows = command.in_a_process("matrix exact/fixed", torch.float16, "sdpa", "cpu")
    expected = [case.id for case in MATRIX() if (case.rule, case.dtype) == ("exact/fixed", torch.float16)]
    assert [row["call"] for row in rows] == expected and all(check.failure(row) is None for row in rows)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--part", "windoe", "float32"], "there are 'window' bfloat16; 'matrix count/gamma' float32"),
        (["--json", "/nowhere/x.json"], "there is no folder /nowhere"),
        (["--json", "/"], "/ is a folder"),
        (["--workers", "-2"], "a whole number from 1 on, not -2"),
        (["--workers", "0"], "a whole number from 1 on, not 0"),
        (["--kernel", "flex"], "gives no log-sum-exp on the CPU"),
    ],
)
def test_what_makes_no_sense_is_refused_at_once(arguments, said, monkeypatch, capsys):
    monkeypatch.setattr(check, "check", None)
    with pytest.raises(SystemExit) as stopped:
        command.main(["--device", "cpu", *arguments])
    assert stopped.value.code == 2 and said in capsys.readouterr().err


def test_no_gpu_is_said(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert command.main([]) == 2 and "no CUDA GPU" in capsys.readouterr().out


def test_an_error_that_is_not_finite_is_null_in_the_file():
    row = {"weights": "alibi", "call": "causal", "dtype": "float32", "dim": 16, "limit": 1e-5}
    row |= {"lse_limit": 1e-4, "errors": {"out": math.inf, "lse": 1e-7}, "worst": math.inf}
    again = json.loads(written({"rows": [row]}), parse_constant=lambda name: pytest.fail(name))["rows"][0]
    assert again["errors"] == {"out": None, "lse": 1e-7}
    assert check.failure(again) == check.failure(row) == "alibi, causal, head dimension 16, float32: out inf > 1e-05"
