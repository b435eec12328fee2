"""Two stores compared cell by cell, paired by prompt; regressions are flagged and set the exit
code."""

import json
import shutil
import subprocess

import pytest

from harness.common.files import short_hash
from harness.common.paths import ROOT
from harness.common.stats import Metric
from harness.report.__main__ import main
from harness.report.compare import _verdict
from tests.report import made


def compare(capsys, *arguments: str) -> tuple[int, dict, str]:
    code = main(list(arguments))
    told = capsys.readouterr()
    return code, json.loads(told.out.splitlines()[-1]), told.out + told.err


@pytest.fixture
def two(tmp_path):
    """Stores a and b with the same records."""
    made.record(made.cell(tmp_path / "a", made.ALIBI, fused=127.5), lambda k: 1.0)
    made.record(made.cell(tmp_path / "a", made.plsh(4), fused=30.0, passes=60.0), lambda k: float(k % 2))
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    return str(tmp_path / "a"), str(tmp_path / "b"), tmp_path


def test_equal_stores_have_no_regression(two, capsys):
    code, document, told = compare(capsys, "--compare", *two[:2])
    assert code == 0
    assert document == {"status": "ok", "compared": 2, "figures": 4, "regressions": 0}
    assert "4 same" in told  # accuracy and likelihood of each


def test_a_loss_on_the_same_prompts_is_a_regression_and_its_mirror_is_none(two, capsys):
    made.record(made.cell(two[2] / "b", made.ALIBI, fused=127.5), lambda k: float(k % 4 != 0))
    code, document, told = compare(capsys, "--compare", *two[:2])
    assert code == 1
    assert document["regressions"] == 1
    assert "-0.250 [" in told
    assert "worse" in told
    code, document, told = compare(capsys, "--compare", two[1], two[0])
    assert code == 0
    assert "+0.250 [" in told
    assert "better" in told


def test_a_cell_that_fails_now_is_a_regression(two, capsys):
    folder = made.cell(two[2] / "b", made.ALIBI, fused=127.5)
    shutil.rmtree(made.task_folder(folder))
    made.failed(folder, "ValueError", "no")
    code, document, told = compare(capsys, "--compare", *two[:2])
    assert code == 1
    assert "failed" in told
    assert "error" in told


def test_cells_of_one_store_alone_are_named_and_no_regression(two, capsys):
    made.record(made.cell(two[2] / "b", made.plsh(8), fused=40.0, passes=80.0), lambda k: 1.0)
    code, _, told = compare(capsys, "--compare", *two[:2])
    assert code == 0
    assert "1 new" in told
    assert "PLSH S=8 gamma count" in told


def test_other_weights_of_the_same_model_are_compared(two, capsys):
    path = next(p for p in (two[2] / "b").glob("*/cell.json") if "ALiBi" in p.read_text())
    cell = json.loads(path.read_text())
    cell["identity"]["model"]["weights"] = "retrained"
    cell["cell_id"] = short_hash(cell["identity"])
    made.write(path, cell)
    path.parent.rename(path.parent.with_name(cell["cell_id"]))
    code, document, _ = compare(capsys, "--compare", *two[:2])
    assert code == 0
    assert document["compared"] == 2


def test_times_are_worse_when_their_intervals_lie_apart_and_bytes_when_there_are_more():
    def metric(low: float | None, high: float | None, value: float = 0.0) -> Metric:
        return Metric(value, low, high, 10, "ms")

    assert _verdict(metric(9, 12, 10), metric(19, 22, 20), -1, 1.25) == "worse"
    assert _verdict(metric(19, 22, 20), metric(9, 12, 10), -1, 1.25) == "better"
    assert _verdict(metric(9, 12, 10), metric(19, 22, 20), 1, 1.25) == "better"  # a speed-up
    assert _verdict(metric(9, 21, 10), metric(19, 22, 20), -1, 1.25) == "same"
    assert _verdict(metric(9.9, 10.1, 10), metric(11.9, 12.1, 12), -1, 1.25) == "same"
    assert _verdict(metric(None, None, 100), metric(None, None, 102), -1, 1.01) == "worse"
    assert _verdict(metric(None, None, 100), metric(None, None, 98), -1, 1.01) == "better"
    assert _verdict(metric(None, None, 100), metric(None, None, 100), -1, 1.01) == "same"


