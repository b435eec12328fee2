"""Retrieval prompts: exact in tokens, needles where they should be, a pure function of the seed, a
user's own text."""

import json
import re
import shutil

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from harness.common.errors import UserError
from harness.tasks.retrieval import needles, prompts
from tests.conftest import EMBEDDED, ROOT

DEPTHS = [0.0, 0.25, 0.5, 0.75, 1.0]
NOVEL = "It was late. The lamp burned low; nobody spoke! Why had she come back? Outside, rain fell on the slates. " * 40


TEXTS = {  # none has a full stop before a space
    "chinese": "海上起了大风，船长站在甲板上，望着远处的灯塔。浪打过来了！谁在那里？" * 60,
    "no stops": "海上起了大风船长站在甲板上望着远处的灯塔" * 60,
    "poem": "the ship went over the sea\nand the night came down\n\nno lamp was lit\n" * 40,
    "code": "def f(x):\n    if x:\n        return x + 1\n    return {'a': [x]}\n\n\n" * 40,
    "one line": "letter lantern river captain winter stone " * 100,
    "one word": "abcdefghij" * 400,
    "few words": "a lamp",
}


def bpe(size: int = 420) -> PreTrainedTokenizerFast:
    """A byte-level BPE like those of MPT and BLOOM, trained here on a few sentences: words of
    several tokens. 256 of them are the bytes."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
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
    return list(prompts.make_samples(encode, **{**arguments, **change}))


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
        assert value == sample["value"]
        assert len(value) == needles.DIGITS
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
    assert all(sorted(r) == DEPTHS for r in rounds)
    assert len(set(rounds)) > 4


def test_sample_does_not_depend_on_how_many_are_made(encode):
    assert make(encode, samples=12)[:5] == make(encode, samples=5)
    assert make(encode, samples=5)[3]["prompt"] != make(encode, samples=5, data_seed=1)[3]["prompt"]


def test_distractors_have_other_names(encode):
    for sample in make(encode, haystack="distractors", samples=4):
        names = re.findall(r"The code number of (\S+) is \d", sample["prompt"])
        assert len(names) > 10
        assert len(names) == len(set(names))


def test_text_haystack_is_the_users_text(encode, novel):
    text = make(encode, haystack="text", text=novel)[0]["prompt"]
    assert "Outside, rain fell on the slates." in text
    assert text.count("The river is wide.") <= 2


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("size", [256, 420])
def test_a_text_without_sentences_is_what_the_prompt_is_made_of(tmp_path, name, size):
    (tmp_path / "text").write_text(TEXTS[name], encoding="utf-8")
    encode = prompts.encoder(bpe(size))
    said = " ".join((f"{TEXTS[name]} " * (4000 // len(TEXTS[name]) + 3)).split())  # over and over
    for sample in make(encode, haystack="text", text=str(tmp_path / "text"), context=700):
        key = re.search(r"What is the code number of (\S+)\? The", sample["prompt"]).group(1)
        needle, question = needles.needle(key, sample["value"]), needles.question(key)
        before, after = sample["prompt"].removeprefix(needles.HEADER).removesuffix(question).split(needle)
        before, after = " ".join(before.split()), " ".join(after.split())
        assert before in said, "something else stands before the needle"
        own = next(n for n in range(len(after), -1, -1) if after[:n] in said)
        noise = after[own:].strip()
        assert len(noise) <= 30
        assert {w.rstrip(".") for w in noise.split()} <= set(re.split(r"\W+", " ".join(needles.NOISE)))
        assert abs(len(before) / (len(before) + own) - sample["depth"]) < 1 / 16
        without = len(encode(f"{needles.HEADER}{needle}{' ' * bool(noise)}{noise}{question}"))
        assert sample["text_share"] == pytest.approx(1 - without / sample["tokens"], abs=0.01)
        assert sample["text_share"] > 0.6


def test_a_text_has_no_part_left_out_or_added(tmp_path):
    for text in (*TEXTS.values(), NOVEL):
        for longest in (1, 7, 100):
            found = prompts.split_text(text, longest)
            assert "".join(found) == text
            assert max(map(len, found)) <= max(longest, 1 + len(text) - len(text.rstrip()))


def test_a_context_without_room_for_the_text_is_refused(encode, tmp_path):
    (tmp_path / "text").write_text("海" * 99, encoding="utf-8")
    least = min(len(encode(s["prompt"])) for s in make(encode, context=prompts.overhead(encode) + 40)) - 60
    with pytest.raises(UserError, match="no room for the text of .*: choose a larger context"):
        make(encode, haystack="text", text=str(tmp_path / "text"), context=least)


@pytest.mark.parametrize("size", [256, 300, 2000])
def test_any_tokenizer_has_prompts_and_their_length_is_recorded(size):
    encode = prompts.encoder(bpe(size) if size < 2000 else AutoTokenizer.from_pretrained(EMBEDDED / "tiny-books"))
    for haystack in ("noise", "distractors"):
        for context in (599, 600, 601):
            samples = make(encode, context=context, haystack=haystack)
            assert all(len(encode(s["prompt"])) == s["tokens"] for s in samples)
            assert all(context - 2 <= s["tokens"] <= context for s in samples)


def test_the_prompts_of_recorded_tables_are_what_they_were():
    """Their rows hold hashes of the prompts that were fed."""
    encode = prompts.encoder(AutoTokenizer.from_pretrained(EMBEDDED / "tiny"))
    (folder, *_) = (ROOT / "docs/results/first").glob("*/retrieval-*")
    options = json.loads((folder / "task.json").read_text())["options"]
    rows = [json.loads(line) for part in folder.glob("parts/*.jsonl") for line in part.read_text().splitlines()]
    made = make(encode, samples=40, context=1024, **options)
    for row in (r for r in rows if r["key"] < 40):
        sample = made[row["key"]]
        assert row["doc_hash"] == prompts.doc_hash(sample["prompt"], sample["value"])
        assert (row["depth"], row["distance"], row["tokens_seen"]) == (sample["depth"], sample["distance"], 1024)


def test_missing_or_empty_text_is_a_users_mistake(encode, tmp_path):
    (tmp_path / "empty").write_text(" \n")
    for text, word in (
        (None, "task.retrieval.text=FILE"),
        ("absent.txt", "no such file"),
        (str(tmp_path), "no such file"),
        ("/dev/zero", "no such file"),
        (str(tmp_path / "empty"), "no text"),
    ):
        with pytest.raises(UserError, match=word):
            make(encode, haystack="text", text=text)


def test_cached_data_is_built_once_and_keyed_by_all_it_depends_on(encode, tmp_path, novel):
    arguments = {"samples": 4, "context": 256, "data_seed": 0, "haystack": "noise", "text": None, "depths": DEPTHS}
    first = prompts.load_samples(prompts.prepare_samples(tmp_path, encode, "t", **arguments).place)
    assert list(first) == make(encode, samples=4, context=256)

    def never(text):
        raise AssertionError("built again")

    assert list(prompts.load_samples(prompts.prepare_samples(tmp_path, never, "t", **arguments).place)) == list(first)
    folders = {p.name for p in tmp_path.iterdir()}
    for change in (
        {"samples": 5},
        {"data_seed": 1},
        {"context": 255},
        {"haystack": "text", "text": novel},
        {"depths": [0.5]},
    ):
        prompts.prepare_samples(tmp_path, encode, "t", **{**arguments, **change})
    prompts.prepare_samples(tmp_path, encode, "another tokenizer", **arguments)
    assert len({p.name for p in tmp_path.iterdir()} - folders) == 6


def flip(place):
    (file,) = place.glob("*.arrow")
    content = bytearray(file.read_bytes())
    at = content.index(b"The code number of", len(content) // 2)
    digit = next(n for n in range(at, len(content)) if chr(content[n]).isdigit())
    content[digit] = ord("1") if content[digit] != ord("1") else ord("2")
    file.write_bytes(content)


def another_context(place):
    (other,) = (p for p in place.parent.iterdir() if p != place)
    shutil.rmtree(place)
    shutil.copytree(other, place)


@pytest.mark.parametrize(
    "harm",
    [
        flip,
        another_context,
        lambda place: (place / "state.json").unlink(),
        lambda place: (place / "manifest.json").unlink(),
        lambda place: (place / "manifest.json").write_text("[1]"),
        lambda place: [file.unlink() for file in place.iterdir()],
        lambda place: (shutil.rmtree(place), place.write_text("a file")),
    ],
    ids=["digit", "context", "no state", "no manifest", "odd manifest", "empty", "file"],
)
def test_data_that_is_not_what_was_made_is_made_again(encode, tmp_path, harm):
    arguments = {"samples": 4, "data_seed": 0, "haystack": "noise", "text": None, "depths": DEPTHS}
    place = prompts.prepare_samples(tmp_path, encode, "t", context=256, **arguments).place
    prompts.prepare_samples(tmp_path, encode, "t", context=255, **arguments)
    harm(place)
    again = prompts.prepare_samples(tmp_path, encode, "t", context=256, **arguments)
    assert again.place == place
    assert list(prompts.load_samples(place)) == make(encode, samples=4, context=256)
    assert len(list(tmp_path.iterdir())) == 2, "a draft is left"
