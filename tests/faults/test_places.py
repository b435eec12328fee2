"""The writing code is found in the source: whoever writes is in it, and whoever is gone is not."""

from types import SimpleNamespace

import pytest

from harness import run
from harness.results import store
from tests.conftest import ROOT
from tests.faults.hooks import _Tracer
from tests.faults.places import places, writing

WRITERS = (
    ("harness/common/files.py", "replacing"),
    ("harness/common/files.py", "write_whole"),
    ("harness/results/store.py", "Part.write"),
    ("harness/results/store.py", "TaskStore.finish"),
    ("harness/experiment/execute.py", "_record_failure"),
    ("harness/experiment/execute.py", "run_task"),
    ("harness/analysis/reader.py", "write_view"),
    ("harness/results/index.py", "Index.look"),
    ("harness/results/index.py", "Index.rows"),
    ("harness/results/lease.py", "Lease.take"),
    ("harness/results/lease.py", "Lease.release"),
    ("harness/tracking/mirror.py", "claim"),
    ("harness/tracking/mirror.py", "_create"),
    ("harness/tracking/mirror.py", "_record_upload"),
    ("harness/tasks/prepared.py", "prepare_once"),
    ("harness/tasks/lmeval/documents.py", "prepare_documents"),
    ("harness/tasks/lmeval/documents.py", "_build"),
    ("harness/collect.py", "collect"),
    ("harness/collect.py", "write"),
    ("harness/report/__main__.py", "_page"),
    ("harness/experiment/prepare.py", "prepare"),
    ("harness/experiment/run_plan.py", "run_plan"),
)
SOURCE = """
import os, shutil
from pathlib import Path
from pack.helper import put
from pack import helper
class Keeper:
    def keep(self, path): self._keep(path)
    def _keep(self, path): path.unlink()
    def look(self, path): return path.read_text()
def deep(path): put(path, "x")
def deeper(path): return deep
def by_module(path): helper.put(path, "x")
def by_object(keeper: Keeper): keeper.keep("x")
def made():
    keeper = Keeper()
    keeper.look("x")
def at_once(path): Keeper().keep(path)
def nothing(text): return text.replace("a", "b")
def renamed(path): path.replace(path)
def appended(path):
    with open(path, "ab") as file: return file
def opened(path):
    with path.open() as file: return file
def outer(path):
    def inner(): os.fsync(path)
    return inner()
def silent(): return open(os.devnull, "w")
"""


def test_functions_that_write_and_those_that_lead_there_are_found_and_no_others(tmp_path):
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack" / "helper.py").write_text("def put(path, text): path.write_text(text)\n")
    (tmp_path / "pack" / "most.py").write_text(SOURCE)
    names = {
        "Keeper.keep",
        "Keeper._keep",
        "deep",
        "deeper",
        "by_module",
        "by_object",
        "at_once",
        "renamed",
        "appended",
    }
    names |= {"outer", "outer.<locals>.inner"}
    expected = {("pack/most.py", name) for name in names} | {("pack/helper.py", "put")}
    assert places(tmp_path, "pack") == expected


@pytest.mark.parametrize("place", WRITERS, ids=lambda place: ":".join(place))
def test_every_known_writer_is_a_place(place):
    assert place in writing()


def test_every_place_is_a_function_that_runs_under_its_name():
    """A name that the tracer does not meet would be no place: each is compiled under its name."""

    def names(code) -> set[str]:
        inner = [c for c in code.co_consts if hasattr(c, "co_qualname")]
        return {code.co_qualname}.union(*map(names, inner))

    for file in {file for file, _ in writing()}:
        compiled = names(compile((ROOT / file).read_text(), file, "exec"))
        assert {name for f, name in writing() if f == file} <= compiled


def test_the_tracer_meets_the_places_and_no_others():
    tracer = _Tracer(None, lambda: None)
    for function in (store.Part.write, run._is_multirun):
        tracer.call(SimpleNamespace(f_code=function.__code__), "call", None)
    assert tracer.reached == {("harness/results/store.py", "Part.write")}
