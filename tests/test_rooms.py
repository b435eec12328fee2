"""Who may import whom: the order of docs/architecture.md, and no circle of modules."""

import ast
import re
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("kernels", "harness")


def modules(package: str) -> dict[str, Path]:
    names = {}
    for file in (ROOT / package).rglob("*.py"):
        parts = file.relative_to(ROOT).with_suffix("").parts
        names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return names


def imports(package: str) -> dict[str, set[str]]:
    """The modules of both packages that each module imports, wherever in it and for whatever reason."""
    known, graph = modules("kernels") | modules("harness"), {}
    for name, file in modules(package).items():
        edges = graph.setdefault(name, set())
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                edges |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{name} has a relative import"
                inner = {f"{node.module}.{alias.name}" for alias in node.names}
                edges |= (inner & known.keys()) or {node.module}
        edges &= known.keys()
    return graph


def ranks(package: str) -> dict[str, int]:
    """The rooms of a package by their place in docs/architecture.md, from low to high."""
    text = (ROOT / "docs" / "architecture.md").read_text()
    orders = re.findall(r"^```text\n(.+ < .+)\n```", text, re.MULTILINE)
    groups = [[name.strip() for name in group.split(",")] for group in orders[PACKAGES.index(package)].split(" < ")]
    return {name: place for place, group in enumerate(groups) for name in group}


@pytest.mark.parametrize("package", PACKAGES)
def test_every_room_has_a_place(package: str):
    rooms = {name.split(".")[1] for name in modules(package) if "." in name}
    assert rooms == set(ranks(package))


@pytest.mark.parametrize("package", PACKAGES)
def test_no_import_runs_against_the_order(package: str):
    order, against = ranks(package), []
    for name, others in imports(package).items():
        for other in others:
            if name == package or not other.startswith(f"{package}."):  # the package itself shows what is public
                continue
            room, imported = name.split(".")[1], other.split(".")[1]
            against += [f"{name} -> {other}"] * (order[imported] > order[room])
    assert against == []


@pytest.mark.parametrize("package", PACKAGES)
def test_there_is_no_circle(package: str):
    try:
        TopologicalSorter(imports(package)).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_kernels_knows_nothing_of_the_harness():
    imported = {name for others in imports("kernels").values() for name in others}
    assert {name for name in imported if name.split(".")[0] == "harness"} == set()
