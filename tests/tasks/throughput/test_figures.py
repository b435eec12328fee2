"""Figures from rows written by hand, and the tables drawn from them."""

import pytest

from harness.results.schema import CountsRow, RepeatRow
from harness.tasks.throughput.figures import figures
from tests.measure import overhead as bench_overhead

FACTS = {"key": 0, "error": 1e-7, "error_cached": 2e-7, "alibi_difference": 0.1, "peak_bytes": 9, "flops": 2e12}
FACTS |= {"kv_allocated_bytes": 8, "kv_used_bytes": 7, "decode_bytes": 1e9, "visited_pairs": 5}
FACTS |= {"peak_flops": 1e13, "peak_bandwidth": 1e12}
FACTS = CountsRow(**FACTS)


def row(measurement: str, ms: float, *, repeat: int = 0, rows: int = 0, exact: bool = False, joules=None) -> RepeatRow:
    tokens = 1000 if rows == 0 else rows
    laps = 1 if rows == 0 else 4
    times = {"ms": ms, "attention_ms": ms / 4, "slowest_ms": 2 * ms, "tokens": tokens, "laps": laps}
    about = {"measurement": measurement, "rows": rows, "exact": exact, "repeat": repeat}
    errors = {"error": 1e-7 * (1 + repeat), "error_cached": 2e-7}
    return RepeatRow(key=1, **about, **times, joules=joules, **errors)


def test_medians_quartiles_and_rates():
    found = figures(
        [FACTS, *(row("prefill", ms, repeat=i) for i, ms in enumerate([400.0, 100.0, 200.0, 300.0, 500.0]))]
    )
    assert vars(found["prefill_ms"]) == {"value": 300.0, "low": 200.0, "high": 400.0, "n": 5, "unit": "ms"}
    assert found["prefill_tokens_per_s"].value == pytest.approx(1000 / 0.3)
    assert found["mfu"].value == pytest.approx(2e12 / 0.3 / 1e13)
    assert found["attention_share"].value == 0.25 and found["amdahl_limit"].value == pytest.approx(4 / 3)
    assert found["error"].value == pytest.approx(5e-7)  # the worst of all attempts
    assert "decode_ms_per_token" not in found and "joules_per_1k_tokens" not in found


def test_speed_ups_are_paired_within_a_repeat():
    """The machine slows down threefold between the repeats: the ratio does not."""
    rows = [row("decode", 3.0**i * ms, repeat=i, rows=1, exact=ms == 2.0) for i in range(3) for ms in (1.0, 2.0)]
    found = figures([FACTS, *rows])
    assert vars(found["decode_speedup"]) == {"value": 2.0, "low": 2.0, "high": 2.0, "n": 3, "unit": "times exact"}
    assert found["decode_ms_per_token"].value == 3.0 and found["decode_slowest_ms"].value == 6.0
    assert found["mbu"].value == pytest.approx(1e9 / 3e-3 / 1e12)


def test_unknown_peaks_and_energy_are_left_out_and_known_energy_is_summed():
    unknown = FACTS.but(peak_flops=None, peak_bandwidth=None)
    assert not {"mfu", "mbu"} & set(figures([unknown, row("prefill", 1.0), row("decode", 1.0, rows=1)]))
    metered = [row("prefill", 1.0, joules=j) for j in (0.0, 30.0)]  # the meter moves in steps
    assert figures([FACTS, *metered, row("decode", 1.0, rows=1)])["joules_per_1k_tokens"].value == 15.0
    decoded = figures([FACTS, row("decode", 1.0, rows=1, joules=2.0)])
    assert decoded["decode_joules_per_1k_tokens"].value == 500.0  # of four tokens


def test_overhead_of_ten_minutes_from_two_sizes():
    def seconds(rows: int, new: bool) -> dict:
        own = 6 + 0.001 * rows + 0.005 * rows * new
        mirror = {"mirror_seconds": 1.5}
        return {"own_seconds": own, "model_seconds": 0.099 * rows, "disk_share": 0.002, "rows": rows, **mirror}

    runs = [{**seconds(n, new), "new_prompts": new} for n in (10, 100) for new in (True, False, False)]
    found = bench_overhead.overhead(runs)
    assert found["row_seconds"] == pytest.approx(0.001) and found["once_seconds"] == pytest.approx(6)
    assert found["prompt_seconds"] == pytest.approx(0.005)
    assert found["rows"] == 5940 and found["share"] == pytest.approx((6 + 5.94) / 600 + 0.002)
    assert found["least_share"] == pytest.approx(found["share"]) == found["largest_share"]
    runs[-1]["own_seconds"] += 3  # one of the larger runs: its pair alone gives a larger share
    found = bench_overhead.overhead(runs)
    each, rows = 0.001 + 3 / 90, 4457
    once = 6.01 - 10 * each
    assert once + rows * (0.099 + each) <= 600 < once + (rows + 1) * (0.099 + each)
    assert found["largest_share"] == pytest.approx((once + rows * each) / 600 + 0.002)
    assert "2.2 to" in bench_overhead.markdown({"overhead": found, "runs": runs})


def test_a_gpu_is_metered_by_its_uuid_and_its_absence_is_no_error(monkeypatch):
    import sys
    import types

    import torch

    from harness.tasks.throughput.devices import energy_meter

    asked = []
    fake = types.SimpleNamespace(
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByUUID=lambda uuid: asked.append(uuid) or "handle",
        nvmlDeviceGetTotalEnergyConsumption=lambda handle: 2500,
    )
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: types.SimpleNamespace(uuid="a-b"))
    assert energy_meter(torch.device("cuda"))() == 2.5 and asked == ["GPU-a-b"]
    assert energy_meter(torch.device("cpu")) is None
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert energy_meter(torch.device("cuda")) is None
