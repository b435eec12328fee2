"""What a cell's identity holds, and what collapses because it cannot matter."""

import json
import subprocess
import sys

import pytest
from hydra import compose, initialize_config_dir

from harness.common.errors import UserError
from harness.common.paths import CONF, ROOT
from harness.experiment.config import register_schema
from harness.experiment.execute import describe_cell
from harness.experiment.plan import plan, to_run_config
from harness.models.spec import resolve_model
from kernels import Alibi, PositionalLSH, Window, equal_cost_cutoff, expected_pairs
from kernels.methods.cost import window_pairs


def planned(*overrides):
    register_schema()
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        return plan(compose("config", overrides=list(overrides)))


def cell(*overrides):
    return planned(*overrides).cell


def test_identity_has_what_the_results_depend_on():
    found = cell().identity
    assert set(found) == {"schema", "model", "dtype", "attn", "kernel", "context", "seed", "draws", "data_seed"}
    assert set(found["model"]) == {"weights", "config", "slopes", "tokenizer"}
    assert found["attn"] == {"name": "plsh", "masks": 16, "sampler": "gamma", "weights": "count", "cutoff": None}
    assert found["draws"] == 8
    assert found["seed"] == 0


MATTERS = "masks=8 context=256 seed=1 draws=4 data_seed=1 dtype=bfloat16 kernel=sdpa attn.weights=rb model=tiny-plain"
MATTERS += " attn.sampler=systematic attn=alibi attn=window attn.sinks=4 attn.evict=true attn.align=64"


@pytest.mark.parametrize("change", MATTERS.split())
def test_what_matters_makes_another_cell(change):
    assert cell(change).cell_id != cell().cell_id


@pytest.mark.parametrize("change", ["samples=160", "batch=2", "results=elsewhere", "references=none", "device=cpu"])
def test_what_does_not_matter_leaves_the_cell(change):
    assert cell(change).cell_id == cell().cell_id


@pytest.mark.parametrize("attn", ["attn=alibi", "attn=window attn.cutoff=3", "attn.sampler=fixed"])
def test_options_that_cannot_matter_collapse(attn):
    base = cell(*attn.split())
    for change in ("seed=7", "draws=2", "seed=1"):
        assert cell(*attn.split(), change).cell_id == base.cell_id
    if "fixed" not in attn:
        assert cell(*attn.split(), "masks=3", "attn.sampler=gamma").cell_id == base.cell_id
    if attn == "attn=alibi":
        assert cell(attn, "attn.sinks=4").cell_id == base.cell_id
    assert base.identity["seed"] is None
    assert base.identity["draws"] is None
    assert base.draws == 1


def test_all_masks_of_the_fixed_sampler_are_one():
    assert cell("attn.sampler=fixed", "masks=4").cell_id == cell("attn.sampler=fixed", "masks=16").cell_id


def test_matched_window_is_a_number_and_equals_the_window_given_by_it():
    matched = cell("attn=window", "attn.match=fused")
    cutoff = matched.identity["attn"]["cutoff"]
    assert cutoff == pytest.approx(equal_cost_cutoff(matched.model.slopes, 16, 512, match="fused"), rel=1e-5)
    assert cell("attn=window", f"attn.cutoff={cutoff}").cell_id == matched.cell_id
    assert cell("attn=window", "attn.match=fused", "masks=4").cell_id != matched.cell_id


def test_cell_id_is_the_same_in_another_process():
    code = "from tests.experiment.test_cell import cell; print(cell('masks=4', 'attn.weights=rb').cell_id)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split()[-1] == cell("masks=4", "attn.weights=rb").cell_id


def test_identity_is_json():
    assert json.loads(json.dumps(cell().identity)) == cell().identity


def test_weights_of_a_cell_are_what_its_identity_says():
    plsh = cell("masks=4", "attn.weights=rb", "seed=5").weights(3)
    assert [type(w) for w in plsh] == [PositionalLSH] * 2
    expected = PositionalLSH.draw(cell().model.slopes, 4, seed=5, draw=3, layer=1, weights="rb")
    assert (plsh[1].masks.width == expected.masks.width).all()
    assert plsh[1].weights == "rb"
    assert isinstance(cell("attn=alibi").weights(0)[0], Alibi)
    window = cell("attn=window", "attn.cutoff=2.5").weights(0)[0]
    assert isinstance(window, Window)
    assert window.cutoff == 2.5


