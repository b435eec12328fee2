"""task=throughput through the command line: rows, ids, resume, and no speed without a check."""

import json

import pytest

from harness.analysis import reader
from harness.results import store
from harness.tasks.throughput import oracle
from kernels import attend
from tests.experiment.test_cell import planned

SHAPE = ["model=random", *(f"model.architecture.{n}" for n in ("layers=2", "heads=4", "width=64"))]
SMALL = ["task.throughput.repeats=2", "task.throughput.decode_tokens=4", "task.throughput.rows=[2]"]
SMALL += ["task.throughput.chunk=16", "masks=4", "context=64", "references=none"]


@pytest.fixture
def measure(run, tmp_path):
    def call(*more: str):
        return run(*SHAPE, *SMALL, f"results={tmp_path}", *more)

    return call


def only(results) -> reader.Record:
    (record,) = reader.records(results)
    return record


def test_random_weights_choose_throughput_and_refuse_accuracy(run):
    assert [t.task.name for t in planned("model=random").tasks] == ["throughput"]
    assert planned("model=random").compute_references
    code, document, _, _ = run("model=random", "task=retrieval")
    assert code == 2 and "task=throughput" in document["message"]


def test_every_repeat_is_a_row_beside_its_errors(measure, tmp_path):
    code, document, out, _ = measure("samples=3", "task.throughput.batch=2")
    assert code == 0 and document["tasks"] == {"throughput": "ok"}
    record = only(tmp_path)
    rows = list(record.lines.values())
    # counts, then by turns: prefill twice, chunked prefill and one and two rows, both for each
    # attention
    assert len(rows) == 1 + 2 * (2 + 2 * 3) and record.rows_are == "repeats"
    assert all(r["error"] <= 1e-5 and r["error_cached"] <= 5e-5 for r in rows)
    metrics = {name.removeprefix("throughput/"): m for name, m in document["metrics"].items()}
    for name in ("prefill_ms", "chunked_prefill_ms", "decode_ms_per_token", "decode_rows_2_ms"):
        assert metrics[name]["n"] == 2 and 0 < metrics[name]["low"] <= metrics[name]["value"] <= metrics[name]["high"]
    tokens_per_s = sorted(2 * 64 / r["ms"] * 1e3 for r in rows if r.get("measurement") == "prefill" and not r["exact"])
    assert metrics["prefill_tokens_per_s"]["value"] == pytest.approx(sum(tokens_per_s) / 2)
    assert 0 < metrics["attention_share"]["value"] < 1 < metrics["amdahl_limit"]["value"]
    assert (
        metrics["kv_allocated_bytes"]["value"] == 2 * 2 * 2 * (64 + 4) * 64 * 4
    )  # layers, k and v, batch, slots, width
    assert metrics["alibi_difference"]["value"] > 100 * metrics["error"]["value"]
    assert not {"mfu", "mbu", "joules_per_1k_tokens"} & set(metrics)  # a CPU: neither peak nor meter is known
    assert "prefill speedup (over exact ALiBi)" in out and "Wilson" not in out


def test_exact_alibi_changes_nothing_and_is_timed_alone(measure, tmp_path):
    measure("attn=alibi")
    record = only(tmp_path)
    assert record.metrics["throughput/alibi_difference"].value == 0
    assert not any("speedup" in name for name in record.metrics) and len(record.rows) == 1 + 2 * 4


