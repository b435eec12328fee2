"""Retrieval prompts: exact in tokens, needles where they should be, a pure function of the seed."""

import re

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from harness.errors import UserError
from harness.tasks import needles, prompts
from tests.conftest import EMBEDDED

DEPTHS = [0.0, 0.25, 0.5, 0.75, 1.0]
NOVEL = "It was late. The lamp burned low; nobody spoke! Why had she come back? Outside, rain fell on the slates. " * 40


def bpe() -> PreTrainedTokenizerFast:
    """A byte-level BPE like those of MPT and BLOOM, trained here on a few sentences: words of several tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator([NOVEL, needles.HEADER, " ".join(needles.NOISE)], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


@pytest.fixture(scope="module", params=["tiny", "bpe"])
def encode(request):
    return prompts.encoder(AutoTokenizer.from_pretrained(EMBEDDED / "tiny") if request.param == "tiny" else bpe())


@pytest.fixture(scope="module")
def novel(tmp_path_factory):
    file = tmp_path_factory.mktemp("text") / "novel.txt"
    file.write_text(NOVEL)
    return str(file)


def make(encode, **change):
    arguments = {"samples": 10, "context": 512, "data_seed": 0, "haystack": "noise", "text": None, "depths": DEPTHS}
    return list(prompts.build(encode, **{**arguments, **change}))


@pytest.mark.parametrize("context", [160, 511, 512, 513, 514, 515, 1024, 2048])
def test_every_prompt_has_exactly_the_context(encode, context):
    assert {len(encode(s["prompt"])) for s in make(encode, context=context)} == {context}


@pytest.mark.parametrize("haystack", ["distractors", "text"])
def test_other_haystacks_are_exact_too(encode, novel, haystack):
    samples = make(encode, haystack=haystack, text=novel if haystack == "text" else None)
    assert {len(encode(s["prompt"])) for s in samples} == {512}


def test_needle_question_and_answer_belong_together(encode):
    for sample in make(encode):
        found = re.findall(r"The code number of (\S+) is (\d+)\.", sample["prompt"])
        assert len(found) == 1
        key, value = found[0]
        assert value == sample["value"] and len(value) == needles.DIGITS
        assert sample["prompt"].endswith(f"\nWhat is the code number of {key}? The code number of {key} is")
        assert sample["answer"] == f" {value}."


def test_depth_is_the_needles_place(encode):
    for sample in make(encode, context=1024, samples=20):
        start, end = len(needles.HEADER), sample["prompt"].rindex("\nWhat is")
        place = (sample["prompt"].index("The code number") - start) / (end - start)
        assert abs(place - sample["depth"]) < 0.06
        after = sample["prompt"].split(f"{sample['value']}.", 1)[1]
        assert abs(sample["distance"] - len(encode(after))) <= 1  # the cut may join characters differently


def test_each_round_has_every_depth_once_and_rounds_differ(encode):
    depths = [s["depth"] for s in make(encode, samples=40, context=160)]
    rounds = [tuple(depths[i : i + 5]) for i in range(0, 40, 5)]
    assert all(sorted(r) == DEPTHS for r in rounds) and len(set(rounds)) > 4


def test_sample_does_not_depend_on_how_many_are_made(encode):
    assert make(encode, samples=12)[:5] == make(encode, samples=5)
    assert make(encode, samples=5)[3]["doc_hash"] != make(encode, samples=5, data_seed=1)[3]["doc_hash"]


def test_distractors_have_other_names(encode):
    for sample in make(encode, haystack="distractors", samples=4):
        names = re.findall(r"The code number of (\S+) is \d", sample["prompt"])
        assert len(names) > 10 and len(names) == len(set(names))


def test_text_haystack_is_the_users_text(encode, novel):
    text = make(encode, haystack="text", text=novel)[0]["prompt"]
    assert "Outside, rain fell on the slates." in text and text.count("The river is wide.") <= 2


def test_missing_or_empty_text_is_a_users_mistake(encode, tmp_path):
    (tmp_path / "empty").write_text(" \n")
    for text, word in (
        (None, "task.retrieval.text=FILE"),
        ("absent.txt", "cannot be read"),
        (str(tmp_path / "empty"), "no text"),
    ):
        with pytest.raises(UserError, match=word):
            make(encode, haystack="text", text=text)


def test_cached_data_is_built_once_and_keyed_by_all_it_depends_on(encode, tmp_path, novel):
    arguments = {"samples": 4, "context": 256, "data_seed": 0, "haystack": "noise", "text": None, "depths": DEPTHS}
    first = prompts.read(prompts.kept(tmp_path, encode, "t", **arguments))
    assert list(first) == make(encode, samples=4, context=256)

    def never(text):
        raise AssertionError("built again")

    assert list(prompts.read(prompts.kept(tmp_path, never, "t", **arguments))) == list(first)
    folders = {p.name for p in tmp_path.iterdir()}
    for change in (
        {"samples": 5},
        {"data_seed": 1},
        {"context": 255},
        {"haystack": "text", "text": novel},
        {"depths": [0.5]},
    ):
        prompts.kept(tmp_path, encode, "t", **{**arguments, **change})
    prompts.kept(tmp_path, encode, "another tokenizer", **arguments)
    assert len({p.name for p in tmp_path.iterdir()} - folders) == 6
