"""Windows of a text: every scored token once, every byte counted, an order that more samples
extend."""

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from harness.common.errors import UserError
from harness.common.paths import TEXTS
from harness.tasks.text import windows
from harness.tasks.texts import HELD_OUT, read_text
from tests.conftest import EMBEDDED

TEXT = "Rain fell on the slates; nobody spoke.\nWhy had she come back? — „Für Elise“, 海上起了大风。\n\n" * 12


def bpe() -> PreTrainedTokenizerFast:
    """Byte-level BPE as of MPT and BLOOM: offsets leave out the blank before a word, and a Chinese
    character takes several tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([TEXT[:200]], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


@pytest.fixture(params=["tiny-books", "bpe"])
def tokenizer(request):
    return bpe() if request.param == "bpe" else AutoTokenizer.from_pretrained(EMBEDDED / "tiny-books")


def test_the_bytes_of_tokens_are_the_bytes_of_their_text(tokenizer):
    tokens, sizes = windows.tokenize(tokenizer, TEXT)
    assert tokens.tolist() == tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    assert sizes.sum() == len(TEXT.encode())
    ends = np.cumsum(sizes)
    text = TEXT.encode()
    checked = 0
    for stop in range(1, len(tokens)):
        decoded = tokenizer.decode(tokens[:stop].tolist())
        if "\ufffd" not in decoded:  # not within a character
            assert decoded.encode() == text[: ends[stop - 1]]
            checked += 1
    assert checked > 100


def stored(tmp_path, tokens: int):
    np.save(tmp_path / windows.TOKENS, np.arange(tokens, dtype=np.int32))
    np.save(tmp_path / windows.BYTES, np.full(tokens, 3, dtype=np.int32))
    return tmp_path


@pytest.mark.parametrize("tokens, context, stride", [(200, 32, 16), (200, 32, 32), (200, 32, 7), (33, 32, 1)])
def test_each_scored_token_is_scored_once_after_enough_others(tmp_path, tokens, context, stride):
    found = windows.Windows(stored(tmp_path, tokens), context=context, stride=stride, data_seed=0)
    scored = sorted(token for w in found for token in w.ids[-stride:].tolist())
    first = context - stride + 1
    assert scored == list(range(first, first + len(found) * stride))
    assert scored[-1] > tokens - 1 - stride, "a whole window more would fit"
    assert all(w.ids.tolist() == list(range(int(w.ids[0]), int(w.ids[0]) + context + 1)) for w in found)
    assert all(w.sizes.tolist() == [3] * stride for w in found)


def test_windows_come_in_an_order_of_the_seed(tmp_path):
    place = stored(tmp_path, 400)
    orders = [
        [int(w.ids[0]) for w in windows.Windows(place, context=32, stride=16, data_seed=seed)] for seed in (0, 0, 1)
    ]
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[0]) == sorted(orders[2]) != orders[0]


@pytest.mark.parametrize(
    "content, said",
    [(None, "there is no such file"), (b"  \n", "holds no text"), (b"\xff\xfe\xfd", "cannot be read as UTF-8")],
)
def test_a_text_that_is_none_is_a_mistake(tmp_path, content, said):
    file = tmp_path / "text.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UserError, match=said):
        read_text("task.perplexity.text", str(file))


@pytest.mark.parametrize("name", HELD_OUT)
def test_held_out_texts_come_with_the_package(name):
    assert read_text("task.perplexity.text", name).encode() == (TEXTS / f"{name}.txt").read_bytes()


def test_line_ends_are_left_as_they_are(tmp_path):
    file = tmp_path / "text.txt"
    file.write_bytes(b"one\r\ntwo\r")
    assert read_text("task.perplexity.text", str(file)) == "one\r\ntwo\r"
