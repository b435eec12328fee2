"""The commands that a page offers for what is missing: run, they give the very cell."""

import shlex
from copy import copy
from dataclasses import replace

import pytest
from hydra import compose, initialize_config_dir

from harness.analysis import reader
from harness.analysis.reader import Record
from harness.attentions.alibi import EXACT
from harness.attentions.plsh import Plsh
from harness.common.paths import CONF, ROOT
from harness.experiment import command
from harness.experiment.config import register_schema
from harness.experiment.plan import plan
from harness.results.schema import Environment, TaskOutcome

STORES = ("first", "throughput_cpu")


@pytest.mark.parametrize("store", STORES)
def test_the_command_beside_a_record_composes_to_its_cell(store):
    register_schema()
    records = reader.records(ROOT / "docs" / "results" / store)
    assert records
    with initialize_config_dir(str(CONF), version_base="1.3"):
        for record in records:
            words = shlex.split(command.neighbour_command(record, record.method))
            planned = plan(compose("config", overrides=words[3:]))
            assert planned.cell.cell_id == record.cell_id, words


def made_by(recorded: str) -> Record:
    record = reader.records(ROOT / "docs" / "results" / "first")[0]
    other = replace(record, cell=record.cell.but(model="random-mpt, random weights"))
    vars(other)["outcome"] = TaskOutcome(environment=Environment(command=recorded))
    return other


def test_lists_in_brackets_are_kept_and_the_lists_of_a_multirun_are_not():
    words = "model=random,tiny task.throughput.rows=[4,16] task.throughput.chunk=256,512 batch=range(1,4) device=cpu"
    record = made_by(f"python -m harness.run -m {words}")
    again = command.neighbour_command(record, Plsh(4, "gamma", "count", evict=True))
    assert "model=random " in again
    assert "attn.evict=true" in again
    assert "'task.throughput.rows=[4,16]'" in again
    assert again.endswith("device=cpu")
    assert "chunk" not in again
    assert "batch" not in again


def test_a_task_of_lm_eval_is_asked_for_by_its_family():
    record = made_by("python -m harness.run task=[ruler,retrieval] task.ruler.names=[niah_single_1]")
    again = command.neighbour_command(record, EXACT)
    assert "'task=[ruler,retrieval]'" in again
    assert "'task.ruler.names=[niah_single_1]'" in again
    swept = made_by("python -m harness.run -m task=retrieval,ruler")
    store = copy(swept.store)
    store.name = "niah_multikey_2"
    again = command.neighbour_command(replace(swept, store=store), EXACT)
    assert "task=ruler 'task.ruler.names=[niah_multikey_2]'" in again
