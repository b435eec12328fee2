"""A corpus of the library `datasets` as text, from a local folder and without a network."""

import json

import pytest

from harness.common.errors import UserError
from harness.tasks import texts

ROWS = [" = A title = \n", "", f" It was night, and {'a lamp burned low in the street, ' * 60}naïvely.\n", "The end"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    texts._corpus.cache_clear()


@pytest.fixture
def corpus(tmp_path):
    folder = tmp_path / "corpus"
    folder.mkdir()
    (folder / "test.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in ROWS))
    (folder / "train.jsonl").write_text(json.dumps({"text": "Other words."}) + "\n")
    return folder


def test_rows_are_lines(corpus):
    whole = texts.read_text("task.perplexity.text", f"hf:{corpus}/default/test")
    assert whole == f"{ROWS[0]}\n{ROWS[2]}{ROWS[3]}\n"
    assert texts.read_text("task.perplexity.text", f"hf:{corpus}/default/train") == "Other words.\n"


@pytest.mark.parametrize(
    "value, said",
    [
        ("hf:wikitext", "write hf:NAME/CONFIG/SPLIT"),
        ("hf:{corpus}/default/validation", "could not be had"),
        ("hf:{corpus}/nowhere/default/test", "could not be had"),
        ("wikitext-103", "hf:Salesforce/wikitext/wikitext-103-raw-v1/test could not be had"),
    ],
)
def test_mistakes_are_sentences(corpus, value, said):
    with pytest.raises(UserError) as error:
        texts.read_text("task.perplexity.text", value.format(corpus=corpus))
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_a_corpus_needs_a_column_of_texts(tmp_path, corpus):
    (corpus / "test.jsonl").write_text(json.dumps({"words": "a"}) + "\n")
    (corpus / "train.jsonl").unlink()
    with pytest.raises(UserError, match="has no column 'text', but words"):
        texts.read_text("task.perplexity.text", f"hf:{corpus}/default/test")


def test_a_corpus_and_a_file_of_its_text_are_one_task(run, corpus, tmp_path):
    file = tmp_path / "same.txt"
    file.write_text(f"{ROWS[0]}\n{ROWS[2]}{ROWS[3]}\n")
    given = ["model=tiny-books", "task=perplexity", "attn=alibi", "context=64", "samples=3", "references=none"]
    given += [f"results={tmp_path / 'results'}", "tracking=disabled"]
    for text, written in ((f"hf:{corpus}/default/test", 3), (file, 0)):
        code, document, _, err = run(*given, f"task.perplexity.text={text}")
        assert code == 0, err
        assert document["rows_written"] == written
