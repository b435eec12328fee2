"""The versions that are named, and a run of an embedded model under those that are installed."""

import tomllib

import pytest
from packaging.requirements import Requirement

from tests.conftest import ROOT

LISTS = ("constraints.txt", "constraints-oldest.txt", "constraints-newest.txt")


def pinned(name: str) -> dict[str, str]:
    lines = [line for line in (ROOT / name).read_text().splitlines() if not line.startswith("#")]
    return dict(line.lower().split("==") for line in lines)


@pytest.mark.parametrize("name", LISTS)
def test_what_was_tested_is_what_is_allowed(name):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found = pinned(name)
    for said in [*project["dependencies"], *project["optional-dependencies"]["test"]]:
        wanted = Requirement(said)
        if wanted.name in found:
            assert found[wanted.name] in wanted.specifier, said
    assert found.keys() - {"triton"} == pinned("constraints.txt").keys()  # which belongs to torch


def test_the_bounds_of_transformers_are_the_versions_that_are_tested():
    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    (bounds,) = (wanted.specifier for wanted in map(Requirement, dependencies) if wanted.name == "transformers")
    oldest, newest = (pinned(name)["transformers"].split(".") for name in LISTS[1:])
    assert {str(bound) for bound in bounds} == {f">={oldest[0]}.{oldest[1]}", f"<{newest[0]}.{int(newest[1]) + 1}"}


def test_the_oldest_triton_is_the_one_that_is_tested():
    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    (bounds,) = (wanted.specifier for wanted in map(Requirement, dependencies) if wanted.name == "triton")
    assert pinned("constraints-oldest.txt")["triton"] == f"{str(bounds).removeprefix('>=')}.0"


@pytest.mark.parametrize("attention", ["alibi", "stock"])
def test_the_embedded_model_answers(run, tmp_path, attention):
    """Its prompts are prefilled, and its answers are generated from the cache."""
    code, document, _, err = run(f"attn={attention}", "samples=16", f"results={tmp_path}")
    assert code == 0 and document["metrics"]["retrieval/accuracy"]["value"] >= 0.95
    assert "deprecated" not in err