def test_the_newest_timing_on_each_device_is_compared(tmp_path, capsys):
    for store, slower in (("a", 1.0), ("b", 10.0)):
        folder = made.cell(tmp_path / store, made.plsh(4), fused=30.0, passes=60.0)
        made.timed(folder, 1.0, commit="old", start="2026-01")
        made.timed(folder, slower, commit="new", start="2026-02")
        made.timed(folder, 0.1, commit="new", start="2026-02", device="H200")
    code, document, told = compare(capsys, "--compare", str(tmp_path / "a"), str(tmp_path / "b"))
    assert code == 1
    assert document["compared"] == 2
    # prefill and peak memory
    assert document["regressions"] == 2
    assert "throughput/prefill_ms" in told


def test_a_cell_that_was_stopped_since_is_a_regression(two, capsys):
    for path in (two[2] / "b").glob("*/retrieval-*/task.json"):
        path.unlink()
    code, document, told = compare(capsys, "--compare", *two[:2])
    assert code == 1
    assert document["regressions"] == 2
    assert "stopped" in told
    assert "2 failed" in told


def test_more_memory_and_a_larger_error_are_regressions(tmp_path, capsys):
    for store, scale, error in (("a", 1.0, 2e-7), ("b", 1.5, 3e-6)):
        folder = made.cell(tmp_path / store, made.ALIBI, fused=127.5)
        made.timed(folder, 1.0)
        (path,) = folder.glob("throughput-*/task.json")
        record = json.loads(path.read_text())
        plain = {"low": None, "high": None, "n": 1}
        record["metrics"]["throughput/peak_bytes"] = {"value": 1e9 * scale, **plain, "unit": "bytes"}
        record["metrics"]["throughput/error"] = {"value": error, **plain, "unit": "relative error"}
        made.write(path, record)
    code, document, told = compare(capsys, "--compare", str(tmp_path / "a"), str(tmp_path / "b"))
    assert code == 1
    assert document["regressions"] == 2
    assert "throughput/peak_bytes" in told
    assert "throughput/error" in told
    assert "2 same" in told


def test_what_is_unsupported_now_is_a_regression_and_its_mirror_an_improvement(two, capsys):
    path = next((two[2] / "b").glob("*/retrieval-*/task.json"))
    made.write(path, {**json.loads(path.read_text()), "status": "unsupported", "metrics": {}})
    code, _, told = compare(capsys, "--compare", *two[:2])
    assert code == 1
    assert "1 failed" in told
    assert "unsupported" in told
    code, _, told = compare(capsys, "--compare", two[1], two[0])
    assert code == 0
    assert "1 better" in told


def test_a_loss_of_likelihood_alone_is_a_regression(two, capsys):
    folder = made.cell(two[2] / "b", made.ALIBI, fused=127.5)
    made.record(folder, lambda k: 1.0, nll=0.2)
    code, document, told = compare(capsys, "--compare", *two[:2])
    assert code == 1
    assert document["regressions"] == 1
    assert "retrieval/answer_nll" in told
    assert "+0.100" in told


def test_a_store_in_git_is_read_at_a_commit(capsys):
    inside = subprocess.run(["git", "-C", ROOT, "rev-parse", "HEAD"], capture_output=True, check=False)
    if inside.returncode:
        pytest.skip("not in a git checkout")
    code, document, _ = compare(capsys, "docs/results/first", "--compare", "HEAD", "HEAD:docs/results/first")
    assert code == 0
    assert document["compared"] == 10


@pytest.mark.parametrize("wrong", ["nowhere", "HEAD:no/such/folder"])
def test_what_is_no_store_is_a_sentence(wrong, tmp_path, capsys):
    code, document, told = compare(capsys, "--compare", wrong, str(tmp_path))
    assert code == 2
    assert document["status"] == "invalid"
    assert "Traceback" not in told


def test_other_versions_are_said(two, capsys):
    for store, version in (("a", "5.23.0"), ("b", "5.24.0")):
        for folder in (two[2] / store).iterdir():
            made.versions(folder, transformers=version, tokenizers="0.23.3")
    _, _, told = compare(capsys, "--compare", *two[:2])
    assert "transformers 5.23.0 (A) and 5.24.0 (B)" in told
    assert "tokenizers" not in told
    _, _, told = compare(capsys, "--compare", two[0], two[0])
    assert "5.23.0" not in told