def test_cost_is_pairs_per_row_and_head():
    base = cell("context=1024")
    slopes, rows = base.model.slopes, 1024 * 8
    assert base.cost()["fused"] == pytest.approx(expected_pairs(slopes, 16, 1024) / rows)
    assert cell("attn=alibi").cost() == {"fused": 255.5}
    window = planned("context=1024").references["window"]
    assert window.cost()["fused"] == pytest.approx(base.cost()["fused"], rel=1e-4)
    assert window.cost()["fused"] == pytest.approx(window_pairs(slopes, window.attention.cutoff, 1024) / rows)


@pytest.mark.parametrize("attn", ["plsh", "window"])
def test_sinks_are_in_the_weights_the_label_and_only_then_in_the_identity(attn):
    base, found = cell(f"attn={attn}"), cell(f"attn={attn}", "attn.sinks=4")
    assert "sinks" not in base.identity["attn"]
    assert cell(f"attn={attn}", "attn.sinks=0").cell_id == base.cell_id
    assert found.identity["attn"]["sinks"] == 4
    assert {w.sinks for w in found.weights(1)} == {4}
    assert found.attention.label.endswith(" +4 sinks")
    assert "sink" not in base.attention.label
    evicting = cell(f"attn={attn}", "attn.evict=true")
    assert "evict" not in found.identity["attn"]
    assert evicting.identity["attn"]["evict"] is True


def test_windows_of_equal_cost_have_the_sinks_of_the_masks():
    found = planned("attn.sinks=4", "context=1024")
    fused = found.references["window"]
    assert {c.attention.sinks for role, c in found.references.items() if role != "exact"} == {4}
    assert fused.cost()["fused"] == pytest.approx(found.cell.cost()["fused"], rel=1e-4)
    assert fused.cell_id == cell("attn=window", "attn.sinks=4", "context=1024").cell_id
    slopes = found.cell.model.slopes
    seen = Window(slopes, fused.attention.cutoff, 4).pairs(1024).sum() / (1024 * len(slopes))
    assert fused.cost()["fused"] == pytest.approx(float(seen), abs=0.5)  # a window's edge is rounded to a token


def test_a_grid_is_in_the_weights_the_label_and_what_is_told_of_the_cell():
    base, found = cell(), cell("attn.align=64")
    assert "align" not in base.identity["attn"]
    assert cell("attn.align=0").cell_id == base.cell_id
    assert found.identity["attn"]["align"] == 64
    assert found.attention.label.endswith(", grid of 64")
    assert found.weights(1)[1].masks.grid[:, 0].tolist() == [1.0] * 7 + [64.0]  # of slopes down to 1/256
    assert describe_cell(found).more["alignment"] == {"heads": 1, "bias": pytest.approx((64 / 256) ** 2 / 8)}
    assert "alignment" not in describe_cell(base).more
    fused = planned("attn.align=64").references["window"]
    assert fused.cost()["fused"] == pytest.approx(found.cost()["fused"], rel=1e-5)
    assert found.cost()["fused"] != base.cost()["fused"]
    assert fused.cell_id == cell("attn=window", "attn.align=64").cell_id
    for other in ("attn=alibi", "attn=window attn.cutoff=3"):
        assert cell(*other.split(), "attn.align=64").cell_id == cell(*other.split()).cell_id


@pytest.mark.parametrize("group", ["model", "attn", "kernel", "task"])
def test_every_configuration_composes(group):
    register_schema()
    for file in (CONF / group).glob("*.yaml"):
        choice = f"{group}=[{file.stem}]" if group == "task" else f"{group}={file.stem}"
        with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
            assert compose("config", overrides=[choice]) is not None


def spec(*overrides):
    """The model that a command names, without the checks of a task."""
    register_schema()
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        config = to_run_config(compose("config", overrides=list(overrides)))
    return resolve_model(config.model, config.dtype)


