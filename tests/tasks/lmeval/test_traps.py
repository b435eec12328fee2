"""What goes wrong when lm-eval is called as its documentation says, each trap with a test that it
is not ours."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from harness.models.load import load_model
from harness.models.options import ModelConfig
from harness.models.spec import resolve_model
from kernels import PositionalLSH, Window, alibi_slopes
from tests.conftest import ROOT
from tests.models.random_models import save

RULER = ("model=tiny", "task=ruler", "task.ruler.names=[niah_single_1]", "context=512")


def test_lm_eval_is_imported_only_when_asked_for(tmp_path):
    code = (
        "import sys\n"
        "sys.argv = ['x', 'samples=2', 'draws=2', 'references=none', 'results=' + sys.argv[1]]\n"
        "from harness.run import main\n"
        "assert main() == 0\n"
        "print([m for m in sys.modules if m.split('.')[0] in ('lm_eval', 'nltk')])\n"
    )

    command = [sys.executable, "-c", code, str(tmp_path)]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert found.stdout.splitlines()[-1] == "[]"


def test_a_prompt_that_would_be_cut_is_an_error_before_anything_runs(cell, definitions, language, monkeypatch):
    called = []
    monkeypatch.setattr("harness.tasks.lmeval.scoring.score_documents", lambda *_: called.append(1))
    names = ("task=lm_eval", "task.lm_eval.names=[repeats]", f"task.lm_eval.include_path={definitions}")
    code, document, rows, err = cell("model=local", language, *names, "context=16", "attn=alibi", "samples=4")
    assert code == 2
    assert document["status"] == "invalid"
    assert err.count("Traceback") == 0
    assert "4 of 4 prompts of task=repeats are longer than context=16" in document["message"]
    assert "choose context=" in document["message"]
    assert not called
    assert not rows


def test_generated_tokens_come_on_top_of_the_context(cell, definitions, language, checkpoint):
    from transformers import AutoTokenizer

    from tests.tasks.lmeval.conftest import PASSAGES

    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    longest = max(len(tokenizer(p)["input_ids"]) for p in PASSAGES[:2])
    names = ("task=lm_eval", "task.lm_eval.names=[repeats]", f"task.lm_eval.include_path={definitions}")
    code, _, rows, _ = cell("model=local", language, *names, f"context={longest}", "attn=alibi", "samples=2")
    assert code == 0
    assert max(row["tokens_seen"] for row in rows["repeats"]) == longest
    assert all(row["tokens_seen"] == row["tokens_wanted"] for row in rows["repeats"])


def test_every_length_gets_its_samples_and_no_placeholder_is_reported(cell):
    """In one call of lm-eval `limit` evaluates the first length only, and 4096 is reported as
    -1."""
    for context in ("512", "640"):
        code, document, rows, _ = cell(*RULER[:3], f"context={context}", "attn=alibi", "samples=6")
        assert code == 0
        assert list(document["metrics"]) == ["niah_single_1/accuracy"]
        assert document["metrics"]["niah_single_1/accuracy"]["n"] == 6
        assert sorted(row["key"] for row in rows["niah_single_1"]) == list(range(6))
        assert all(256 < row["tokens_seen"] <= int(context) - 128 + 32 for row in rows["niah_single_1"])


def test_attentions_see_identical_documents_and_draws_partition_them(cell):
    seen = {}
    for attn in (("attn=alibi",), ("attn=plsh", "draws=3")):
        code, _, rows, _ = cell(*RULER, *attn, "samples=7", "batch=2", "references=none")
        assert code == 0
        seen[attn] = {row["key"]: row for row in rows["niah_single_1"]}
    exact, plsh = seen.values()
    assert {k: r["doc_hash"] for k, r in exact.items()} == {k: r["doc_hash"] for k, r in plsh.items()}
    assert {k: r["draw"] for k, r in plsh.items()} == {k: k % 3 for k in range(7)}
    other_seed = cell(*RULER, "attn=alibi", "samples=7", "data_seed=1")[2]["niah_single_1"]
    assert {r["doc_hash"] for r in other_seed}.isdisjoint(r["doc_hash"] for r in exact.values())


def test_a_stopped_task_goes_on_where_it_was(cell):
    """More samples extend a task: the first rows stay, and all are those of an undisturbed run."""
    options = (*RULER, "attn=plsh", "draws=2", "references=none", "batch=2")
    assert cell(*options, "samples=4")[0] == 0
    code, document, extended, _ = cell(*options, "samples=9")
    assert code == 0
    assert document["metrics"]["niah_single_1/accuracy"]["n"] == 9
    rows = extended["niah_single_1"]
    assert len(rows) == 9, "a sample was computed twice"
    fresh = {r["key"]: r for r in cell(*options, "samples=9", "kernel=sdpa")[2]["niah_single_1"]}  # another cell
    for row in rows:
        same = ("draw", "doc_hash", "prediction", "score", "target")
        assert [row[f] for f in same] == [fresh[row["key"]][f] for f in same]


def test_two_models_in_one_process_get_their_own_numbers(cell, definitions, tmp_path, checkpoint):
    """lm-eval's request cache is keyed by the request alone: a second model would get the first
    one's answers."""
    from transformers import AutoTokenizer

    other = tmp_path / "other"
    AutoTokenizer.from_pretrained(checkpoint).save_pretrained(other)
    save(other, vocab_size=len(AutoTokenizer.from_pretrained(other)), heads=4)
    names = ("task=lm_eval", "task.lm_eval.names=[passages]", f"task.lm_eval.include_path={definitions}")
    options = ("model=local", *names, "context=64", "attn=alibi", "samples=6")
    values = []
    for folder in (checkpoint, other, checkpoint):
        code, document, _, _ = cell(f"model.path={folder}", *options)
        assert code == 0
        values.append(document["metrics"]["passages/bits_per_byte"]["value"])
    assert values[0] == values[2]
    assert abs(values[0] - values[1]) > 1e-3


