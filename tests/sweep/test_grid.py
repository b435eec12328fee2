"""Sweep files: the rows that W&B's grid gives, written as its agent writes them; everything else
refused."""

import pytest
import yaml
from wandb.sdk.launch.sweeps.utils import create_sweep_command_args

from harness.common.errors import UserError
from harness.common.paths import ROOT
from harness.sweep.grid import Grid, read_grid

FILES = sorted((ROOT / "sweeps").glob("*.yaml"))
PARETO = ["pareto", "pareto_text", "pareto_time"]
COMMAND = ["${env}", "${interpreter}", "-m", "harness.run", "${args_no_hyphens}"]


def write(folder, parameters, **more):
    file = folder / "s.yaml"
    file.write_text(yaml.safe_dump({"program": "harness/run.py", "method": "grid", "parameters": parameters, **more}))
    return file


def lines(grid: Grid) -> list[list[str]]:
    return [list(grid.overrides(number)) for number in range(1, len(grid) + 1)]


def test_order_is_by_name_and_the_last_varies_fastest(tmp_path):
    """What the grid search of W&B's package `sweeps` 0.3.0 proposes for this file, one run after
    the other."""
    parameters = {"masks": {"values": [16, 4]}, "context": {"value": 160}, "attn": {"values": ["plsh", "alibi"]}}
    assert lines(read_grid(write(tmp_path, parameters))) == [
        ["attn=plsh", "context=160", "masks=16"],
        ["attn=plsh", "context=160", "masks=4"],
        ["attn=alibi", "context=160", "masks=16"],
        ["attn=alibi", "context=160", "masks=4"],
    ]


@pytest.mark.parametrize("value", [3, -2, 0.5, 1e-05, True, "gamma", "null", "[a,b]", ["a", "b"], [1, 2.5], "x y", ""])
def test_values_are_written_as_the_agent_writes_them(tmp_path, value):
    args = create_sweep_command_args({"args": {"samples": {"value": value}}})
    assert lines(read_grid(write(tmp_path, {"samples": {"value": value}}))) == [args["args_no_hyphens"]]


def test_a_whole_number_comes_back_from_the_server_as_an_integer(tmp_path):
    assert lines(read_grid(write(tmp_path, {"attn.cutoff": {"values": [16.0, 3e6]}}))) == [
        ["attn.cutoff=16"],
        ["attn.cutoff=3000000"],
    ]


REFUSED = [
    ({"masks": {"value": None}}, 'Write "null"'),
    ({"attn": {"parameters": {"masks": {"value": 3}}}}, "nested parameters"),
    ({"attn": {"value": {"masks": 3}}}, "dotted names"),
    ({"masks": {"value": "1,2"}}, "several values"),
    ({"masks": {"value": "range(1,4)"}}, "several values"),
    ({"task.retrieval.text": {"value": "it's"}}, "cannot be read as an override"),
    ({"masks": {"min": 1, "max": 9}}, "either value or values"),
    ({"masks": {"values": [1, 2], "probabilities": [0.5, 0.5]}}, "either value or values"),
    ({"masks": {"values": []}}, "must be a list"),
    ({"masks": {"values": [4, 4]}}, "twice"),
    ({"attn.cutoff": {"values": [4, 4.0]}}, "twice"),
    ({"attn.cutoff": {"value": float("inf")}}, "no number of JSON"),
    ({"results": {"value": "elsewhere"}}, "--results"),
    ({"hydra.run.dir": {"value": "x"}}, "no option"),
    ({}, "at least one"),
]


@pytest.mark.parametrize(("parameters", "says"), REFUSED, ids=[str(r[0]) for r in REFUSED])
def test_what_the_roads_would_read_differently_is_refused(tmp_path, parameters, says):
    with pytest.raises(UserError, match=says.replace("(", r"\(")):
        read_grid(write(tmp_path, parameters))


def test_all_mistakes_of_a_file_are_said_at_once(tmp_path):
    file = write(tmp_path, {"masks": {"value": None}, "seed": {"values": []}}, method="bayes", run_cap=3, command=["x"])
    with pytest.raises(UserError) as raised:
        read_grid(file)
    for word in ("masks:", "seed:", "method is bayes", "'run_cap' is not supported", "command must end"):
        assert word in str(raised.value)
    file.write_text("a: [")
    with pytest.raises(UserError, match="not YAML"):
        read_grid(file)
    with pytest.raises(UserError, match="cannot be read"):
        read_grid(tmp_path / "absent.yaml")


@pytest.mark.parametrize("file", FILES, ids=[f.name for f in FILES])
def test_our_files_say_their_question_and_name_kernel_and_dtype(file):
    first, content = file.read_text().splitlines()[0], yaml.safe_load(file.read_text())
    assert first.startswith("# ")
    assert first.endswith("?")
    assert {"model", "attn", "kernel", "dtype"} <= set(content["parameters"])
    assert content["command"] == COMMAND
    assert content["name"] == file.stem
    assert content["program"] == "harness/run.py"
    assert "auto" not in read_grid(file).values["kernel"]
    assert "null" not in read_grid(file).values["dtype"]


def test_the_files_that_there_should_be():
    names = ["context", "kernels", "masks", "models", "near", "paper_5_2", *PARETO, "theory", "tiny"]
    assert [f.stem for f in FILES] == names