def test_evicting_holds_less_and_computes_the_same(measure, tmp_path):
    more = ["attn=window", "attn.cutoff=0.02", "context=256"]  # 5 tokens for the gentlest of four heads
    _, kept, _, _ = measure(*more)
    _, evicted, _, _ = measure(*more, "attn.evict=true")
    slot = 2 * 2 * 64 * 4
    assert kept["metrics"]["throughput/kv_used_bytes"]["value"] == (256 + 4) * slot
    assert evicted["metrics"]["throughput/kv_allocated_bytes"]["value"] == (5 + 4 + 16) * slot
    assert evicted["metrics"]["throughput/error_cached"]["value"] <= 5e-5
    assert "throughput/prefill_ms" in kept["metrics"] and "throughput/prefill_ms" not in evicted["metrics"]
    assert "throughput/decode_packing_ms" not in kept["metrics"]
    packed = [r for r in reader.records(tmp_path)[0].lines.values() if r.get("packing_ms")]
    packed += [r for r in reader.records(tmp_path)[1].lines.values() if r.get("packing_ms")]
    assert packed and all(r["ms"] >= r["packing_ms"] * r["rows"] / 16 for r in packed)


def test_more_repeats_extend_and_another_commit_does_not(measure, tmp_path, monkeypatch):
    measure()
    before = only(tmp_path)
    rows = before.lines  # read from the store when first asked for
    measure("task.throughput.repeats=3", "samples=99")
    after = only(tmp_path)
    assert after.store.task_id == before.store.task_id and len(after.rows) == len(rows) + 8
    assert all(after.lines[k] == row for k, row in rows.items())
    options = after.options
    assert {"device", "torch", "triton", "commit"} <= set(options) and "repeats" not in options
    monkeypatch.setattr("harness.common.environment.git", lambda *arguments: "another")
    measure()
    assert len({r.store.task_id for r in reader.records(tmp_path)}) == 2


def test_a_stopped_run_goes_on_after_its_last_repeat(measure, tmp_path, monkeypatch):
    write, rows = store.Part.write, []

    def full(part, new):
        if len(rows) == 5:
            raise OSError("No space left on device")
        rows.extend(new)
        write(part, new)

    monkeypatch.setattr(store.Part, "write", full)
    assert measure()[0] == 1
    assert len(only(tmp_path).rows) == 5 and not only(tmp_path).metrics
    monkeypatch.setattr(store.Part, "write", write)
    assert measure()[0] == 0
    record = only(tmp_path)
    assert len(record.rows) == 17 and json.loads(json.dumps(rows)) == [record.lines[k] for k in range(5)]


@pytest.mark.parametrize("broken", ["the kernel", "the cache"])
def test_a_wrong_result_is_an_error_without_a_speed(measure, tmp_path, monkeypatch, broken):
    def wrong(q, k, v, weights, **options):
        out = attend(q, k, v, weights, **options)
        return out * 1.001 if broken == "the kernel" or k.shape[2] > q.shape[2] else out

    # the self-check would refuse the model when it is loaded
    monkeypatch.setattr("harness.models.selfcheck.check_logits", lambda *_, **__: None)
    monkeypatch.setattr(oracle if broken == "the kernel" else "harness.models.swap.attend", *wrong_where(broken, wrong))
    code, document, _, _ = measure()
    record = only(tmp_path)
    assert code == 1 and record.status == "error" and not record.rows and not document["metrics"]
    assert "no speed is recorded" in record.outcome.message


def wrong_where(broken, wrong):
    return ("attend", wrong) if broken == "the kernel" else (wrong,)


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("task.throughput.rows=[1]", "from 2 to 4"),
        ("task.throughput.rows=[8]", "decode_tokens and chunk"),
        ("task.throughput.repeats=0", "at least 1"),
        ("context=16", "at least 32"),
        ("attn=stock", "attn=alibi"),
    ],
)
def test_mistakes_are_answered_before_a_model_is_made(measure, option, said):
    code, document, _, _ = measure(option)
    assert code == 2 and said in document["message"]


def test_samples_and_draws_mean_nothing_to_repeats():
    found = planned(*SHAPE, "samples=3", "draws=8")
    (task,) = found.tasks
    assert task.task.amount(task.options, found.cell, 3, 8) == (1 + 10 * 14, 1)
    need, wide = (plan.memory.split(" of ")[0] for plan in (found, planned(*SHAPE, "batch=64")))
    assert need == wide  # of sequences at a time, task.throughput.batch
