"""A user's task whose data or code is edited between two runs is another task, and reads what lies
there now."""

import json
import os
from types import SimpleNamespace

import pytest

from harness.models.options import ModelConfig
from harness.models.spec import resolve_model
from harness.tasks.lmeval.task import LM_EVAL, LmEvalOptions
from tests.conftest import EMBEDDED

COMMON = "test_split: test\nmetadata: {version: 1.0}\noutput_type: generate_until\ndoc_to_target: '{{answer}}'\n"
COMMON += "generation_kwargs: {do_sample: false, max_gen_toks: 2, until: []}\n"
COMMON += "metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]\n"
PLAIN = "doc_to_text: '{{text}}'\n"


def jsonl(answer: str) -> str:
    return "".join(json.dumps({"text": f"question {i}:", "answer": answer}) + "\n" for i in range(3))


@pytest.fixture
def identity(tmp_path, monkeypatch):
    """identity(yaml): what is in the task's id, of a definition in a folder `own` beside the
    working folder."""
    (tmp_path / "work").mkdir()
    (tmp_path / "own").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    model = resolve_model(ModelConfig(name="tiny", path=str(EMBEDDED / "tiny")), None)

    def found(yaml: str) -> dict:
        (tmp_path / "own" / "edited.yaml").write_text(f"task: edited\n{COMMON}{yaml}")
        options = LmEvalOptions(names=["edited"], include_path=str(tmp_path / "own"))
        (planned,) = LM_EVAL.tasks(options)
        return planned.identity(SimpleNamespace(model=model, context=256, data_seed=0))

    return found


DATA = {
    "a bare name": ("here.jsonl", "dataset_path: json\ndataset_kwargs: {data_files: {test: here.jsonl}}\n"),
    "a glob": ("parts/a.jsonl", "dataset_path: json\ndataset_kwargs: {data_files: {test: parts/*.jsonl}}\n"),
    "a folder": ("parts/test.jsonl", "dataset_path: parts\n"),
    "a data folder": ("parts/test.jsonl", "dataset_path: json\ndataset_kwargs: {data_dir: parts}\n"),
}


@pytest.mark.parametrize("way", DATA)
def test_data_is_known_by_its_documents(identity, tmp_path, way):
    name, yaml = DATA[way]
    file = tmp_path / "work" / name
    file.parent.mkdir(exist_ok=True)
    file.write_text(jsonl("one"))
    first = identity(yaml + PLAIN)
    assert identity(yaml + PLAIN) == first
    before = file.stat()
    file.write_text(jsonl("two"))  # of the same size
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))  # and, as after rsync -t, of the same date
    second = identity(yaml + PLAIN)
    assert second != first and second["definition"] == first["definition"]
    file.write_text(jsonl("one"))
    assert identity(yaml + PLAIN) == first


CODE = {
    "a helper": ("helper.py", "from helper import word"),
    "a helper in a package": ("pack/deep/helper.py", "from pack.deep.helper import word"),
    "a helper in another folder": (
        "../elsewhere/far.py",
        "sys.path.insert(0, str(Path(__file__).parent.parent / 'elsewhere'))\nfrom far import word",
    ),
    "a file that code reads": ("word.txt", "def word(): return (Path(__file__).parent / 'word.txt').read_text()"),
}


@pytest.mark.parametrize("way", CODE)
def test_code_is_known_with_all_that_it_imports(identity, tmp_path, way):
    name, imported = CODE[way]
    (tmp_path / "work" / "here.jsonl").write_text(jsonl("one"))
    (tmp_path / "own" / "utils.py").write_text(
        f"import sys\nfrom pathlib import Path\nsys.path.insert(0, str(Path(__file__).parent))\n{imported}\n"
        "def process_docs(docs): return docs.map(lambda doc: {**doc, 'text': word() + doc['text']})\n"
    )
    yaml = "dataset_path: json\ndataset_kwargs: {data_files: {test: here.jsonl}}\n"
    yaml += "process_docs: !function utils.process_docs\n" + PLAIN
    file = tmp_path / "own" / name
    file.parent.mkdir(parents=True, exist_ok=True)
    text = "{}" if name.endswith(".txt") else "def word(): return '{}'\n"
    file.write_text(text.format("Read this. "))
    first = identity(yaml)
    assert identity(yaml) == first
    file.write_text(text.format("Read that. "))
    second = identity(yaml)
    assert second != first
    assert second["documents"] != first["documents"], "documents were taken from an earlier state of the code"


def test_examples_and_made_documents_count_too(identity, tmp_path):
    for name in ("here.jsonl", "shown.jsonl"):
        (tmp_path / "work" / name).write_text(jsonl("one"))
    shots = "dataset_path: json\ndataset_kwargs: {data_files: {train: shown.jsonl, test: here.jsonl}}\n"
    shots += "fewshot_split: train\nnum_fewshot: 1\n" + PLAIN
    (tmp_path / "own" / "utils.py").write_text(
        "import json, datasets\n"
        "def made(**_): return {'test': datasets.Dataset.from_list([json.loads(s) for s in open('shown.jsonl')])}\n"
    )
    made = "custom_dataset: !function utils.made\n" + PLAIN
    first = identity(shots), identity(made)
    (tmp_path / "work" / "shown.jsonl").write_text(jsonl("two"))
    second = identity(shots), identity(made)
    assert all(
        a["definition"] == b["definition"] and a["documents"] != b["documents"]
        for a, b in zip(first, second, strict=True)
    )


def test_data_that_is_not_there_is_named(identity):
    from harness.common.errors import UserError

    with pytest.raises(UserError, match="task=edited cannot be read .*absent.jsonl.*where the run is started"):
        identity("dataset_path: json\ndataset_kwargs: {data_files: {test: absent.jsonl}}\n" + PLAIN)


def test_lm_evals_own_tasks_are_known_by_its_version(identity):
    model = resolve_model(ModelConfig(name="tiny", path=str(EMBEDDED / "tiny")), None)
    (planned,) = LM_EVAL.tasks(LmEvalOptions(names=["niah_single_1"]))
    found = planned.identity(SimpleNamespace(model=model, context=256, data_seed=0))
    assert set(found) == {"name", "lm_eval", "definition", "max_gen_toks", "num_fewshot", "metadata"}


def test_an_edited_helper_and_edited_data_are_run(cell, language, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    own = tmp_path / "own"
    own.mkdir()
    (own / "edited.yaml").write_text(
        f"task: edited\n{COMMON}dataset_path: json\ndataset_kwargs: {{data_files: {{test: here.jsonl}}}}\n"
        "doc_to_text: !function utils.prompt\nprocess_results: !function utils.score\n"
    )
    (own / "utils.py").write_text(
        "import sys\nfrom pathlib import Path\nsys.path.insert(0, str(Path(__file__).parent))\n"
        "from helper import word\n"
        "def prompt(doc): return word() + doc['text']\n"
        "def score(doc, results): return {'exact_match': float(doc['answer'] == word())}\n"
    )
    options = ("model=local", language, "task=lm_eval", "task.lm_eval.names=[edited]", "context=64", "attn=alibi")
    scores = []
    for helper, answer in (("a", "a"), ("b", "a"), ("b", "b"), ("a", "b")):
        (own / "helper.py").write_text(f"def word(): return '{helper}'\n")
        (tmp_path / "here.jsonl").write_text(jsonl(answer))
        code, document, _, _ = cell(*options, f"task.lm_eval.include_path={own}", "samples=3")
        assert code == 0 and document["rows_written"] == 3
        scores.append(document["metrics"]["edited/exact_match"]["value"])
    assert scores == [1, 0, 1, 0]
