"""`python -m kernels.check` on the CPU: what it says of a sound kernel, of a wrong one, and of one that crashes."""

import json
import subprocess

import pytest
import torch

from kernels import Window, check
from kernels.attend import attend


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(check, "TOKENS", {"cpu": 40})
    monkeypatch.setattr(check, "DIMS", (16,))
    steep = torch.logspace(0, -4, 8, base=2.0, dtype=torch.float64)
    monkeypatch.setattr(check, "all_weights", lambda: {"window": Window(steep, 3.0, 2)})


def test_a_sound_kernel_passes_and_its_errors_are_written(tmp_path, capsys):
    file = tmp_path / "check.json"
    assert check.main(["--device", "cpu", "--json", str(file)]) == 0
    assert "27 calls in" in capsys.readouterr().out
    found = json.loads(file.read_text())
    assert found["kernel"] == "sdpa" and found["failed"] == [] and found["environment"]["device"] == "cpu"
    assert {row["dtype"] for row in found["rows"]} == {"float32", "float16", "bfloat16"}
    single = [row for row in found["rows"] if row["dtype"] == "float32"]
    assert {"causal", "padded", "decoding 1", "decoding 16", "chunk, gap"} <= {row["call"] for row in single}
    assert all(0 < row["worst"] < 1e-5 for row in single)
    with_gradients = [row["call"] for row in found["rows"] if "dv" in row["errors"]]
    assert with_gradients == ["causal", "bidirectional", "chunk"]


def test_a_wrong_call_is_named_and_the_others_are_checked(monkeypatch, capsys):
    def wrong(q, k, v, weights, *, kernel, **options):
        found = attend(q, k, v, weights, kernel=kernel, **options)
        if kernel == "exact":
            return found
        if q.shape[2] == 1:
            raise RuntimeError("out of resources\nmore")
        return (found[0] + 1.0, found[1]) if options.get("padding") is not None else found

    monkeypatch.setattr(check, "attend", wrong)
    assert check.main(["--device", "cpu", "--part", "window", "float32"]) == 1
    printed = capsys.readouterr().out
    assert "FAILED window, decoding 1, head dimension 16, float32: RuntimeError: out of resources\n" in printed
    assert "FAILED window, padded, head dimension 16, float32: out " in printed
    assert printed.count("FAILED") == 3 and "9 calls in" in printed and "3 failed" in printed


def test_a_process_that_dies_or_hangs_is_a_failure_in_words(monkeypatch):
    def died(command, **_):
        return subprocess.CompletedProcess(command, -11, "", "first\nCUDA error: an illegal memory access")

    def hung(command, timeout, **_):
        raise subprocess.TimeoutExpired(command, timeout)

    for fake, said in ((died, "ended with -11: CUDA error: an illegal"), (hung, "took longer than 280 s")):
        monkeypatch.setattr(subprocess, "run", fake)
        (row,) = check.in_a_process("window", torch.float16, "triton", "cuda")
        assert check.failure(row).startswith(f"window, all, head dimension 0, float16: {said}")


def test_a_part_runs_in_a_process_of_its_own():
    rows = check.in_a_process("alibi", torch.float32, "sdpa", "cpu")
    assert len(rows) == 7 and all(check.failure(row) is None for row in rows)  # nothing is out of ALiBi's reach


def test_no_gpu_is_said(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert check.main([]) == 2 and "no CUDA GPU" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        check.main(["--device", "cpu", "--part", "windoe", "float32"])
    assert "weights are window" in capsys.readouterr().err
