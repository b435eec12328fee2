"""The bench on 256 tokens: structure, errors against an independent computation, and no speed for a wrong result."""

import json
from dataclasses import replace

import pytest
import torch

from kernels import Window, alibi_slopes
from kernels.bench import Method, lsh_of, main, measure, methods, table

ROWS = [r for quarter in (1, 2, 3, 4) for r in range(64 * quarter - 8, 64 * quarter)]


def inputs():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(1, 4, 256, 16, generator=generator) for _ in range(3)]


def dense(weight):
    """Attention under an explicit (heads, tokens, tokens) weight, in float64, for the sampled rows."""
    q, k, v = (x.double() for x in inputs())
    score = torch.exp(q @ k.mT / 4) * weight.tril()
    return (score / score.sum(-1, keepdim=True) @ v)[:, :, ROWS]


def explicit_alibi():
    position = torch.arange(256.0, dtype=torch.float64)
    return torch.exp(-alibi_slopes(4)[:, None, None] * (position[:, None] - position).abs())


def test_report_has_every_method_side_by_side(tmp_path, capsys):
    file = tmp_path / "bench.json"
    arguments = ["--tokens", "256", "--heads", "4", "--head-dim", "16", "--repeats", "2", "--json", str(file)]
    report = main(arguments)
    assert json.loads(file.read_text()) == report
    assert {"torch", "cpu", "threads", "commit"} <= set(report["environment"])
    assert 0.1 < report["environment"]["memory_gb_s"] < 1e4
    (run,) = report["runs"]
    names = [r["name"] for r in run["methods"]]
    starts = ["alibi, augmented", "alibi, chunks", "alibi, bias", "window T=20", "window T=", "window T=", "plsh count"]
    starts += ["plsh rb", "plsh exact", "plsh count, systematic", "plsh count, merged"]
    assert len(names) == len(starts) and all(n.startswith(s) for n, s in zip(names, starts, strict=True))
    assert run["left_out"] == {} and run["shape"] == [1, 4, 256, 16]
    best = min(r["ms"]["median"] for r in run["methods"] if r["exact"])
    for r in run["methods"]:
        assert r["check_error"] < 1e-4 and r["ms"]["low"] <= r["ms"]["median"] <= r["ms"]["high"]
        assert r["speedup"] == pytest.approx(best / r["ms"]["median"])
    fastest = next(r["name"] for r in run["methods"] if r["exact"] and r["ms"]["median"] == best)
    printed = capsys.readouterr().out
    assert f"fastest exact path: {fastest}" in printed and all(name in printed for name in names)


def test_errors_are_those_against_exact_alibi():
    q, k, v = inputs()
    found, _ = methods(q, k, v)
    exact = dense(explicit_alibi())
    assert exact.shape == (1, 4, 32, 16)
    for result, method in zip(measure(q, k, v, found, 1), found, strict=True):
        error = dense(method.weights.matrix(256)) - exact
        assert result["max_abs_error"] == pytest.approx(error.abs().max().item(), abs=1e-5)
        assert result["rms_relative_error"] == pytest.approx((error.norm() / exact.norm()).item(), abs=1e-5)


def test_pairs_are_those_the_method_visits():
    q, k, v = inputs()
    found, _ = methods(q, k, v)
    count = found[-1].weights
    blocks = sum((lsh_of(count, s).matrix(256).tril(-1) > 0).sum().item() for s in range(16))
    assert found[-1].pairs * 4 * 256 == pytest.approx(blocks)
    for method in found[:-1]:
        assert method.pairs * 4 * 256 == pytest.approx((method.weights.matrix(256).tril(-1) > 0).sum().item())


def test_method_that_fails_its_check_shows_no_speed():
    q, k, v = inputs()
    found, _ = methods(q, k, v)
    sound = found[1]
    corrupted = replace(sound, name="corrupted", run=lambda: sound.run() + 0.01)
    other = Method("other weights", Window(alibi_slopes(4), 1.0), sound.run, 0.0)
    right, wrong, different = measure(q, k, v, [sound, corrupted, other], 1)
    assert right["ms"] is not None and right["check_error"] < 1e-5
    assert wrong["ms"] is None and wrong["speedup"] is None and wrong["check_error"] == pytest.approx(0.01, abs=1e-5)
    assert different["ms"] is None
    lines = {line.split("  ")[0]: line for line in table([right, wrong, different]).splitlines()}
    assert "no speed shown" in lines["corrupted"] and "no speed shown" not in lines["alibi, chunks"]


def test_bias_tensor_and_slow_passes_are_left_out_with_a_reason(monkeypatch):
    monkeypatch.setattr("kernels.bench.BIAS_BYTES", 1000)
    monkeypatch.setattr("kernels.bench.SLOWEST", 0.0)
    found, left_out = methods(*inputs())
    assert set(left_out) == {"alibi, bias tensor", "plsh count, merged passes"}
    assert not set(left_out) & {m.name for m in found} and all("limit" in reason for reason in left_out.values())


def test_lengths_that_are_no_lengths_are_refused(capsys):
    for tokens in ("16", "many", "-5", "256,"):
        with pytest.raises(SystemExit):
            main(["--tokens", tokens])
        assert "whole numbers from 32 on" in capsys.readouterr().err
