"""task=horizon: what drawn masks see, against the prediction and against dense weights."""

import pytest
import torch

from harness.analysis import reader
from harness.tasks import horizon
from kernels import PositionalLSH, Window, alibi_slopes


def words(results, *more: str) -> list[str]:
    return ["model=random", "task=horizon", "context=4096", f"results={results}", "tracking=disabled", *more]


@pytest.mark.parametrize("options", [{}, {"sinks": 4}, {"near": 40}], ids=str)
def test_a_row_sees_what_its_weights_say(options):
    layers = [PositionalLSH.draw(alibi_slopes(4), 3, seed=2, layer=layer, **options) for layer in range(2)]
    context = 512
    row = horizon.measure(layers, context)
    rows, columns = torch.arange(256, 512), torch.arange(512)
    far = torch.stack([w.log_dense(rows, columns).isfinite() for w in layers]).flatten(0, 1)
    far[..., : options.get("sinks", 0)] = False
    distance = rows[:, None] - columns
    farthest = (far * distance).amax((0, 2)).clamp_max(256)
    assert row.score == float(farthest.double().median())
    assert row.flattest == float((far * distance).amax(2)[[3, 7]].clamp_max(256).double().median())
    for d in (1, 16, 128, 256):
        assert row.seen[str(d)] == pytest.approx(float((farthest >= d).double().mean()))
        by_head = ((far & (distance >= d)).any(2)).double().mean()
        assert row.seen_by_a_head[str(d)] == pytest.approx(float(by_head))


def test_a_window_sees_as_far_as_its_cutoff():
    row = horizon.measure([Window(alibi_slopes(8), 0.75)] * 2, 4096)
    assert row.score == 0.75 * 256
    assert row.seen["128"] == 1
    assert row.seen["256"] == 0
    assert not row.predicted


def test_prediction_and_measurement_agree(run, tmp_path):
    code, document, _, err = run(*words(tmp_path, "masks=16", "draws=64", "references=none"))
    assert code == 0, err
    metrics = {name.removeprefix("horizon/"): m for name, m in document["metrics"].items()}
    compared = compared_heads = 0
    for name, metric in metrics.items():
        if name.endswith("_predicted") and name.startswith("seen"):
            measured = metrics[name.removesuffix("_predicted")]
            half = max((measured["high"] - measured["low"]) / 2, 0.01)
            assert abs(measured["value"] - metric["value"]) < 2.3 * half  # 4.5 standard errors
            compared += 0.02 < metric["value"] < 0.98
        if name.endswith("_predicted") and name.startswith("seen_by_a_head"):
            compared_heads += 0.02 < metric["value"] < 0.98
    assert compared >= 1
    assert compared_heads >= 3
    # one head at S = 16: -256 log(1 - 2^(-1/16))
    flattest = metrics["horizon_flattest_head_predicted"]["value"]
    assert flattest == pytest.approx(809, abs=1)
    half = (metrics["horizon_flattest_head"]["high"] - metrics["horizon_flattest_head"]["low"]) / 2
    assert abs(metrics["horizon_flattest_head"]["value"] - flattest) < 3 * half
    half = (metrics["horizon"]["high"] - metrics["horizon"]["low"]) / 2
    assert metrics["blind_float16"]["value"] == pytest.approx(17.33 * 256, rel=1e-3)
    assert abs(metrics["horizon"]["value"] - metrics["horizon_predicted"]["value"]) < 4 * half


def test_references_stand_beside_it(run, tmp_path):
    code, _, out, err = run(*words(tmp_path, "draws=2", "context=512"))
    assert code == 0, err
    assert {r.attention.name for r in reader.records(tmp_path)} >= {"alibi", "plsh", "window"}
    assert "horizon" in out
