"""What the page says of a store, without a browser: whole, escaped, within its size, honest about
what is missing."""

import json
import math
import re

import plotly.graph_objects as go
import pytest

from harness.analysis import reader, table
from harness.report import build, page
from harness.report.__main__ import main
from harness.report.describe import Grid, Group, Heat, Page, Panel
from harness.report.figures import figure
from harness.report.sections import context, kernels, verdict
from kernels.bench.plan import COMMAND
from kernels.bench.record import relate
from tests.report import made


def section(described: Page, key: str):
    return next(s for s in described.sections if s.key == key)


def panels(described: Page, key: str) -> list[Panel | Heat]:
    return [p for b in section(described, key).blocks if isinstance(b, Group) for p in b.panels]


@pytest.fixture
def store(tmp_path):
    made.sweep(tmp_path, models=["m"], contexts=[256, 512], masks=[4, 16], samples=20)
    return tmp_path


def test_figures_are_what_plotly_knows(store):
    described = build.build_page(store)
    drawn = [figure(p) for s in described.sections for b in s.blocks if isinstance(b, Group) for p in b.panels]
    assert len(drawn) > 15
    for one in drawn:
        plain = re.sub(r'"--[a-z-]+"', '"#000000"', json.dumps(one, allow_nan=False))
        go.Figure(json.loads(plain))  # raises on a property or value that Plotly does not have


def test_every_point_carries_its_interval_and_where_it_stands(store):
    described = build.build_page(store)
    for key in ("verdict", "masks", "distance", "cost"):
        points = [p for panel in panels(described, key) for s in panel.series for p in s.points]
        assert points and all(p.low <= (p.x if key == "verdict" else p.y) <= p.high for p in points), key
        assert all("n = " in p.note for p in points)
    squares = [p for heat in panels(described, "depth") for p in heat.squares.values()]
    assert squares
    assert all(p.low <= p.y <= p.high for p in squares)