@pytest.mark.parametrize(
    "file", sorted((ROOT / "docs" / "results" / "first").glob("*/cell.json")), ids=lambda f: f.parent.name
)
def test_committed_cells_keep_their_ids(file):
    """What was computed earlier is found again: options that came later leave identities as they
    were."""
    recorded = json.loads(file.read_text())
    identity = recorded["identity"]
    attn = {k: v for k, v in identity["attn"].items() if v is not None}
    given = [f"attn={attn.pop('name')}", f"model={recorded['model']}", f"context={identity['context']}"]
    given += [f"masks={attn.pop('masks')}"] if "masks" in attn else []
    assert cell(*given, *(f"attn.{k}={v}" for k, v in attn.items())).cell_id == recorded["cell_id"]


def test_stock_attention_has_neither_kernel_nor_masks():
    base = cell("attn=stock")
    assert base.identity["attn"] == {"name": "stock", "masks": None, "sampler": None, "weights": None, "cutoff": None}
    assert base.identity["kernel"] is None
    assert base.weights(0) is None
    for change in ("kernel=exact", "masks=3", "seed=7", "draws=2"):
        assert cell("attn=stock", change).cell_id == base.cell_id
    assert base.cell_id != cell("attn=alibi").cell_id
    assert base.cost() == cell("attn=alibi").cost()


def test_the_reference_of_stock_is_exact_alibi_under_the_asked_kernel():
    register_schema()
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        planned = plan(compose("config", overrides=["attn=stock", "kernel=sdpa"]))
    assert {role: c.cell_id for role, c in planned.references.items()} == {
        "exact": cell("attn=alibi", "kernel=sdpa").cell_id
    }


def test_random_weights_are_identified_by_seed_and_architecture():
    first = spec("model=bloom-560m", "model.weights=random")
    assert first.identity["weights"] == "random:0"
    assert first.identity["architecture"]["width"] == 1024
    for change in ("model.init_seed=1", "model.layers=2", "model=bloom-1b1", "model=falcon-rw-1b"):
        assert spec("model=bloom-560m", "model.weights=random", change).identity != first.identity
    assert not spec("model=tiny", "model.weights=random").embedded


def test_where_a_model_lies_does_not_identify_it():
    assert spec("model.device_map=auto").identity == spec().identity
    assert spec("model.device_map=auto").device_map == "auto"


def test_a_part_of_a_model_is_another_model_and_the_whole_is_not():
    whole = spec("model=tiny")
    assert spec("model=tiny", "model.layers=2").identity == whole.identity
    part = spec("model=tiny", "model.layers=1")
    assert part.identity == {**whole.identity, "layers": 1}
    assert part.architecture.layers == 1
    assert part.name == "tiny, first 1 of 2 layers"  # tables must not show it as the whole


@pytest.mark.parametrize("file", sorted((CONF / "model").glob("*.yaml")), ids=lambda f: f.stem)
def test_every_model_is_identified_before_anything_is_downloaded(file):
    given = ["model.path=harness/embedded/tiny"] if file.stem == "local" else []  # the one that names no checkpoint
    found = spec(f"model={file.stem}", *given)
    assert len(found.identity["slopes"]) == found.architecture.heads
    assert found.architecture.width % found.architecture.heads == 0


def test_a_near_field_is_in_the_cell_and_in_its_windows():
    masks = planned("attn=plsh", "masks=16", "attn.near=64", "attn.sinks=2", "context=400", "references=compute")
    layers = masks.cell.weights(0)
    assert {(layer.near, layer.sinks) for layer in layers} == {(64, 2)}
    window = masks.references["window"]
    assert window.attention.near == 64
    assert window.cost()["fused"] == pytest.approx(masks.cell.cost()["fused"], rel=1e-4)
    assert "+64 near" in masks.cell.attention.label
    without = planned("attn=plsh", "masks=16", "attn.sinks=2", "context=400")
    assert "near" not in without.cell.identity["attn"]
    assert masks.cell.cell_id != without.cell.cell_id


def test_a_near_field_below_zero_is_refused():
    with pytest.raises(UserError, match="attn.near must be at least 0"):
        planned("attn=window", "attn.near=-1", "context=64")
