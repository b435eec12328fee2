"""RULER's average and effective length: against the table that its authors publish."""

import pytest

from harness.analysis import reader
from harness.pareto import page
from harness.pareto.ruler import Average, averages, effective_length, weighted_average
from tests.report import made

LENGTHS = (4096, 8192, 16384, 32768, 65536, 131072)
# github.com/NVIDIA/RULER, README: averages at 4K to 128K, weighted averages, effective length
PUBLISHED = [
    ("Llama3.1 (8B)", (95.5, 93.8, 91.6, 87.4, 84.7, 77.0), 85.4, 91.3, 32768),
    ("Llama3.1 (70B)", (96.5, 95.8, 95.4, 94.8, 88.4, 66.6), 85.5, 93.7, 65536),
    ("InternLM2.5 (7B)", (88.1, 85.5, 84.5, 82.7, 75.5, 68.9), 77.8, 83.9, 4096),
    ("DBRX (36B/132B)", (95.1, 93.8, 83.6, 63.1, 2.4, 0.0), 38.0, 74.7, 8192),
    ("LWM (7B)", (82.3, 78.4, 73.7, 69.1, 68.1, 65.0), 69.9, 75.7, None),
]


@pytest.mark.parametrize("name, percent, increasing, decreasing, length", PUBLISHED)
def test_published_rows(name, percent, increasing, decreasing, length):
    by_length = {n: p / 100 for n, p in zip(LENGTHS, percent, strict=True)}
    assert effective_length(by_length) == length
    # the published averages are rounded to a tenth
    assert 100 * weighted_average(by_length, increasing=True) == pytest.approx(increasing, abs=0.11)
    assert 100 * weighted_average(by_length, increasing=False) == pytest.approx(decreasing, abs=0.11)


def test_only_tasks_at_every_length_are_averaged(tmp_path):
    for context in (256, 512):
        cell = made.cell(tmp_path, made.ALIBI, context=context, fused=127.5)
        made.record(cell, lambda k: 1.0, task="niah_single_1")
        made.record(cell, lambda k: float(k % 2), task="ruler_vt")
        if context == 256:
            made.record(cell, lambda k: 0.0, task="ruler_cwe")
    (found,) = averages(reader.comparisons(reader.records(tmp_path)))
    assert found == Average("m", "exact ALiBi", ["niah_single_1", "ruler_vt"], {256: 0.75, 512: 0.75})
    assert found.effective_length is None
    figures = {"version": 1, "points": [], "findings": [], "ruler": [vars(found)]}
    assert "| m, exact ALiBi | 2 of 13 | 75.0 | 75.0 | 75.0 | 75.0 | none |" in page.ruler(figures)
