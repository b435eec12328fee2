"""Rows become the cells that harness.run would make of them, each once, and every mistake is said
before the first."""

import random
import shlex

import pytest
from hydra import compose, initialize_config_dir

from harness.common.errors import CannotLoad
from harness.common.paths import CONF, ROOT
from harness.experiment.config import register_schema
from harness.experiment.plan import plan, to_run_config
from harness.sweep.cells import Composer, Mistakes, expand, work_of
from harness.sweep.grid import Grid, read_grid

RICH = {
    "attn": ("alibi", "plsh", "window", "sliding", "stock"),
    "attn.align": ("0", "64"),
    "attn.cutoff": ("null", "2.5", "4"),
    "attn.evict": ("false", "true"),
    "attn.match": ("fused", "passes"),
    "attn.near": ("0", "8", "tile"),
    "attn.sampler": ("gamma", "systematic", "fixed", "null"),
    "attn.sinks": ("0", "3"),
    "attn.tokens": ("null", "40"),
    "attn.weights": ("count", "exact"),
    "batch": ("1", "5"),
    "context": ("160", "300"),
    "data_seed": ("0", "3"),
    "draws": ("null", "4"),
    "dtype": ("float32", "null"),
    "kernel": ("exact", "sdpa"),
    "masks": ("1", "16"),
    "model": ("tiny", "tiny-plain"),
    "model.layers": ("1", "2"),
    "references": ("none", "compute", "null", "[passes,exact]"),
    "samples": ("8", "24"),
    "seed": ("0", "9007199254740993"),
    "task": ("retrieval", "[retrieval,ruler]"),
    "task.retrieval.depths": ("[0,1]", "[0.5]"),
    "task.retrieval.haystack": ("noise", "distractors"),
}


def test_random_rows_are_what_hydra_composes_from_all_overrides(tmp_path):
    rng = random.Random(0)
    picked = [{name: (rng.choice(texts),) for name, texts in RICH.items()} for _ in range(24)]
    for values in picked:  # with these, evicting or a grid is refused
        values |= {"attn.evict": ("false",)} if values["attn"][0] in ("alibi", "stock") else {}
        if values["attn.weights"][0] != "count" or values["attn.sampler"][0] == "fixed":
            values["attn.align"] = ("0",)
    assert all({values[name][0] for values in picked} == set(texts) for name, texts in RICH.items())
    grids = [Grid("random", values) for values in picked]
    found = [expand(grid, results=str(tmp_path))[0] for grid in grids]
    with Composer() as composer:
        configs = [composer.config((*row.overrides, f"results={tmp_path}")) for row in found]
    register_schema()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        for grid, row, config in zip(grids, found, configs, strict=True):
            overrides = [f"{name}={text}" for name, (text,) in grid.values.items()]
            whole = compose("config", overrides=[*overrides, f"results={tmp_path}"])
            planned = plan(whole)
            assert list(row.overrides) == overrides
            assert config == to_run_config(whole)
            assert row.cell_id == planned.cell.cell_id
            assert list(row.work) == work_of(planned)
            assert set(row.samples) == {int(grid.values["samples"][0])}


def test_rows_of_one_grid_do_not_touch_one_another(tmp_path):
    """What is shared between rows is not changed by them: alone, each row is the same cell."""
    values = {k: RICH[k] for k in ("attn", "attn.match", "masks", "model", "seed")} | {"references": ("compute",)}
    grid = Grid("g", values)
    whole = {row.number: row.work for row in expand(grid, results=str(tmp_path))}
    for number in random.Random(1).sample(range(1, len(grid) + 1), 12):
        given = (override.partition("=") for override in grid.overrides(number))
        (alone,) = expand(Grid("g", {name: (text,) for name, _, text in given}), results=str(tmp_path))
        if number in whole:
            assert alone.work == whole[number]
        else:  # the same work as an earlier row
            assert alone.work in [work for earlier, work in whole.items() if earlier < number]


def test_rows_that_are_one_cell_are_run_once(tmp_path):
    rows = expand(Grid("g", {"attn": ("alibi", "plsh"), "masks": ("4", "16"), "references": ("none",)}))
    assert [row.number for row in rows] == [1, 3, 4]
    assert rows.duplicates == 1
    assert len({row.cell_id for row in rows}) == 3
    assert rows[-1] == rows[2] == list(rows.select([2]))[0]


def test_more_samples_are_more_work_and_not_the_same_row():
    values = {"attn": ("alibi",), "references": ("none",), "samples": ("8", "16")}
    rows = expand(Grid("g", values))
    assert [row.samples for row in rows] == [(8,), (16,)]
    assert rows.duplicates == 0


def test_every_mistake_of_every_row_is_in_one_listing():
    values = {"attn": ("alibi", "plhs"), "masks": ("2", "0", "many"), "samples": ("80", "4")}
    with pytest.raises(Mistakes) as raised:
        expand(Grid("g", values))
    rows = raised.value.rows
    assert [s for s in rows if "no attn=plhs" in s and "plsh" in s and rows[s] == list(range(7, 13))]
    assert [s for s in rows if "masks must be at least 1" in s and rows[s] == [3, 4]]
    assert [s for s in rows if "'many'" in s and rows[s] == [5, 6, 11, 12]]
    assert "rows 5-6, 11-12 (4 rows): " in str(raised.value)


def test_a_sweep_for_another_machine_is_not_held_to_this_ones_memory_and_devices(tmp_path):
    values = {"context": ("60000",), "device": ("cuda:7",), "kernel": ("exact",), "references": ("none",)}
    assert expand(Grid("g", values), on_this_machine=False, results=str(tmp_path / "r"))
    assert expand(Grid("g", {**values, "kernel": ("triton",)}), on_this_machine=False)
    assert not (tmp_path / "r").exists()
    with pytest.raises(Mistakes, match="CUDA devices"):
        expand(Grid("g", values))
    with pytest.raises(Mistakes, match="does not fit"):
        expand(Grid("g", {**values, "device": ("cpu",)}))


@pytest.mark.parametrize("name", ["tiny", "kernels", "pareto", "pareto_text", "pareto_time"])
def test_our_sweeps_of_embedded_models_have_no_mistake(name, tmp_path):
    assert len(expand(read_grid(ROOT / "sweeps" / f"{name}.yaml"), results=str(tmp_path), on_this_machine=False)) > 10


@pytest.mark.parametrize("name", ["masks", "context", "models"])
def test_our_sweeps_of_other_models_lack_nothing_but_the_download(name, tmp_path):
    """Tests have no network: all that may be missing is the tokenizer."""
    with pytest.raises(Mistakes) as raised:
        expand(read_grid(ROOT / "sweeps" / f"{name}.yaml"), results=str(tmp_path), on_this_machine=False)
    assert all("could not be loaded" in sentence for sentence in raised.value.rows)


def test_a_model_that_cannot_be_had_is_looked_for_once(monkeypatch):
    asked = []

    def absent(spec):
        asked.append(spec)
        raise CannotLoad("no network")

    monkeypatch.setattr("harness.tasks.retrieval.task.load_tokenizer", absent)
    values = {"masks": ("2", "4"), "context": ("160", "300"), "references": ("none",)}
    with pytest.raises(Mistakes, match=r"rows 1-4 \(4 rows\): no network"):
        expand(Grid("g", values))
    assert len(asked) == 1


def test_a_row_survives_the_shell():
    (row,) = expand(Grid("g", {"task": ("['retrieval', 'ruler']",), "references": ("none",)}))
    assert shlex.split(shlex.join(row.overrides)) == list(row.overrides)