@pytest.fixture
def half(checkpoint):
    """The random model in bfloat16, where a log-softmax in the model's own type would be rough."""
    spec = resolve_model(ModelConfig(name="local", path=str(checkpoint)), "bfloat16")
    return load_model(spec, device=torch.device("cpu"), kernel="sdpa")


def test_likelihoods_are_of_float32_and_logits_exist_for_few_positions(half, monkeypatch):
    from harness.tasks.lmeval import model

    monkeypatch.setattr(model, "MAX_LOGIT_ROWS", 16)
    lm = model.RunnerLM(half, context=512, generates=4, batch=2)
    head = half.model.get_output_embeddings()
    seen = []
    head.register_forward_hook(lambda module, given, out: seen.append(out.shape[:-1].numel()))
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 200, (90,), generator=generator).tolist()
    (found,) = lm._loglikelihood_tokens([(None, ids[:30], ids[30:])])
    assert max(seen) == 16
    with torch.inference_mode():
        logits = half.model(torch.tensor([ids[:-1]])).logits[0, 29:]
    exact = torch.log_softmax(logits.double(), -1).gather(1, torch.tensor(ids[30:])[:, None]).sum()
    rough = torch.log_softmax(logits, -1).gather(1, torch.tensor(ids[30:])[:, None]).sum()
    assert abs(found[0] - exact) < 1e-3 < abs(float(rough) - exact)


def test_a_long_prompt_is_generated_from_without_its_logits(half):
    from harness.tasks.lmeval.model import RunnerLM

    lm = RunnerLM(half, context=512, generates=4, batch=2)
    seen = []
    head = half.model.get_output_embeddings()
    head.register_forward_hook(lambda module, given, out: seen.append(out.shape[:-1].numel()))
    context = torch.randint(5, 200, (2, 300), generator=torch.Generator().manual_seed(0))
    lm._model_generate(context, 304, ["\n"], attention_mask=torch.ones_like(context))
    assert seen
    # one position for each of two prompts
    assert max(seen) == 2


def test_generation_evicts_where_the_cell_says_so(half, monkeypatch):
    from harness.tasks.lmeval import model

    made, new_cache = [], model.new_cache
    monkeypatch.setattr(model, "new_cache", lambda *given, **named: made.append(new_cache(*given, **named)) or made[-1])
    context = torch.randint(5, 200, (2, 1200), generator=torch.Generator().manual_seed(0))
    mask = (torch.arange(1200) >= torch.tensor([[0], [700]])).long()
    with half.attention.use([Window(half.attention.slopes, 0.2, 2)] * 2):
        found = [
            model.RunnerLM(half, context=1200, generates=8, batch=2, evict=evict)._model_generate(
                context, 1208, ["\n"], attention_mask=mask
            )
            for evict in (False, True)
        ]
    assert torch.equal(*found)
    assert made[1].allocated_bytes < 0.5 * made[0].allocated_bytes


