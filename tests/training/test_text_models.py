"""The recipe of tiny-books on a small folder of texts, and its measure, bits per byte, against
plain sums. The trainer is that of tiny-code too."""

import dataclasses
import gzip
import hashlib
import json
import math
import random
import shutil

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoTokenizer, MptForCausalLM

from harness.common.errors import UserError
from harness.models.load import load_model
from harness.models.options import ModelConfig
from harness.models.spec import resolve_model
from harness.training import __main__ as train_tiny
from harness.training import bits, books, net, text_model, text_recipes, text_train, tokenizer
from harness.training.train import Phase, Stage
from kernels import Alibi
from tests.conftest import EMBEDDED

WORDS = ["the", "a", "whale", "sea", "ship", "said", "of", "and", "Mr.", "upon", "“Aye,”", "was", "naïve", "—", "old\n"]


def novel(seed, words=700):
    rng = random.Random(seed)
    return " ".join(rng.choice(WORDS) for _ in range(words)) + "\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("novels")
    for seed, book in enumerate(books.BOOKS):
        path = root / book.part / book.file
        path.parent.mkdir(exist_ok=True)
        path.write_text(novel(seed))
    return root


@pytest.fixture(scope="module")
def small(folder):
    """A tokenizer of 300 tokens and the stream of the training novels."""
    read = [text for book, text in books.read_books(folder).items() if book.part == "train"]
    encoder = tokenizer.learn(read, 300, 64)
    return encoder, text_train.stream(encoder, read)


def test_the_books_are_named():
    assert len({book.number for book in books.BOOKS}) == len({book.sha256 for book in books.BOOKS}) == 10
    assert [book.part for book in books.BOOKS] == ["train"] * 8 + ["validation", "test"]


@pytest.mark.parametrize("of", ["THE", "THIS"])
def test_header_and_licence_are_cut_off(of):
    text = f"Title: X\r\n\r\n*** START OF {of} PROJECT GUTENBERG EBOOK X ***\r\n\r\nCall me.\r\nYes.\r\n\r\n"
    text += f"*** END OF {of} PROJECT GUTENBERG EBOOK X ***\r\nLicence *** START\r\n"
    assert books.body(text) == "Call me.\nYes.\n" == books.body("Call me.\nYes.\n")


def test_paragraphs_become_lines_and_chapters_stay_apart():
    text = "CHAPTER I.\n\n\n\nCall  me\n  Ishmael.\n\nSome years\tago\n \n\nnever mind.\n"
    assert books.unwrap(text) == "CHAPTER I.\n\nCall me Ishmael.\nSome years ago\n\nnever mind.\n"
    assert books.unwrap(books.unwrap("a\nb\n\nc")) == "a b c\n"
    assert books.unwrap("alone") == "alone\n"


def test_another_edition_is_said_and_a_missing_one_refused(folder, tmp_path):
    texts = books.read_books(folder)
    sentences = books.text_differences(texts)
    first = books.BOOKS[0]
    assert len(sentences) == 10
    assert hashlib.sha256(texts[first].encode()).hexdigest()[:12] in sentences[0]
    known = dataclasses.replace(first, sha256=hashlib.sha256(b"a\n").hexdigest())
    assert books.text_differences({known: "a\n"}) == []
    with pytest.raises(UserError, match="no such folder"):
        books.read_books(tmp_path / "nowhere")
    with pytest.raises(UserError, match="A Tale of Two Cities there, Project Gutenberg's number 98"):
        books.read_books(tmp_path)


def test_learning_the_tokens_repeats(folder, small):
    read = [text for book, text in books.read_books(folder).items() if book.part == "train"]
    again = tokenizer.learn(read, 300, 64)
    assert again.backend_tokenizer.to_str() == small[0].backend_tokenizer.to_str()
    assert len(again) == 300


