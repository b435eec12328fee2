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
    made.record(place, lambda k: 0.1, samples=8, task="theory")
    metrics = {"output_error": metric(0.25), "output_error_centred": metric(0.5)}
    metrics |= {f"output_error_head_{name}": metric(x) for name, x in errors.items()}
    metrics |= {f"mass_missed_predicted_head_{name}": metric(x / 4) for name, x in errors.items()}
    file = made.task_folder(place, "theory") / "task.json"
    named = {f"theory/{name}": m for name, m in metrics.items()}
    made.write(file, {**json.loads(file.read_text()), "metrics": named})


def test_heads_are_ordered_by_their_error(tmp_path):
    store(tmp_path, {"1_1": 0.1, "1_2": 0.6, "2_1": 0.2, "2_2": 0.4, "3_1": 0.3, "3_2": 0.0})
    figures = theory.measure(tmp_path)
    (row,) = figures["rows"]
    assert (row["masks"], row["weights"], row["captured"], row["samples"]) == (10, "count", True, 8)
    assert row["heads"]["2,2"] == {"output_error": 0.4, "mass_missed_predicted": 0.1}
    assert set(row["metrics"]) == {"output_error", "output_error_centred"}
    lines = theory.markdown(figures).splitlines()
    assert [line.split("|")[1].strip() for line in lines[-5:-1]] == ["1,2", "2,2", "3,1", "2,1"]
    assert lines[-1] == "| mean of the other 2 | 0.050 | 0.013 |"


def test_a_store_without_theory_is_refused(tmp_path):
    with pytest.raises(UserError, match="holds no theory"):
        theory.measure(tmp_path)
