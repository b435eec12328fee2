"""A few of the faults of `make faults`, and that its comparison sees what it is there for."""

import json
import os
import shutil
import signal
from pathlib import Path

import pytest

from harness.common.signals import StopRequest
from tests.faults.__main__ import ALL, inject, shares
from tests.faults.bench import Bench, Kind
from tests.faults.kinds import KINDS
from tests.faults.stores import Harm, counted, harm, on_disk


@pytest.fixture(scope="module")
def bench():
    with Bench(seed=1) as bench:
        yield bench


def test_faults_lose_double_and_change_nothing(bench):
    kinds = [kind for kind in KINDS if os.geteuid() == 0 or not kind.needs_root]
    tallies = inject(bench, [(kind, 1) for kind in kinds], jobs=2, stop=StopRequest())
    for tally in tallies:
        assert tally.injected == 1 and tally.broken == []
        assert (tally.harm.lost, tally.harm.doubled, tally.harm.changed) == (0, 0, 0)


def test_what_a_fault_raises_is_its_broken_promise_and_does_not_cost_the_others(bench):
    runs = []

    def never_ends(case, rng) -> list[int]:
        runs.append(case.start())
        os.kill(runs[-1].pid, signal.SIGSTOP)
        runs[-1].wait(timeout=0.1)

    kinds = [Kind("never ends", 0, never_ends, lambda codes, complete: True), KINDS[1]]
    bad, good = inject(bench, [(kind, 1) for kind in kinds], jobs=1, stop=StopRequest())
    assert bad.injected == 0 and len(bad.broken) == 1 and "TimeoutExpired" in bad.broken[0]
    assert runs[0].wait(timeout=60) == -signal.SIGKILL
    assert good.injected == 1 and good.broken == []


def test_comparison_sees_a_lost_a_doubled_a_changed_and_a_needless_row(bench, tmp_path):
    results = Path(shutil.copytree(bench.folder / "undisturbed-0", tmp_path / "results"))
    whole, safe = counted(results), on_disk(results)
    assert harm(results, whole, safe) == Harm()
    (part,) = results.glob("*/*/parts/*.jsonl")
    lines = part.read_text().splitlines()

    def with_rows(rows: list[str]) -> Harm:
        part.write_text("".join(f"{row}\n" for row in rows))
        return harm(results, whole, {})

    # rows that are not those of task.json make the task unfinished, which is a change by itself
    assert with_rows(lines[1:]) == Harm(lost=1, changed=1)
    assert with_rows([*lines, lines[0]]) == Harm(twice=1)
    for field, value in (("score", 0.5), ("prediction", "x"), ("doc_hash", "x"), ("nll", 99.0)):
        assert with_rows([json.dumps({**json.loads(lines[0]), field: value}), *lines[1:]]) == Harm(changed=2)
    with_rows(lines)
    part.write_text("")
    # missing, lost after they were safe, and the task is not finished any more
    assert harm(results, whole, safe) == Harm(lost=2 * len(lines), changed=1)
    part.write_text("".join(f"{row}\n" for row in lines))
    (task,) = results.glob("*/*/task.json")
    record = json.loads(task.read_text())
    record["metrics"]["retrieval/accuracy"]["n"] += 1
    task.write_text(json.dumps(record))
    assert harm(results, whole, safe) == Harm(doubled=1, changed=1)


@pytest.mark.parametrize("faults", [12, 100, 999, ALL])
def test_every_kind_has_its_share(faults):
    counts = shares(KINDS, faults)
    assert sum(counts) == faults and min(counts) >= 1
    if faults == ALL:
        assert sum(kind.share for kind in KINDS) <= ALL