def test_a_pass_reads_every_token_once():
    length, total = 16, 192
    places = text_train.row_starts(total, length, random.Random(3))
    first = [next(places) for _ in range((total - length) // length)]
    assert len(set(first)) == len(first)
    assert first != sorted(first)
    assert {b - a for a, b in zip(sorted(first), sorted(first)[1:], strict=False)} == {length}
    assert min(first) >= 0
    assert max(first) + length < total


def small_net(vocabulary, seed=0, heads=4):
    torch.manual_seed(seed)
    return net.Net(net.config(vocabulary, d_model=32, layers=2, heads=heads))


def small_phase(*steps, decay=0.9):
    lengths = (32, 64)
    return Phase("test", tuple(Stage(length, n, 256) for length, n in zip(lengths, steps, strict=True)), decay=decay)


def trained(small, steps, checkpoint=None, seed=0, heads=4):
    encoder, data = small
    model = small_net(len(encoder), seed, heads)
    return model, text_train.train(model, data, small_phase(steps, 4), seed, lambda line: None, checkpoint).losses


def test_training_lowers_the_loss_and_repeats(small):
    _, losses = trained(small, 60)
    assert losses[0] > math.log(300) - 0.5
    assert sum(losses[-5:]) / 5 < losses[0] - 2
    assert trained(small, 3)[1] == trained(small, 3)[1] != trained(small, 3, seed=1)[1]


def stop_at(line_start):
    def log(line):
        if line_start in line:
            raise KeyboardInterrupt

    return log


@pytest.fixture
def every_step(monkeypatch):
    monkeypatch.setattr(text_train, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(text_train, "LOG_EVERY", 1)


def test_a_stopped_run_goes_on(small, tmp_path, every_step):
    whole, losses = trained(small, 4)
    assert len(losses) == 8
    file = tmp_path / "checkpoint.pt"
    encoder, data = small
    with pytest.raises(KeyboardInterrupt):
        text_train.train(small_net(len(encoder)), data, small_phase(4, 4), 0, stop_at("4/8"), file)
    resumed, found = trained(small, 4, file)
    assert found == losses
    for name, weight in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], weight), name
    with pytest.raises(UserError, match="other texts or seeds"):
        trained(small, 4, file, seed=1)


def test_a_longer_plan_goes_on_before_the_decay_and_not_after_it(small, tmp_path, every_step, monkeypatch):
    monkeypatch.setattr("harness.training.train.WARM_UP_STEPS", 1)
    encoder, data = small
    silent, file = lambda line: None, tmp_path / "checkpoint.pt"
    longer = small_phase(4, 8, decay=0.5)
    whole = text_train.train(small_net(len(encoder)), data, longer, 0, silent).losses
    with pytest.raises(KeyboardInterrupt):  # 8 steps, the first 5 at full rates
        text_train.train(small_net(len(encoder)), data, small_phase(4, 4, decay=0.5), 0, stop_at("7/8"), file)
    with pytest.raises(UserError, match="6 steps that this plan would not make"):
        text_train.train(small_net(len(encoder)), data, longer, 0, silent, file)
    file.with_name("stable.pt").replace(file)
    assert text_train.train(small_net(len(encoder)), data, longer, 0, silent, file).losses == whole


def test_the_rows_of_a_stage_do_not_depend_on_the_number_of_steps():
    short, long = (text_train.plan(5000, small_phase(first, 6), 0, 2) for first in (2, 5))
    assert [step.starts for step in short[:2]] == [step.starts for step in long[:2]]
    assert [step.starts for step in short[2:]] == [step.starts for step in long[5:]]
    assert {len(step.starts) for step in long} == {2 * 8, 2 * 4}


def small_recipe(monkeypatch, name):
    recipe = text_recipes.RECIPES[name]
    shape = {"d_model": 32, "layers": 1, "heads": 2}
    small = dataclasses.replace(recipe, vocabulary=280, shape=shape, phase=text_recipes.phase(name, {64: 3}, 0.5))
    monkeypatch.setitem(text_recipes.RECIPES, name, small)


def test_the_command_makes_a_model_that_loads(folder, tmp_path, monkeypatch, capsys):
    small_recipe(monkeypatch, "tiny-books")
    arguments = ["--only", "tiny-books", "--books", str(folder), "--out", str(tmp_path), "--steps-scale", "0"]
    monkeypatch.setattr("sys.argv", ["train_tiny", *arguments])
    train_tiny.main()
    printed = capsys.readouterr()
    assert "another edition" not in printed.out
    assert printed.err.count("is not the text") == 10
    made = text_model.read_record(tmp_path / "tiny-books")
    assert made["tokens"] == 2 * 2048
    assert made["texts"]["test/moby-dick.txt"] != books.BOOKS[-1].sha256
    card = (tmp_path / "tiny-books" / "README.md").read_text()
    assert card.count("| PLSH S=16 gamma rb |") == 2  # unwrapped, and with hard line breaks
    assert "window T=" in card
    assert "| gzip -9 |" in card
    assert train_tiny.main() == 2, "its checkpoint is there"
    assert "--resume goes on from it" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["--only", "tiny-books"],
        ["--books", "x"],
        ["--measure"],
        ["--resume", "--only", "tiny"],
        ["--only", "tiny-code", "--books", "x"],
    ],
)
def test_what_does_not_go_together_is_refused(arguments, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["train_tiny", *arguments])
    assert train_tiny.main() == 2
    assert "--books FOLDER" in capsys.readouterr().err


