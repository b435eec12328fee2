"""The figures of task=theory: rows of a store, and the heads of the largest errors."""

import json

import pytest

from harness.common.errors import UserError
from tests.measure import theory
from tests.report import made


def metric(value: float) -> dict:
    return {"value": value, "low": value / 2, "high": value * 2, "n": 4, "unit": "relative error"}


def store(folder, errors: dict[str, float]):
    place = made.cell(folder, made.plsh(10), fused=30.0, passes=200.0)
    metrics = {"output_error": metric(0.25), "output_error_centred": metric(0.5)}
    layers = [[errors[f"{layer}_{head}"] for head in (1, 2)] for layer in (1, 2, 3)]
    heads = {"output_error": layers, "mass_missed_predicted": [[x / 4 for x in layer] for layer in layers]}
    heads["advantage_over_1"] = [[1 - x for x in layer] for layer in layers]
    made.record(place, lambda k: 0.1, samples=8, task="theory", heads=heads)
    file = made.task_folder(place, "theory") / "task.json"
    named = {f"theory/{name}": m for name, m in metrics.items()}
    made.write(file, {**json.loads(file.read_text()), "metrics": named})


def test_heads_are_ordered_by_their_error(tmp_path):
    store(tmp_path, {"1_1": 0.1, "1_2": 0.6, "2_1": 0.2, "2_2": 0.4, "3_1": 0.3, "3_2": 0.02})
    figures = theory.measure(tmp_path)
    (row,) = figures["rows"]
    assert (row["masks"], row["weights"], row["captured"], row["samples"]) == (10, "count", True, 8)
    assert row["heads"]["2,2"] == pytest.approx(
        {"output_error": 0.4, "mass_missed_predicted": 0.1, "advantage_over_1": 0.6}
    )
    assert set(row["metrics"]) == {"output_error", "output_error_centred"}
    lines = theory.markdown(figures).splitlines()
    assert [line.split("|")[1].strip() for line in lines[-6:-2]] == ["1,2", "2,2", "3,1", "2,1"]
    assert lines[-2:] == [
        "| mean of the other 2 | 0.060 | 0.015 | 0.940 |",
        "| rank correlation with the error |  | 1.00 | -1.00 |",
    ]


def test_a_store_without_theory_is_refused(tmp_path):
    with pytest.raises(UserError, match="holds no theory"):
        theory.measure(tmp_path)
