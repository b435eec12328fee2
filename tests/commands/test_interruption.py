"""A run that is killed, stopped or fails loses nothing and changes nothing."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
import torch

from harness.results.schema import SampleRow
from harness.results.store import TaskStore
from harness.tasks import registry
from harness.tasks.base import PlannedTask
from harness.tasks.retrieval import task as retrieval
from tests.conftest import ROOT

RUN = ("context=160", "samples=40", "draws=4", "masks=4", "batch=2", "references=none")


def only_store(results) -> TaskStore:
    (cell,) = results.glob("*/cell.json")
    (folder,) = cell.parent.glob("retrieval-*")
    task, task_id = folder.name.rsplit("-", 1)
    return TaskStore(results, folder.parent.name, task, task_id)


def content(results) -> dict:
    """What must be equal after a resume: keys, documents, predictions, scores; numbers to 1e-4. How
    many tokens were in the cache depends on how long the batch mates' answers are."""
    rows, apart = only_store(results).rows(), ("seconds", "kv_used_bytes")
    return {
        key: {k: round(v, 3) if isinstance(v, float) else v for k, v in row.items() if k not in apart}
        for key, row in rows.items()
    }


@pytest.fixture(scope="module")
def undisturbed(zygote, tmp_path_factory):
    results = tmp_path_factory.mktemp("undisturbed")
    out, _ = zygote.start([*RUN, f"results={results}"]).communicate()
    return content(results), json.loads(out.splitlines()[-1])["metrics"]


def wait_for_rows(results, count: int, process) -> None:
    while process.poll() is None and sum(p.read_bytes().count(b"\n") for p in results.glob("*/*/parts/*")) < count:
        time.sleep(0.01)


def assert_same(found: dict, expected: dict) -> None:
    assert found.keys() == expected.keys()
    for key, row in expected.items():
        assert {**found[key], "nll": None} == {**row, "nll": None}
        assert found[key]["nll"] == pytest.approx(row["nll"], abs=2e-3)


def test_five_kills_of_a_real_run(start, tmp_path, undisturbed):
    rng = random.Random(1)
    for kill in range(5):
        process = start(*RUN, f"results={tmp_path}")
        wait_for_rows(tmp_path, 2 + 6 * kill, process)
        time.sleep(rng.uniform(0, 0.05))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert only_store(tmp_path).finished() is None
    before = content(tmp_path)
    assert 8 <= len(before) < 40
    process = start(*RUN, f"results={tmp_path}")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert_same(content(tmp_path), undisturbed[0])
    assert {k: content(tmp_path)[k] for k in before} == before
    for name, metric in json.loads(out.splitlines()[-1])["metrics"].items():
        assert metric["value"] == pytest.approx(undisturbed[1][name]["value"], abs=1e-3)
    parts = [json.loads(line)["key"] for p in tmp_path.glob("*/*/parts/*") for line in p.read_text().splitlines()]
    assert len(parts) == len(set(parts)) == 40  # no sample was computed twice


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_stops_at_a_sample_boundary_and_asks_to_be_run_again(start, tmp_path, undisturbed, signum):
    process = start(*RUN, f"results={tmp_path}")
    wait_for_rows(tmp_path, 4, process)
    process.send_signal(signum)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 75, err
    assert json.loads(out.splitlines()[-1])["status"] == "stopped"
    store = only_store(tmp_path)
    assert store.status() == "stopped" and 4 <= len(store.rows()) < 40
    if signum == signal.SIGTERM:
        process = start(*RUN, f"results={tmp_path}")
        process.communicate(timeout=120)
        assert process.returncode == 0
        assert_same(content(tmp_path), undisturbed[0])


