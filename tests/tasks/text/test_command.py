"""The tasks on text from the command line: mistakes, and samples that a later run adds."""

import math

import numpy as np
import pytest

from harness.analysis import reader

TEXT = "".join(f"It was night {n}, and the lamp of house {n * 7} burned low.\nNobody spoke!\n\n" for n in range(60))


@pytest.fixture
def novel(tmp_path):
    file = tmp_path / "novel.txt"
    file.write_text(TEXT)
    return file


def words(task: str, text, results, *more: str) -> list[str]:
    options = ["model=tiny-books", f"task={task}", f"task.{task}.text={text}", "context=64", "attn=plsh", "masks=4"]
    return [*options, "draws=2", "references=none", f"results={results}", "tracking=disabled", *more]


@pytest.mark.parametrize("task", ["perplexity", "fidelity"])
def test_more_samples_extend_a_run(run, novel, tmp_path, task):
    results, whole = tmp_path / "results", tmp_path / "whole"
    for samples in (2, 6):
        code, document, _, _ = run(*words(task, novel, results, f"samples={samples}"))
        assert code == 0
    code, at_once, _, _ = run(*words(task, novel, whole, "samples=6", "batch=1"))
    assert code == 0
    assert document["rows_written"] == 4
    assert document["cell_id"] == at_once["cell_id"]
    rows, rows_at_once = (reader.records(place)[0].rows for place in (results, whole))
    assert {k: r.doc_hash for k, r in rows.items()} == {k: r.doc_hash for k, r in rows_at_once.items()}
    scores, scores_at_once = ({k: r.score for k, r in x.items()} for x in (rows, rows_at_once))
    assert scores == pytest.approx(scores_at_once, rel=1e-4)


def test_a_text_has_only_so_many_windows(run, novel, tmp_path):
    options = words("perplexity", novel, tmp_path, "samples=1000", "context=512", "task.perplexity.stride=512")
    code, document, _, err = run(*options)
    assert code == 0, err
    record = reader.records(tmp_path)[0]
    assert record.outcome.exhausted
    assert 1 < record.count == document["metrics"]["perplexity/bits_per_byte"]["n"] < 20


def test_another_text_is_another_task(run, novel, tmp_path):
    for content in (TEXT, TEXT + "More.", TEXT):
        novel.write_text(content)
        assert run(*words("perplexity", novel, tmp_path / "results", "samples=2"))[0] == 0
    assert len({r.store.task_id for r in reader.records(tmp_path / "results")}) == 2


@pytest.mark.parametrize(
    "more, said",
    [
        (["task.perplexity.text=null"], "task.perplexity.text is missing"),
        (["task.perplexity.text=/nowhere.txt"], "there is no such file"),
        (["task.perplexity.stride=65"], "task.perplexity.stride must be from 1 to context=64"),
        (["task.perplexity.stride=0"], "task.perplexity.stride must be from 1 to context=64"),
        (["context=2048"], "use a longer text or a smaller context"),
        (["model=tiny"], "it reads natural text"),
    ],
)
def test_mistakes_are_answered_in_words(run, novel, tmp_path, more, said):
    names = {word.split("=")[0] for word in more}
    options = [w for w in words("perplexity", novel, tmp_path / "results") if w.split("=")[0] not in names]
    code, document, _, err = run(*options, *more)
    assert code == 2
    assert document["status"] == "invalid"
    assert said in err


def test_a_stride_without_four_quarters_is_a_mistake(run, novel, tmp_path):
    code, _, _, err = run(*words("fidelity", novel, tmp_path, "task.fidelity.stride=3"))
    assert code == 2 and "task.fidelity.stride must be at least 4" in err


def test_an_unknown_attribution_is_a_mistake(run, novel, tmp_path):
    code, document, _, err = run(*words("fidelity", novel, tmp_path, "task.fidelity.attribution=neurons"))
    assert code == 2
    assert document["status"] == "invalid"
    assert "task.fidelity.attribution" in err
    assert "layers" in err


def test_fidelity_to_itself_is_whole(run, novel, tmp_path):
    options = [
        w for w in words("fidelity", novel, tmp_path, "samples=2") if not w.startswith(("attn", "masks", "draws"))
    ]
    code, document, _, _ = run(*options, "attn=alibi")
    assert code == 0
    metrics = {name.removeprefix("fidelity/"): m["value"] for name, m in document["metrics"].items()}
    assert metrics["kl"] == metrics["logits_error"] == 0
    assert metrics["top_1_agreement"] == 1


def test_draws_are_crossed_with_texts_on_request(run, novel, tmp_path):
    more = ["samples=4", "task.fidelity.crossed=true", "task.fidelity.sink_tokens=2"]
    code, document, _, err = run(*words("fidelity", novel, tmp_path, *more))
    assert code == 0, err
    (record,) = reader.records(tmp_path)
    rows = [row.more for row in record.rows.values()]
    assert [len(row["by_draw"]) for row in rows] == [2] * 4
    for key, row in record.rows.items():
        assert row.more["by_draw"][key % 2] == pytest.approx(row.score)  # its own draw among them
    metrics = {name.removeprefix("fidelity/"): m["value"] for name, m in document["metrics"].items()}
    table = np.array([row["by_draw"] for row in rows])
    left = table - table.mean(1, keepdims=True) - table.mean(0) + table.mean()
    assert metrics["kl_sd_rest"] == pytest.approx(math.sqrt((left**2).sum() / 3))
    assert {"kl_sd_texts", "kl_sd_draws"} <= set(metrics)
    heads = [metrics[f"sink_mass_{layer}_{head}"] for layer in (1, 2, 3) for head in range(1, 17)]
    assert metrics["sink_mass"] == pytest.approx(sum(heads) / 48)
    assert 0 < min(heads) < max(heads) < 1


def test_sinks_lie_in_the_context(run, novel, tmp_path):
    code, _, _, err = run(*words("fidelity", novel, tmp_path, "task.fidelity.sink_tokens=65"))
    assert code == 2
    assert "task.fidelity.sink_tokens must be from 0 to context=64" in err