def test_lm_evals_seeds_do_not_touch_mask_draws():
    def masks():
        drawn = PositionalLSH.draw(alibi_slopes(4), 8, seed=3, draw=1, layer=0)
        return drawn.masks.width, drawn.masks.shift

    before = masks()
    random.seed(0), np.random.seed(1234), torch.manual_seed(1234)  # what simple_evaluate does
    assert all(torch.equal(a, b) for a, b in zip(before, masks(), strict=True))


@pytest.mark.parametrize("name", ["ruler_vt", "ruler_cwe", "ruler_fwe"])
def test_the_first_documents_do_not_depend_on_how_many_follow(name, data):
    """So that more samples extend a run: lm-eval itself always makes 500."""
    import datasets
    from transformers import AutoTokenizer

    from harness.tasks.lmeval.catalogue import ruler_leaves
    from harness.tasks.lmeval.documents import Request, prepare_documents
    from tests.tasks.lmeval.conftest import embedded

    (leaf,) = ruler_leaves([name])
    tokenizer = AutoTokenizer.from_pretrained(embedded("tiny"))

    def made(samples: int) -> list:
        request = Request(leaf, 1536, 0, "tiny", samples, {}, None)
        return list(datasets.load_from_disk(str(prepare_documents(request, data, tokenizer).place / "test")))

    few, more = made(2), made(5)
    assert len(more) == 5
    assert more[:2] == few
    assert len({document["input"] for document in more}) == 5


def test_examples_come_from_the_split_that_the_definition_names(definitions, data, checkpoint):
    from transformers import AutoTokenizer

    from harness.tasks.lmeval import catalogue, scoring
    from harness.tasks.lmeval.documents import Request, prepare_documents

    (leaf,) = catalogue.leaves(["shots"], str(definitions))
    request = Request(leaf, 64, 0, "t", 4, {}, None)
    place = prepare_documents(request, data, AutoTokenizer.from_pretrained(checkpoint)).place
    task = scoring.load_task(request, place, None)
    for number in range(3):
        (made,) = scoring._requests(task, number, task.eval_docs[number])
        *shots, question = made.args[0].split("\n\n")
        assert question == f"asked {number}:"
        assert len(shots) == 2
        assert all(shot.startswith("shown ") for shot in shots), "a test document was shown as an example"


def test_what_a_definition_includes_and_calls_is_part_of_its_identity(tmp_path):
    from harness.tasks.lmeval.catalogue import Leaf

    (tmp_path / "u.py").write_text("def score(doc, results):\n    return {'acc': 1}\n")
    (tmp_path / "_base").write_text("doc_to_text: '{{text}}'\n")
    (tmp_path / "texts.jsonl").write_text("{}\n")
    leaf = tmp_path / "leaf.yaml"
    files = f"dataset_kwargs: {{data_files: {{test: {tmp_path}/texts.jsonl}}}}\n"
    leaf.write_text("include: _base\ntask: leaf\nprocess_results: !function u.score\n" + files)
    seen = {Leaf("leaf", leaf).identity["definition"]}
    for name in ("u.py", "_base", "texts.jsonl"):
        (tmp_path / name).write_text((tmp_path / name).read_text() + "# changed\n")
        seen.add(Leaf("leaf", leaf).identity["definition"])
    assert len(seen) == 3, "a change of the included file, the code or the data went unseen"