def test_signals_until_the_very_end_leave_the_exit_code_as_it_is(tmp_path):
    """A scheduler may send a second one while Python closes."""
    command = [sys.executable, "-m", "harness.run", *FAST, f"results={tmp_path}"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not process.stdout.readline().startswith("{"):
        assert process.poll() is None
    while process.poll() is None:
        process.send_signal(signal.SIGTERM)
        time.sleep(0.001)
    assert process.returncode == 0 and "Traceback" not in process.communicate()[1]


def test_a_smaller_run_after_a_stopped_larger_one_counts_its_own_samples(start, run, tmp_path):
    """The larger run left rows beyond a gap: they are neither counted nor mistaken for the missing
    ones."""
    process = start(*RUN, f"results={tmp_path}")
    wait_for_rows(tmp_path, 14, process)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    stopped = set(only_store(tmp_path).rows())
    fewer = next(k for k in range(40) if k not in stopped) + 2  # reaches into the gap
    arguments = [a for a in RUN if "samples" not in a]
    for samples in (fewer, 40):
        code, document, _, _ = run(*arguments, f"samples={samples}", f"results={tmp_path}")
        assert code == 0 and set(range(samples)) <= set(only_store(tmp_path).rows())
        n = document["metrics"]["retrieval/accuracy"]["n"]
        assert samples <= n and set(range(n)) <= set(only_store(tmp_path).rows())


def test_a_signal_stops_the_rest_of_a_multirun(start, tmp_path):
    process = start("-m", *[a for a in RUN if "masks" not in a], "masks=4,8,16", f"results={tmp_path}")
    wait_for_rows(tmp_path, 4, process)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=60)
    last = json.loads(out.splitlines()[-1])
    assert process.returncode == 75 and last["status"] == "stopped" and last["exit_codes"] == [75, 75, 75]
    assert len(list(tmp_path.glob("*/cell.json"))) == 1


def test_an_extension_that_is_stopped_reads_as_stopped(tmp_path):
    store = TaskStore(tmp_path, "c", "t", "i")
    part = store.open_part("a")
    part.write([{"key": k} for k in range(6)])
    part.close()
    store.finish({"status": "ok", "attempt": "a", "samples": 4})
    assert store.status() == "stopped"
    store.finish({"status": "ok", "attempt": "b", "samples": 6})
    assert store.status() == "ok"


FAST = ("context=160", "samples=8", "draws=4", "masks=4", "references=none")


class Broken:
    """A task that raises; `fault` makes the exception."""

    name, rows_are, needs_model, options = "broken", "samples", False, retrieval.Options

    needs_trained_weights, runs_weights, natural_text, generates = False, False, False, 0

    def __init__(self, fault):
        self.fault = fault

    def tasks(self, options):
        return [PlannedTask(self, options)]

    def identity(self, options):
        return {}

    def identity_on(self, options, cell):
        return {}

    row = staticmethod(SampleRow.read)

    def check(self, options, cell): ...

    def amount(self, options, cell, samples, batch):
        return samples, batch

    def prepare(self, options, cell, samples, folder): ...

    def run(self, options, context):
        yield [SampleRow(key=0, draw=0, score=1.0, doc_hash="x")]
        raise self.fault


@pytest.mark.parametrize(
    ("fault", "status", "code"),
    [
        (KeyError("no such thing"), "error", 1),
        (torch.cuda.OutOfMemoryError("CUDA out of memory"), "oom", 1),
        (MemoryError(), "oom", 1),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"), "oom", 1),
        (NotImplementedError("not implemented for 'Half'"), "unsupported", 0),
    ],
)
def test_one_failing_task_does_not_stop_the_others(run, monkeypatch, tmp_path, fault, status, code):
    monkeypatch.setitem(registry.TASKS, "broken", Broken(fault))
    found, document, _, err = run("task=[]", "+task.broken={}", "+task.retrieval={}", *FAST, f"results={tmp_path}")
    assert found == code and document["tasks"] == {"broken": status, "retrieval": "ok"}
    assert status in err and "Traceback" not in err
    (folder,) = tmp_path.glob("*/broken-*")
    record = json.loads(next(iter([*folder.glob("attempts/*.json"), *folder.glob("task.json")])).read_text())
    assert record["error"] == type(fault).__name__ and "environment" in record and "traceback" in record
    assert len(list(folder.glob("parts/*.jsonl"))) == 1  # what it had computed is kept


def test_failed_task_is_tried_again(run, monkeypatch, tmp_path):
    real = retrieval.answer
    calls = []

    def fail_once(*arguments, **options):
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("a fault of the moment")
        return real(*arguments, **options)

    monkeypatch.setattr(retrieval, "answer", fail_once)
    code, document, _, _ = run(*FAST, f"results={tmp_path}")
    assert code == 1 and document["tasks"] == {"retrieval": "error"} and only_store(tmp_path).status() == "error"
    kept = len(only_store(tmp_path).rows())
    assert kept == 2
    code, document, _, _ = run(*FAST, f"results={tmp_path}")
    assert code == 0 and document["tasks"] == {"retrieval": "ok"} and len(only_store(tmp_path).rows()) == 8
    assert len(calls) == 2 + 3  # the first batch was not computed again


def test_full_disk_is_an_outcome_not_a_crash(run, monkeypatch, tmp_path):
    from harness.results.store import Part

    def full(self, rows):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Part, "write", full)
    code, document, _, err = run(*FAST, f"results={tmp_path}")
    assert code == 1 and document["tasks"] == {"retrieval": "error"} and "No space left" in err


