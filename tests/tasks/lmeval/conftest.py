"""lm-eval's tasks on small models: its own RULER, and definitions written to a temporary folder."""

import functools
import json
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

PASSAGES = [
    "The road was long and the carts were slow, and nobody who walked beside them had slept since the bridge.",
    "When rain came at last it fell on the empty wells, on roofs of tin, and on the dry bed of the river.",
    "He counted the lamps twice. There were nine of them, and the tenth, which had always burned, was dark.",
    "In the morning the market filled with voices; by noon there was nothing left to buy but salt and rope.",
    "She wrote the letter, read it, and put it into the fire, because the answer had come while she wrote.",
    "A ship that leaves before the wind is up must wait outside the harbour with the fishing boats.",
]


PYTHON_TASK = """
from lm_eval.api.instance import Instance
from lm_eval.api.task import ConfigurableTask


class Endings(ConfigurableTask):
    VERSION = 0
    DATASET_PATH = "json"

    def __init__(self, config=None):
        super().__init__(config={"metadata": {"version": 0}, "dataset_kwargs": {"data_files": {"validation": "TEXTS"}}})

    def has_training_docs(self):
        return False

    def has_validation_docs(self):
        return True

    def has_test_docs(self):
        return False

    def validation_docs(self):
        return self.dataset["validation"]

    def doc_to_text(self, doc):
        return doc["text"]

    def doc_to_target(self, doc):
        return doc["choices"][0]

    def construct_requests(self, doc, ctx, **kwargs):
        kwargs.pop("apply_chat_template", False)
        kwargs.pop("chat_template", False)
        until = {"until": [], "max_gen_toks": 3}
        return [
            Instance(request_type="generate_until", doc=doc, arguments=(ctx, until), idx=0, **kwargs),
            Instance(request_type="loglikelihood", doc=doc, arguments=(ctx, doc["choices"][0]), idx=1, **kwargs),
        ]

    def process_results(self, doc, results):
        return {"likelihood": results[1][0], "length": float(len(results[0]))}

    def aggregation(self):
        return {"likelihood": max, "length": lambda values: sum(values) / len(values)}

    def higher_is_better(self):
        return {"likelihood": True, "length": True}
"""


@pytest.fixture(scope="session")
def definitions(tmp_path_factory) -> Path:
    """A folder of lm-eval definitions over local files: rolling likelihood, choice, and
    generation."""
    folder = tmp_path_factory.mktemp("definitions")
    texts = folder / "texts.jsonl"
    texts.write_text("".join(json.dumps({"text": p, "choices": [" salt", " rope", " rain"]}) + "\n" for p in PASSAGES))
    common = (
        f"dataset_path: json\ndataset_kwargs: {{data_files: {{test: {texts}}}}}\ntest_split: test\n"
        "metadata: {version: 1.0}\n"
    )
    (folder / "passages.yaml").write_text(
        "task: passages\noutput_type: loglikelihood_rolling\ndoc_to_text: ''\ndoc_to_target: '{{text}}'\n"
        "metric_list: [{metric: word_perplexity}, {metric: byte_perplexity}, {metric: bits_per_byte}]\n" + common
    )
    (folder / "endings.yaml").write_text(
        "task: endings\noutput_type: multiple_choice\ndoc_to_text: '{{text}}'\ndoc_to_target: 0\n"
        "doc_to_choice: '{{choices}}'\ntarget_delimiter: ''\nmetric_list: [{metric: acc}, {metric: acc_norm}]\n"
        + common
    )
    (folder / "repeats.yaml").write_text(
        "task: repeats\noutput_type: generate_until\ndoc_to_text: '{{text}}'\ndoc_to_target: '{{text}}'\n"
        "generation_kwargs: {do_sample: false, max_gen_toks: 5, until: []}\n"
        "metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]\n" + common
    )
    for name in ("shown", "asked"):
        lines = [json.dumps({"text": f"{name} {i}", "answer": str(i)}) + "\n" for i in range(4)]
        (folder / f"{name}.jsonl").write_text("".join(lines))
    (folder / "shots.yaml").write_text(
        "task: shots\noutput_type: generate_until\ndoc_to_text: '{{text}}:'\ndoc_to_target: '{{answer}}'\n"
        "dataset_path: json\ntest_split: test\nfewshot_split: train\nnum_fewshot: 2\nmetadata: {version: 1.0}\n"
        f"dataset_kwargs: {{data_files: {{train: {folder}/shown.jsonl, test: {folder}/asked.jsonl}}}}\n"
        "generation_kwargs: {do_sample: false, max_gen_toks: 2, until: []}\n"
        "metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]\n"
    )
    (folder / "python.yaml").write_text("task: python\nclass: !function python_task.Endings\n")
    (folder / "python_task.py").write_text(PYTHON_TASK.replace("TEXTS", str(texts)))
    (folder / "both.yaml").write_text("group: both\ntask: [passages, endings]\n")
    return folder


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    """One folder of prepared documents for all tests: they are made once."""
    return tmp_path_factory.mktemp("data")


@pytest.fixture
def cell(tmp_path, data, run):
    """Run options into a fresh store that has the shared documents: cell("task=ruler", ...) ->
    (code, document, rows, stderr), rows by task name."""
    store = tmp_path / "results"
    store.mkdir()
    (store / "data").symlink_to(data)

    def call(*options: str):
        code, document, _, err = run(*options, f"results={store}", "device=cpu")
        rows = {}
        for part in sorted((store / str(document.get("cell_id"))).glob("*/parts/*.jsonl")):
            task = part.parts[-3].rsplit("-", 1)[0]
            rows.setdefault(task, []).extend(json.loads(line) for line in part.read_text().splitlines())
        return code, document, rows, err

    return call


@pytest.fixture
def language(checkpoint) -> str:
    """A model that may read natural text: random weights in a folder."""
    return f"model.path={checkpoint}"


def embedded(name: str) -> Path:
    return ROOT / "harness" / "embedded" / name


def ruler(name: str) -> str:
    import lm_eval

    return str(Path(lm_eval.__file__).parent / "tasks" / "ruler" / f"{name}.yaml")


@pytest.fixture
def lm_eval(monkeypatch, capsys):
    """Call lm-eval's command through ours: lm_eval("--tasks", ...) -> (exit code, last line of
    stdout, stderr)."""
    import lm_eval.tasks

    from harness.lm_eval import main

    monkeypatch.setattr("lm_eval.__main__.setup_logging", lambda *_: None)
    few = functools.partial(lm_eval.tasks.TaskManager, include_defaults=False)  # it reads 13,000 files else
    monkeypatch.setattr(lm_eval.tasks, "TaskManager", few)

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["harness.lm_eval", *arguments, "--device", "cpu", "--batch_size", "4"])
        code = main()
        out, err = capsys.readouterr()
        return code, out.strip().splitlines()[-1], err

    return call
