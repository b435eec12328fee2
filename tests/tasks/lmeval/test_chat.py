"""Chat templates and system instructions: the requests are those of lm-eval's own
simple_evaluate."""

import hashlib
import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoTokenizer

from harness.models.load import load_model
from harness.models.options import ModelConfig
from harness.models.spec import resolve_model

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}</{{ m['role'] }}>\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + TEMPLATE
GENERATE = (
    "output_type: generate_until\ndoc_to_target: '{{answer}}'\n"
    "generation_kwargs: {do_sample: false, max_gen_toks: 2, until: []}\n"
    "metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]\n"
)
TASKS = {
    "said": GENERATE + "doc_to_text: '{{text}}'\ndescription: 'Answer.'\n",
    "begun": GENERATE + "doc_to_text: '{{text}}'\ngen_prefix: 'It is'\n",
    "chosen": "output_type: multiple_choice\ndoc_to_text: '{{text}}'\ndoc_to_target: 0\ndoc_to_choice: [one, two]\n"
    "metric_list: [{metric: acc}]\n",
    "shown": GENERATE + "doc_to_text: '{{text}}'\nnum_fewshot: 2\nfewshot_split: train\n"
    "fewshot_config: {sampler: first_n}\n",
}


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own")
    for name in ("train", "test"):
        lines = [json.dumps({"text": f"{name} {i}?", "answer": "one"}) + "\n" for i in range(4)]
        (folder / f"{name}.jsonl").write_text("".join(lines))
    files = f"{{train: {folder}/train.jsonl, test: {folder}/test.jsonl}}"
    common = (
        f"dataset_path: json\ndataset_kwargs: {{data_files: {files}}}\ntest_split: test\nmetadata: {{version: 1.0}}\n"
    )
    for name, text in TASKS.items():
        (folder / f"{name}.yaml").write_text(f"task: {name}\n{common}{text}")
    return folder


@pytest.fixture(scope="module")
def talker(checkpoint, tmp_path_factory):
    """talker(template) -> the folder of a random model whose tokenizer has it, and a bos_token."""

    def made(template: str | None) -> str:
        folder = tmp_path_factory.mktemp("talker")
        shutil.copytree(checkpoint, folder, dirs_exist_ok=True)
        tokenizer = AutoTokenizer.from_pretrained(checkpoint)
        tokenizer.chat_template, tokenizer.bos_token = template, tokenizer.eos_token
        tokenizer.save_pretrained(folder)
        return str(folder)

    return made


FRAMES = [
    {"chat_template": True},
    {"chat_template": True, "system_instruction": "Be brief.", "fewshot_as_multiturn": False},
    {"system_instruction": "Be brief."},
]


@pytest.mark.parametrize("frame", FRAMES, ids=["chat", "one turn and system", "system alone"])
def test_requests_and_answers_are_those_of_lm_eval(own, talker, data, frame):
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    from harness.tasks.lmeval import catalogue, scoring
    from harness.tasks.lmeval.documents import Request, prepare_documents
    from harness.tasks.lmeval.model import RunnerLM

    spec = resolve_model(ModelConfig(name="local", path=talker(TEMPLATE)), None)
    loaded = load_model(spec, device=torch.device("cpu"), kernel="sdpa")
    theirs = lm_eval.simple_evaluate(
        model=HFLM(pretrained=loaded.model, tokenizer=loaded.tokenizer, max_length=400, batch_size=2),
        tasks=list(TASKS),
        task_manager=TaskManager(include_path=str(own), include_defaults=False),
        apply_chat_template=frame.get("chat_template", False),
        system_instruction=frame.get("system_instruction"),
        fewshot_as_multiturn=frame.get("chat_template", False) and frame.get("fewshot_as_multiturn", True),
        bootstrap_iters=0,
    )["samples"]
    lm = RunnerLM(loaded, context=398, generates=2, batch=2, **frame)
    for leaf in catalogue.leaves(list(TASKS), str(own)):
        request = Request(leaf, 398, 0, "t", None, {}, None)
        task = scoring.load_task(request, prepare_documents(request, data, loaded.tokenizer).place, None)
        rows = scoring.score_documents(task, lm, list(enumerate(task.eval_docs)))
        samples = sorted(theirs[leaf.name], key=lambda sample: sample["doc_id"])
        assert len(rows) == len(samples) == 4
        for row, sample in zip(rows, samples, strict=True):
            made = scoring._requests(task, row.key, sample["doc"], lm.framing)
            asked = [list(arguments) for arguments in sample["arguments"]]
            assert [list(request.args) for request in made] == asked
            if leaf.name != "chosen":
                assert row.prediction == sample["filtered_resps"][0]
            metric = "acc" if leaf.name == "chosen" else "exact_match"
            assert row.values[metric] == sample[metric]
            if leaf.name == "chosen":
                ours, wanted = lm.loglikelihood(made), [found for (found,) in sample["resps"]]
                assert [one for one, _ in ours] == pytest.approx([one for one, _ in wanted], abs=1e-4)