def test_documents_that_are_not_what_was_made_are_made_again(definitions, tmp_path, checkpoint):
    from transformers import AutoTokenizer

    from harness.tasks.lmeval import catalogue
    from harness.tasks.lmeval.documents import Request, prepare_documents

    (leaf,) = catalogue.leaves(["passages"], str(definitions))
    request = Request(leaf, 64, 0, "t", 3, {}, None)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    first = prepare_documents(request, tmp_path, tokenizer)
    assert first.count == 6
    assert [p.name for p in tmp_path.iterdir()] == [first.place.name]
    (data,) = first.place.glob("test/*.arrow")
    (first.place / "manifest.json").unlink()  # a copy that was cut off
    assert prepare_documents(request, tmp_path, tokenizer) == first
    content = data.read_bytes()
    data.write_bytes(content.replace(b"the tenth", b"the ninth"))
    assert prepare_documents(request, tmp_path, tokenizer) == first
    assert data.read_bytes() == content
    assert [p.name for p in tmp_path.iterdir()] == [first.place.name]


def test_a_signal_to_all_processes_of_a_job_ends_the_preparation_at_once(tmp_path):
    """The documents are made again by the same command; nothing half made is left."""
    options = ["model=tiny", "attn=alibi", "references=none", "samples=4", "context=512", "task=ruler"]
    options += ["task.ruler.names=[niah_single_1]", f"results={tmp_path}", "tracking=disabled"]
    command = [sys.executable, "-m", "harness.run", *options]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    for line in process.stderr:
        if line.startswith("Preparing"):
            break
    time.sleep(1)
    os.killpg(process.pid, signal.SIGTERM)
    out, err = process.communicate(timeout=200)
    assert process.returncode == 75, err
    assert json.loads(out.splitlines()[-1])["tasks"] == {"niah_single_1": "stopped"}
    assert list((tmp_path / "data").glob("*")) == []


class TestRefused:
    def test_natural_text_on_a_model_of_prompts(self, cell):
        code, document, _, _ = cell("model=tiny", "task=ruler", "task.ruler.names=[niah_single_2]")
        assert code == 2
        assert "reads natural text" in document["message"]
        assert "tiny-books" in document["message"]

    def test_unknown_names(self, cell):
        code, document, _, _ = cell("task=ruler", "task.ruler.names=[niah_singel_1]")
        assert code == 2
        assert "Did you mean niah_single_1?" in document["message"]
        code, document, _, _ = cell("task=lm_eval", "task.lm_eval.names=[longbench_narativeqa]")
        assert code == 2
        assert "Did you mean longbench_narrativeqa?" in document["message"]
        code, document, _, _ = cell("task=lm_eval")
        assert code == 2
        assert "task.lm_eval.names=[" in document["message"]
        code, document, _, _ = cell("task=ruler", "task.ruler.names=niah_single_1")
        assert code == 2
        assert document["message"] == "task.ruler.names is a list: write task.ruler.names=[...]."

    def test_a_length_beside_the_context(self, cell):
        length = "+task.lm_eval.metadata.max_seq_lengths=[512]"
        code, document, _, _ = cell("task=lm_eval", "task.lm_eval.names=[niah_single_1]", length, "samples=8")
        assert code == 2
        assert "the length that context says" in document["message"]

    def test_a_definition_that_cannot_be_read(self, cell, tmp_path):
        (tmp_path / "wrong.yaml").write_text("task: wrong\n  output_type: [")
        code, document, _, _ = cell(
            "task=lm_eval", "task.lm_eval.names=[wrong]", f"task.lm_eval.include_path={tmp_path}"
        )
        assert code == 2
        assert "wrong.yaml cannot be read" in document["message"]

    def test_random_weights(self, cell):
        code, document, _, _ = cell(*RULER, "model=bloom-560m", "model.weights=random", "model.layers=2")
        assert code == 2
        assert "random weights" in document["message"]

    def test_missing_data_names_what_would_bring_it(self, cell, language):
        code, document, _, _ = cell("model=local", language, *RULER[1:2], "task.ruler.names=[niah_single_2]")
        assert code == 2
        assert "paul_graham_essays" in document["message"]
        assert "python -m harness.data" in document["message"]

    def test_a_length_that_nothing_fits_is_recorded_and_ends(self, cell):
        names = "task.ruler.names=[ruler_vt,ruler_cwe,niah_single_1]"
        code, document, _, err = cell(*RULER[:2], names, "context=200", "attn=alibi", "samples=3")
        assert code == 0
        assert set(document["tasks"].values()) == {"unsupported"}
        assert err.count("choose a larger context") == 3