def test_a_model_of_hard_line_breaks_is_not_measured_on_lines_without(folder, tmp_path, monkeypatch, capsys):
    model = shutil.copytree(EMBEDDED / "tiny-books", tmp_path / "tiny-books")
    record = {**text_model.read_record(model), "unwrapped": False}
    (model / "training.json").write_text(json.dumps(record))
    arguments = ["--only", "tiny-books", "--books", str(folder), "--out", str(tmp_path), "--measure"]
    monkeypatch.setattr("sys.argv", ["train_tiny", *arguments])
    assert train_tiny.main() == 2
    assert "reads hard line breaks, by an earlier recipe" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["256", "256=x", "0=5", "256=0", "8192=1", ""])
def test_steps_that_are_none_are_refused(text, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["train_tiny", "--only", "tiny-books", "--books", "x", "--steps", text])
    assert train_tiny.main() == 2
    assert "as in 256=600" in capsys.readouterr().err


@pytest.fixture(scope="module")
def exported(small, tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    model, _ = trained(small, 20)
    net.export(model, path)
    small[0].save_pretrained(path)
    return path


@pytest.mark.parametrize("tokens, context", [(40, 64), (64, 64), (65, 64), (96, 64), (97, 64), (150, 64), (150, 2)])
@torch.inference_mode()
def test_sliding_windows_count_every_token_once(exported, small, tokens, context):
    ids = small[1][5 : 5 + tokens + 1]
    spec = resolve_model(ModelConfig(name="x", path=str(exported)), None)
    loaded = load_model(spec, device=torch.device("cpu"), kernel="auto")
    found = bits.sliding_nats(loaded, ids, [Alibi(spec.slopes)] * 2, context=context)
    assert len(found) == tokens
    stock = MptForCausalLM.from_pretrained(exported, dtype=torch.float32).eval()
    half = context // 2
    for target in range(1, tokens + 1):
        # the window that counts this token: the first, or the one whose second half holds it, or
        # the last
        end = context if target <= context else min(tokens, math.ceil((target - context) / half) * half + context)
        end = min(end, tokens)
        first = max(0, end - context)
        logits = stock(ids[None, first:target]).logits[0, -1]
        expected = F.cross_entropy(logits, ids[target])
        assert abs(found[target - 1] - expected) < 1e-4, target


def test_bytes_of_tokens_are_those_of_the_text(exported):
    encoder = AutoTokenizer.from_pretrained(exported)
    sizes = bits.byte_counts(encoder)
    for text in ["“Aye,” — said naïve 鯨 \x00", "the whale", ""]:
        ids = torch.tensor(encoder.encode(text), dtype=torch.long)
        assert sizes[ids].sum() == len(text.encode())
    assert sizes[encoder.eos_token_id] == 0
    assert sizes[1:].min() == 1


def test_plain_references():
    text, before = novel(1).encode(), novel(1).encode()
    found = bits.compression_bits(text, before)
    assert found["gzip -9"] == 8 * len(gzip.compress(text, 9)) / len(text)
    assert found["xz -9e after the training texts"] < 0.1 < found["xz -9e"]  # the same text again
    assert bits.compression_bits(bytes(range(256)), b"")["entropy of single bytes"] == 8.0
    ids = torch.tensor([1, 1, 2, 3])
    counted = bits.unigram_bits(ids, torch.tensor([1, 1, 1, 2]), torch.tensor([0, 1, 2, 1]))
    shares = [4 / 8, 4 / 8, 2 / 8, 1 / 8]
    assert counted == pytest.approx(-sum(math.log2(share) for share in shares) / 5)
