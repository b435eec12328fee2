"""Maps of layers x heads, and contexts on one axis."""

import json

import plotly.graph_objects as go

from harness.report import build
from harness.report.describe import Group, Heat, Panel
from harness.report.figures import figure
from tests.report import made


def panels(page, key: str) -> list[Panel | Heat]:
    section = next(s for s in page.sections if s.key == key)
    return [p for b in section.blocks if isinstance(b, Group) for p in b.panels]


def test_attribution_is_a_map_of_layers_and_heads(tmp_path):
    folder = made.cell(tmp_path, made.plsh(16), fused=30.0, passes=200.0)

    def metric(value: float) -> dict:
        return {"value": value, "low": value / 2, "high": value * 2, "n": 8, "unit": "nats per token"}

    figures = {(layer, head): 0.001 * layer + 0.0001 * head for layer in (1, 2) for head in (1, 2, 3)}
    metrics = {"fidelity/kl": metric(0.1), "fidelity/kl_only_2": metric(0.5), "fidelity/kl_quarter_1": metric(0.5)}
    metrics |= {f"fidelity/kl_only_{layer}_{head}": metric(x) for (layer, head), x in figures.items()}
    made.record(folder, lambda k: 0.1, samples=8, task="fidelity")
    file = made.task_folder(folder, "fidelity") / "task.json"
    made.write(file, {**json.loads(file.read_text()), "metrics": metrics})
    (heat,) = panels(build.build_page(tmp_path), "heads")
    assert isinstance(heat, Heat)
    assert (heat.rows, heat.columns) == (["1", "2"], ["1", "2", "3"])
    assert {(row + 1, column + 1): p.y for (column, row), p in heat.squares.items()} == figures
    drawn = figure(heat)
    assert drawn["data"][0]["zmax"] == max(figures.values())
    assert drawn["data"][0]["text"][1][2].startswith("0.0023")
    go.Figure({"data": drawn["data"]})


def test_a_store_without_maps_says_how_to_fill_them(tmp_path):
    made.record(made.cell(tmp_path, made.ALIBI, fused=127.5), lambda k: 1.0)
    section = next(s for s in build.build_page(tmp_path).sections if s.key == "heads")
    assert "attribution=heads" in section.missing[0][1]


def test_several_contexts_share_the_axis_of_distance(tmp_path):
    made.sweep(tmp_path, models=["m"], contexts=[256, 512], masks=[4], samples=20)
    together = [p for p in panels(build.build_page(tmp_path), "distance") if "all contexts" in p.title]
    assert {p.title.split(",")[0] for p in together} == {"exact ALiBi", "S=4 PLSH gamma count", "S=4 PLSH gamma rb"}
    for panel in together:
        assert isinstance(panel, Panel)
        assert [s.remark for s in panel.series] == ["512 tokens", "256 tokens"]
        assert len({s.method.dash for s in panel.series}) == 2