def test_data_is_prepared_once_and_hashed(tmp_path, capsys, monkeypatch):
    from harness import data
    from harness.tasks.lmeval import documents

    options = ["task=[retrieval,ruler]", "task.ruler.names=[niah_multikey_2]", "samples=8", "context=512"]
    options += ["model=tiny", f"results={tmp_path}"]
    assert data.main(options) == 0
    first = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [row["samples"] for row in first["data"]] == [8, 8]
    monkeypatch.setattr(documents, "_build_in_child", None)  # nothing is built again
    assert data.main(options) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == first
    assert data.main([*options, "task=[retreival]"]) == 2
    assert "Did you mean" in json.loads(capsys.readouterr().out.splitlines()[-1])["message"]


def test_a_task_with_fewer_documents_than_samples_is_finished(cell, definitions, language):
    names = ("task=lm_eval", "task.lm_eval.names=[passages]", f"task.lm_eval.include_path={definitions}")
    options = ("model=local", language, *names, "context=64", "attn=alibi", "samples=50")
    code, document, rows, _ = cell(*options)
    assert code == 0
    assert document["metrics"]["passages/bits_per_byte"]["n"] == 6
    assert cell(*options)[2] == rows, "finished, and yet computed again"


class TestTooLong:
    @pytest.fixture
    def options(self, definitions, language, checkpoint):
        """Of six passages, those that have the most tokens do not fit."""
        from transformers import AutoTokenizer

        from tests.tasks.lmeval.conftest import PASSAGES

        tokenizer = AutoTokenizer.from_pretrained(checkpoint)
        lengths = [len(tokenizer(p)["input_ids"]) for p in PASSAGES]
        context = sorted(lengths)[3]
        self.over = {n for n, length in enumerate(lengths) if length > context}
        assert 0 < len(self.over) < 6
        names = ("task=lm_eval", "task.lm_eval.names=[repeats]", f"task.lm_eval.include_path={definitions}")
        return ("model=local", language, *names, f"context={context}", "samples=6", "batch=2", "references=none")

    def test_refused_and_told_of_the_other_way(self, cell, options):
        code, document, rows, _ = cell(*options, "attn=alibi")
        assert code == 2
        assert not rows
        assert f"{len(self.over)} of 6 prompts" in document["message"]
        assert "too_long=skip" in document["message"]
        assert "No prompt is ever cut" in document["message"]
        code, document, _, _ = cell(*options, "attn=alibi", "task.lm_eval.too_long=cut")
        assert code == 2
        assert "task.lm_eval.too_long" in document["message"]

    def test_skipped_and_counted(self, cell, options, run, capsys):
        found = {}
        for attn in (("attn=alibi",), ("attn=plsh", "draws=2", "masks=4")):
            code, document, rows, _ = cell(*options, *attn, "task.lm_eval.too_long=skip")
            assert code == 0
            found[attn] = {row["key"]: row for row in rows["repeats"]}
            assert {k for k, row in found[attn].items() if row.get("too_long")} == self.over
            metric = document["metrics"]["repeats/exact_match"]
            assert metric["n"] == 6 - len(self.over)
            counted = document["metrics"]["repeats/too_long"]
            assert (counted["value"], counted["n"], counted["unit"]) == (len(self.over), 6, "documents")
        exact, plsh = found.values()
        assert all(exact[k]["doc_hash"] == plsh[k]["doc_hash"] and plsh[k]["draw"] == k % 2 for k in range(6))
        # those that fit are answered as if they had been asked for alone
        assert all(row["tokens_seen"] == row["tokens_wanted"] for k, row in exact.items() if k not in self.over)

    def test_the_table_says_so(self, run, options, tmp_path):
        more = (f"results={tmp_path}", "device=cpu", "attn=alibi", "task.lm_eval.too_long=skip")
        code, _, out, _ = run(*options, *more)
        assert code == 0
        assert f"{6 - len(self.over)} ({len(self.over)} too long)" in out
        assert run(*options, *more)[1]["rows_written"] == 0

    def test_nothing_fits(self, cell, options):
        code, document, _, _ = cell(*options, "attn=alibi", "task.lm_eval.too_long=skip", "context=8")
        assert code == 2
        assert "6 of 6 prompts" in document["message"]
        assert "skip" not in document["message"]
