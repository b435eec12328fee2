"""Every odd input gets the right number or a refusal, and the bench of it sees a wrong one. Those
that lm-eval reads are left to `make odd`: building its documents takes 20 s each, and
tests/tasks/lmeval has the same edits."""

import dataclasses

import pytest

from tests.odd import bench
from tests.odd.cases import MODEL_CASES, Case
from tests.odd.data import DATA_CASES
from tests.odd.make import checkpoint, setting

CASES = (*MODEL_CASES, *DATA_CASES)


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    return tmp_path_factory.mktemp("odd")


@pytest.mark.parametrize("case", [case for case in CASES if not case.task], ids=lambda case: f"{case.kind}: {case.odd}")
def test_odd_inputs_get_the_right_number_or_a_refusal(zygote, places, case):
    assert bench.run(zygote, case, places / str(CASES.index(case))).wrong is None


def test_the_bench_sees_wrong_numbers_and_missing_refusals(zygote, places):
    right = Case("none", "a copy of tiny", checkpoint(), 1.0)
    for number, expected in enumerate((0.9, "some sentence")):
        wrong = dataclasses.replace(right, expected=expected)
        assert bench.run(zygote, wrong, places / f"wrong-{number}").wrong
    refused = Case("config.json", "an unknown family", checkpoint(config=setting(model_type="gpt2")), 1.0)
    assert "exit code 2" in bench.run(zygote, refused, places / "refused").wrong


def test_at_least_sixty():
    assert len({(case.kind, case.odd) for case in CASES}) == len(CASES) >= 60