def test_verdict_counts_what_the_paired_differences_say(tmp_path):
    made.record(made.cell(tmp_path, made.ALIBI, fused=127.5), lambda k: 1.0)
    made.record(made.cell(tmp_path, made.plsh(4), fused=30.0, passes=200.0), lambda k: float(k // 4 % 2))
    made.record(made.cell(tmp_path, made.window(1.0), fused=30.0001), lambda k: 0.0)
    made.record(made.cell(tmp_path, made.window(9.0), fused=127.5), lambda k: 1.0)
    described = verdict.section(reader.comparisons(reader.records(tmp_path)))
    counts = {row[2]: row[3:6] for row in described.blocks[0].table.rows}
    assert counts["exact ALiBi"] == ["0", "1", "0"]
    assert counts["window of equal fused pairs"] == ["1", "0", "0"]  # matched within six digits
    assert counts["window of equal pairs in passes"] == ["0", "1", "0"]  # no window visits more pairs than there are
    assert "sliding window of equal fused pairs" not in counts
    ((told, command),) = described.missing
    assert "sliding window of equal fused pairs not in the store" in told
    assert "references=compute" in command
    made.record(made.cell(tmp_path, made.sliding(31), fused=28.2), lambda k: 1.0)
    made.record(
        made.cell(tmp_path, made.sliding(33), fused=29.96), lambda k: 0.0
    )  # 32 windows visit less than 30 pairs
    described = verdict.section(reader.comparisons(reader.records(tmp_path)))
    counts = {row[2]: row[3:6] for row in described.blocks[0].table.rows}
    assert counts["sliding window of equal fused pairs"] == ["1", "0", "0"]
    assert described.missing == []


def test_other_versions_are_said_on_the_page_and_below_the_table(store):
    first = next(p.parent for p in store.glob("*/cell.json") if '"alibi"' in p.read_text())
    for folder in (p.parent for p in store.glob("*/cell.json")):
        made.versions(folder, datasets="5.3.0" if folder == first else "5.2.0", tokenizers="0.23.3")
    context = json.loads((first / "cell.json").read_text())["identity"]["context"]
    question = next(q for q in reader.comparisons(reader.records(store)) if q.context == context)
    (said,) = table.comparison(question.records).notes
    assert "datasets 5.2.0 (PLSH S=4" in said
    assert "and 5.3.0 (exact ALiBi)" in said
    assert "tokenizers" not in said
    described = build.build_page(store)
    assert f"In m, retrieval, {context} tokens: {said}" in described.lead
    beside = next(b for b in section(described, "verdict").blocks if isinstance(b, Grid) and b.table.notes)
    assert said in beside.table.notes[0]
    assert beside.table.title.startswith("Attentions side by side")


def test_references_that_are_missing_are_named_with_their_command(tmp_path):
    made.record(made.cell(tmp_path, made.plsh(4), fused=30.0, passes=200.0), lambda k: 1.0)
    described = build.build_page(tmp_path)
    (told, command), *_ = section(described, "verdict").missing
    assert "exact ALiBi" in told
    assert "references=compute" in command
    assert "masks=4" in command
    rows = section(described, "cells").blocks[0].table.rows
    assert [row[5] for row in rows] == ["ok", "missing", "missing"]


def test_cells_that_other_contexts_have_are_missing(store):
    made.record(made.cell(store, made.ALIBI, context=1024, fused=511.5), lambda k: 1.0)
    rows = section(build.build_page(store), "cells").blocks[0]
    gaps = [d for row, d in zip(rows.table.rows, rows.details, strict=True) if row[5] == "missing"]
    commands = [dict(d)["command"] for d in gaps]
    assert len(commands) == 4
    assert all("context=1024" in c and "attn=plsh" in c for c in commands)


def test_sections_without_records_say_which_command_fills_them(tmp_path):
    described = build.build_page(tmp_path / "absent")
    assert "holds no records" in described.lead
    for s in described.sections:
        assert s.blocks or (s.missing and all(command for _, command in s.missing)), s.key
    empty = kernels.section([], tmp_path)
    assert not empty.blocks
    assert [command for _, command in empty.missing] == [COMMAND.format(device=device) for device in ("cuda", "cpu")]
    text = page.draw(described, drawn_by="x")
    assert text.count("<section") == len(described.sections)


def test_a_page_of_one_cell(tmp_path):
    made.record(made.cell(tmp_path, made.ALIBI, fused=127.5), lambda k: 1.0)
    described = build.build_page(tmp_path)
    assert described.lead.startswith("1 cell of 1 model in")
    assert len(panels(described, "depth")) == 1
    assert not panels(described, "masks")
    page.draw(described, drawn_by="x")


def test_tasks_with_other_columns_and_a_cell_that_has_only_begun(store):
    for attn, pairs in ((made.ALIBI, {"fused": 127.5}), (made.plsh(4), {"fused": 21.25, "passes": 127.5})):
        made.record(made.cell(store, attn, **pairs), lambda k: 1.0, task="niah", samples=20)
    folder = made.cell(store, made.plsh(32), fused=78.0, passes=127.5)
    made.record(folder, lambda k: 1.0)
    (made.task_folder(folder) / "task.json").unlink()
    described = build.build_page(store)
    page.draw(described, drawn_by="x")
    tables = [b.table for b in section(described, "verdict").blocks if isinstance(b, Grid)]
    side = [t for t in tables if t.title.startswith("Attentions side by side")]
    assert [len(t.columns) for t in side] == [9, 10]
    assert all(len(r) == len(t.columns) for t in side for r in t.rows)
    assert {p.title for p in panels(described, "masks")} == {"256 tokens", "512 tokens"}
    statuses = [row[5] for row in section(described, "cells").blocks[0].table.rows]
    assert statuses.count("stopped") == 1


def test_figures_that_are_not_finite_are_no_record(store, capsys):
    """The store writes none: JSON has no such numbers."""
    path = next(
        p for p in store.glob("*/retrieval-*/task.json") if "plsh" in (p.parent.parent / "cell.json").read_text()
    )
    done = json.loads(path.read_text())
    done["metrics"]["retrieval/accuracy"] |= {"value": math.nan, "low": -math.inf, "high": math.inf}
    path.write_text(json.dumps(done))
    page.draw(build.build_page(store), drawn_by="x")
    assert f"{path} cannot be read" in capsys.readouterr().err


def test_markup_in_a_record_stays_text(tmp_path):
    hostile = "</script><script>alert(1)</script><b onclick='x'>&amp;"
    folder = made.cell(tmp_path, made.plsh(4), model=hostile, fused=3.0, passes=4.0, label=hostile)
    made.record(folder, lambda k: 0.0, prediction=hostile, target=hostile)
    text = page.draw(build.build_page(tmp_path), drawn_by=hostile)
    library = text.index("<script>/**")
    own = text[:library] + text[text.index("</script>", library) :]
    assert "alert(1)</script>" not in own
    assert "<b onclick" not in own
    assert "&lt;/script&gt;" in own
    # Plotly would read the latter as markup
    assert "\\u003c/script" not in own
    tables = [b.table.markdown() for s in build.build_page(tmp_path).sections for b in s.blocks if isinstance(b, Grid)]
    assert not any("<script" in t for t in tables)


def test_nothing_is_loaded_from_elsewhere(store):
    text = page.draw(build.build_page(store), drawn_by="x")
    assert text.count("<script>") == 2
    assert "default-src 'none'" in text
    assert not re.search(r"<(script|link|img|iframe)[^>]*(src|href)=", text.replace("plotly", ""))


def test_six_hundred_cells_fit(tmp_path, capsys):
    models = [f"model-{i}" for i in range(5)]
    cells = made.sweep(
        tmp_path / "r", models=models, contexts=[512, 1024, 2048, 4096], masks=[2, 4, 8, 16, 32, 64], samples=40
    )
    assert cells == 5 * 4 * (1 + 6 * 5)
    assert main([str(tmp_path / "r"), "--out", str(tmp_path / "o")]) == 0
    assert json.loads(capsys.readouterr().out)["bytes"] < 10e6


def test_time_and_memory_are_drawn_where_they_were_measured(tmp_path):
    for tokens in (256, 512):
        for attn, power in ((made.ALIBI, 2), (made.plsh(16), 1)):
            made.timed(made.cell(tmp_path, attn, context=tokens, fused=10.0, passes=20.0), (tokens / 256) ** power)
    described = context.section(reader.comparisons(reader.records(tmp_path)))
    prefill = described.blocks[0].panels[0]
    ends = {s.method.key: (s.points[0].y, s.points[-1].y) for s in prefill.series}
    assert ends == {"exact": (10.0, 40.0), "plsh-count": (10.0, 20.0)}
    assert [(g.label, g.slope) for g in prefill.guides] == [("linear", 1), ("quadratic", 2)]
    assert described.missing == []
    every = [p for panel in described.blocks[0].panels for s in panel.series for p in s.points]
    assert all("error 3.0e-07" in p.note for p in every), "a time without its error"
    assert {panel.bars for panel in described.blocks[0].panels} == {"quartiles"}
    overview = table.overview(reader.records(tmp_path))
    assert all(row[-1].endswith("error 3.0e-07") for row in overview.rows)


def test_times_of_two_commits_or_devices_are_never_on_one_line(tmp_path):
    for tokens in (256, 512):
        folder = made.cell(tmp_path, made.ALIBI, context=tokens, fused=10.0)
        made.record(folder, lambda k: 1.0)
        for commit, device in (("old", "cpu"), ("new", "cpu"), ("new", "H200")):
            made.timed(folder, tokens / 256, commit=commit, device=device, start=f"2026-{commit}")
    described = build.build_page(tmp_path)
    groups = [b for b in section(described, "context").blocks if isinstance(b, Group)]
    assert len(groups) == 3
    assert sum("commit" in g.title for g in groups) == 2
    assert all([p.x for p in s.points] == [256, 512] for g in groups for panel in g.panels for s in panel.series)
    timed = [p for p in panels(described, "cost") if "(ms)" in p.x.title]
    assert all(len(s.points) == 1 for p in timed for s in p.series)


def test_a_timing_that_was_taken_again_lacks_nothing(tmp_path):
    masks = made.cell(tmp_path, made.plsh(4), fused=30.0, passes=60.0)
    made.timed(masks, 1.0, commit="old", start="2026-01")
    made.timed(masks, 1.0, commit="new", start="2026-02")
    made.timed(made.cell(tmp_path, made.ALIBI, fused=127.5), 1.0, commit="new", start="2026-02")
    rows = section(build.build_page(tmp_path), "cells").blocks[0].table.rows
    assert [row[5] for row in rows] == ["ok"] * 3


def test_what_sets_cells_apart_can_be_read_without_pointing(tmp_path):
    exact = made.cell(tmp_path, made.ALIBI, fused=127.5)
    made.record(exact, lambda k: 1.0)
    made.timed(exact, 2.0)
    for more in ({}, {"evict": True}, {"sinks": 4}, {"near": 64}, {"sinks": 4, "near": 64}):
        folder = made.cell(tmp_path, {**made.plsh(4), **more}, fused=30.0, passes=60.0)
        made.record(folder, lambda k: float(k % 2))
        made.timed(folder, 1.0)
    described = build.build_page(tmp_path)
    assert set(panels(described, "verdict")[0].y.ticks.values()) == {
        "S=4 count",
        "S=4 count, evicting",
        "S=4 count, 4 sinks",
        "S=4 count, near 64",
        "S=4 count, 4 sinks, near 64",
    }
    decode = next(p for p in panels(described, "context") if p.title.startswith("decode"))
    looks = {(s.method.key, s.method.symbol, s.method.dash) for s in decode.series}
    assert len(looks) == len(decode.series) == 6
    page.draw(described, drawn_by="x")  # its legend draws every line and marker by itself
    assert {g.label: g.dash for g in decode.guides} == {"constant": "dashdot", "linear": "dot"}


def test_accuracy_against_time_has_both_intervals_and_the_error(tmp_path):
    for attn, scale in ((made.ALIBI, 4.0), (made.plsh(16), 1.0)):
        folder = made.cell(tmp_path, attn, fused=10.0, passes=20.0)
        made.record(folder, lambda k: float(k % 2))
        made.timed(folder, scale)
    described = build.build_page(tmp_path)
    timed = next(p for p in panels(described, "cost") if p.x.title == "time to first token (ms)")
    (slow,), (fast,) = (s.points for s in timed.series)
    assert (slow.x, slow.x_ends) == (40.0, (36.0, 44.0))
    assert fast.x == 10.0
    assert "error 3.0e-07" in slow.note
    assert slow.low < slow.y < slow.high
    drawn = figure(timed)["data"][0]
    assert drawn["error_x"]["array"] == [4.0]
    assert drawn["error_y"]["array"][0] > 0


def test_windows_stand_with_the_sampler_whose_pairs_they_have(tmp_path):
    for sampler, fused in (("gamma", 30.0), ("systematic", 40.0)):
        made.record(made.cell(tmp_path, made.plsh(4, sampler=sampler), fused=fused, passes=60.0), lambda k: 1.0)
    for cutoff, fused in ((1.0, 30.0), (2.0, 40.0), (3.0, 60.0)):
        made.record(made.cell(tmp_path, made.window(cutoff), fused=fused), lambda k: 0.0)
    described = build.build_page(tmp_path)
    fused = [s for s in panels(described, "masks")[0].series if s.method.key == "window-fused"]
    assert [(s.tags.sampler, s.points[0].note.split(",")[0]) for s in fused] == [
        ("gamma", "window T=1.0"),
        ("systematic", "window T=2.0"),
    ]
    titles = {h.title: h for h in panels(described, "depth")}
    assert {"window, pairs of S=4", "window, pairs of S=4, systematic masks"} <= titles.keys()


def bench_row(name: str, family: str, ms: float, **more) -> dict:
    times = {"median": ms, "low": 0.9 * ms, "high": 1.2 * ms}
    return {
        "name": name, "family": family, "match": None, "status": "ok", "ms": times, "rms_relative_error": 0.25,
        "max_abs_error": 1.0, "check_error": 1e-6, "pairs_per_row": 3.0, "floor_bytes": 1_600_000, "operations": 10**9,
        "dense_operations": 10**9,
    } | more  # fmt: skip


def write_bench(folder, rows: list[dict], **more) -> None:
    run = {
        "heads": "h",
        "call": "forward",
        "shape": [1, 2, 1000, 50],
        "queries": 1000,
        "dtype": "float32",
        "methods": rows,
    }
    relate(run, 16.0)
    about = {"device": "cpu", "gpu": None, "cpu": "c", "memory_gb_s": 16.0, "command": "python -m kernels.bench --own"}
    (folder / "bench_x.json").write_text(json.dumps({"environment": about, "runs": [run], "not_reached": []} | more))


def test_kernels_stand_beside_their_error_and_the_floor(tmp_path):
    rows = [
        bench_row("plsh count, S=4", "plsh", 10.0),
        bench_row("window T=2.00, as count, S=4", "window", 5.0, match="plsh count, S=4"),
        bench_row("alibi, other", "exact", 1.0) | {"ms": None, "status": "out of memory"},
    ]
    write_bench(tmp_path, rows)
    described = kernels.section([], tmp_path)
    group, grid = described.blocks
    panel = group.panels[0]
    assert panel.guides[0].x == pytest.approx(0.1)  # 1.6 MB at 16 GB/s
    assert "plsh count, S=4 (error 25.0%)" in panel.y.ticks[0.0]
    assert panel.series[0].points[0].low == 9.0
    assert [s.method.name for s in panel.series] == ["PLSH count", "window of equal error"]
    assert any("slower than the window of equal error" in note for note in grid.table.notes)
    assert "alibi, other: out of memory." in grid.table.notes
    assert len(grid.table.rows) == 2
    assert described.commands == ["python -m kernels.bench --own"]


def test_a_floor_of_each_method_is_not_drawn_as_one(tmp_path):
    write_bench(
        tmp_path, [bench_row("alibi, a", "exact", 10.0), bench_row("window T=20", "window", 5.0, floor_bytes=10)]
    )
    panel = kernels.section([], tmp_path).blocks[0].panels[0]
    assert panel.guides == []
    assert "10.0 ms, 100.0 times its byte floor" in panel.series[0].points[0].note


def test_what_no_bench_reached_is_said_with_its_command(tmp_path):
    write_bench(tmp_path, [bench_row("alibi, a", "exact", 10.0)], not_reached=["h, forward, 2000 tokens, 4 masks"])
    missing = kernels.section([], tmp_path).missing
    assert missing[0] == (
        "bench_x.json lacks 1 parts: h, forward, 2000 tokens, 4 masks.",
        "python -m kernels.bench --own",
    )
    assert [("GPU" in told, command) for told, command in missing[1:]] == [(True, COMMAND.format(device="cuda"))]


def test_a_folder_that_cannot_be_written_is_a_sentence(store, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main([str(store), "--out", str(tmp_path / "file")]) == 2
    assert "--out" in capsys.readouterr().err