def test_a_changed_text_is_another_task(run, tmp_path):
    text = tmp_path / "text.txt"
    options = (*FAST, "task.retrieval.haystack=text", f"results={tmp_path / 'results'}")
    for content in ("One day it rained. ", "One day it snowed. "):
        text.write_text(content * 50)
        assert run(*options, f"task.retrieval.text={text}")[0] == 0
    other = tmp_path / "copy.txt"
    other.write_text(text.read_text())
    run(*options, f"task.retrieval.text={other}")
    assert len(list((tmp_path / "results").glob("*/retrieval-*/task.json"))) == 2


class Killed(BaseException):
    """The end of a process at this place, as far as the store can tell."""


def test_another_try_that_was_killed_before_its_first_row_is_stopped_and_no_failure(run, tmp_path, monkeypatch):
    names = map(str, range(1, 10))
    monkeypatch.setattr("harness.experiment.execute.new_attempt", lambda: next(names))  # one second holds several here

    def once(error: type[BaseException]) -> None:
        def prepare(*_):
            raise error("made up")

        with monkeypatch.context() as patch:
            patch.setattr(PlannedTask, "prepare", prepare)
            run(*FAST, f"results={tmp_path}")

    once(RuntimeError)
    assert only_store(tmp_path).status() == "error"
    with pytest.raises(Killed):
        once(Killed)
    assert only_store(tmp_path).status() == "stopped"
    once(MemoryError)
    assert only_store(tmp_path).status() == "oom"
    assert run(*FAST, f"results={tmp_path}")[0] == 0 and only_store(tmp_path).status() == "ok"


def test_nan_in_the_logits_is_recorded(run, tmp_path, checkpoint, monkeypatch):
    from safetensors.torch import load_file, save_file

    # as if the weights gave NaN only beyond the tokens of the check
    monkeypatch.setattr("harness.models.selfcheck.check_logits", lambda *_, **__: None)
    broken = tmp_path / "checkpoint"
    broken.mkdir()
    for file in checkpoint.iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    weights = load_file(broken / "model.safetensors")
    weights["transformer.norm_f.weight"][0] = float("nan")
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    code, document, _, err = run("model=local", f"model.path={broken}", *FAST, f"results={tmp_path / 'results'}")
    assert code == 1 and document["tasks"] == {"retrieval": "error"} and "not finite" in err
    record = only_store(tmp_path / "results").attempts()[-1]
    assert record["error"] == "FloatingPointError"


def test_the_environment_is_recorded(run, tmp_path):
    run(*FAST, f"results={tmp_path}")
    found = only_store(tmp_path).finished()["environment"]
    for field in ("commit", "dirty", "packages", "device", "driver", "tf32", "host", "start", "command"):
        assert field in found
    assert found["auto_kernel"] in (["sdpa"], ["triton"])  # what kernel=auto came to, here
    assert (
        found["packages"]["torch"] == torch.__version__ and "context=160" in found["command"] and found["tf32"] is False
    )


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_is_heard_while_prompts_are_made(start, tmp_path, signum):
    """Four thousand prompts take minutes, of which a scheduler gives a few seconds."""
    process = start("model=tiny", "attn=alibi", "samples=4000", "context=2048", f"results={tmp_path}")
    until = time.monotonic() + 120
    while "Preparing the data" not in process.err:
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.05)
    sent = time.monotonic()
    process.send_signal(signum)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 75 and json.loads(out.splitlines()[-1])["status"] == "stopped"
    assert time.monotonic() - sent < 30 and not list((tmp_path / "data").glob("*"))


def test_a_signal_is_heard_while_a_model_is_loaded(run, tmp_path, monkeypatch):
    def slow(*_, **__):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)

    monkeypatch.setattr("harness.experiment.run_plan.load_model", slow)
    began = time.monotonic()
    code, document, _, _ = run(*FAST, f"results={tmp_path}")
    assert code == 75 and document["status"] == "stopped" and time.monotonic() - began < 30
    assert not list(tmp_path.glob("*/*/attempts/*"))  # it is no failure


def test_a_second_interrupt_by_hand_ends_at_once(run, tmp_path, monkeypatch):
    def slow(*_):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(60)

    monkeypatch.setattr("harness.experiment.execute._write_rows", slow)
    began = time.monotonic()
    code, document, _, _ = run(*FAST, f"results={tmp_path}")
    assert code == 75 and document == {"status": "stopped"} and time.monotonic() - began < 30
    monkeypatch.undo()
    assert run(*FAST, f"results={tmp_path}")[0] == 0