def run_it(cell, folder, own, *more, names="[said]"):
    options = ("model=local", f"model.path={folder}", "task=lm_eval", f"task.lm_eval.names={names}", "attn=alibi")
    return cell(*options, f"task.lm_eval.include_path={own}", "context=300", "samples=4", *more)


CHAT = "task.lm_eval.chat_template=true"


def test_the_frame_is_part_of_the_id(cell, talker, own, tmp_path):
    folder, known = talker(TEMPLATE), set()
    brief, long = (f"task.lm_eval.system_instruction='{word}.'" for word in ("Brief", "Long"))
    for frame in (
        (),
        (CHAT,),
        (CHAT, brief),
        (CHAT, long),
        (brief,),
        (CHAT, "task.lm_eval.fewshot_as_multiturn=false"),
    ):
        code, document, rows, err = run_it(cell, folder, own, *frame)
        assert code == 0 and document["rows_written"] == 4, err
        known |= {row["doc_hash"] for row in rows["said"]}
    assert len(known) == 4 * 5  # without examples one turn is as many turns
    assert run_it(cell, folder, own, CHAT)[1]["rows_written"] == 0
    options = [json.loads(file.read_text())["options"] for file in tmp_path.glob("results/*/said-*/task.json")]
    assert sum("chat_template" in found for found in options) == 4
    digest = f"sha256:{hashlib.sha256(TEMPLATE.encode()).hexdigest()}"
    assert {found["chat_template"] for found in options if "chat_template" in found} == {digest}


def test_frames_that_there_are_not_are_refused(cell, talker, own, definitions, checkpoint):
    brief = "task.lm_eval.system_instruction=Brief"
    for folder, more, words in (
        (str(checkpoint), (CHAT,), "has no chat template"),
        (talker("{{ strftime_now('%d') }}" + TEMPLATE), (CHAT,), "the current date"),
        (talker(NO_SYSTEM), (CHAT, brief), "does not take these messages (no system role)"),
        (talker(TEMPLATE), ("task.lm_eval.fewshot_as_multiturn=false",), "only with task.lm_eval.chat_template=true"),
    ):
        code, document, _, err = run_it(cell, folder, own, *more)
        assert code == 2
        assert words in document["message"]
        assert "Traceback" not in err
    code, document, _, _ = run_it(cell, talker(TEMPLATE), definitions, CHAT, names="[passages]")
    assert code == 2
    assert "scores whole texts" in document["message"]


def test_code_that_would_leave_the_frame_out_is_refused():
    from harness.common.errors import UserError
    from harness.tasks.lmeval import scoring

    task = SimpleNamespace(
        config=SimpleNamespace(task="old", num_fewshot=0),
        set_fewshot_seed=lambda seed: None,
        fewshot_context=lambda doc, num_fewshot, gen_prefix=None, **more: "",  # as lm-eval's base class has it
    )
    with pytest.raises(UserError, match="task=old makes its prompts by code of its own"):
        scoring._requests(task, 0, {}, {"system_instruction": "Brief."})
