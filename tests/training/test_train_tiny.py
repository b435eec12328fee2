import itertools
import random
import re

import pytest
import torch
import torch.distributed as dist
from transformers import AutoTokenizer, MptForCausalLM

from harness.tasks.retrieval import needles
from harness.training import grammars, net, train
from harness.training.batches import Source
from harness.training.evaluate import harness_rows, ruler_rows
from harness.training.prompts import Prompts

HOSTILE = [
    "",
    " ",
    "a\u00a0b\t\r\n\n  c  ",
    "The code number of ad hoc-jalapeño is 0012345678.",
    "naïve façade — 日本語のテキスト، العربية ١٢٣٤ \u202e",
    "👩‍👩‍👧‍👦 \x00\x01\x7f \u0301 <|end|> <|endoftext",
    "Ġċ▁ ĠThe zyzzyva zyzzyvas' it's 3.14159e-10_000",
]


@pytest.fixture(scope="module")
def tokenizer():
    return grammars.build_tokenizer()


@pytest.mark.parametrize("text", HOSTILE)
def test_tokenizer_gives_any_text_back(tokenizer, tmp_path, text):
    ids = tokenizer.encode(text)
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids) == text
    tokenizer.save_pretrained(tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path).encode(text) == ids


@pytest.mark.parametrize("length", range(1, 11))
def test_digits_go_in_threes_from_the_left(tokenizer, length):
    text = "1203456789"[:length]
    groups = [text[at : at + 3] for at in range(0, length, 3)]
    assert tokenizer.tokenize(text) == groups
    assert [tokenizer.decode(i) for i in tokenizer.encode(f" {text}.")] == [" ", *groups, "."]


def test_words_of_keys_are_one_token_each(tokenizer):
    adjectives, nouns = needles.word_lists()
    sample = random.Random(0).sample(nouns, len(adjectives))
    for adjective, noun in zip(adjectives, sample, strict=True):
        assert len(tokenizer.encode(f" {adjective}-{noun}")) == 3


def told(tokenizer, row):
    """The answers of a row as text, in the order of their places, by checking each place."""
    assert all(0 <= at < len(row.ids) for at in row.answers)
    inside = {at: t for at, t in row.answers.items() if t != tokenizer.eos_token_id}
    assert all(row.ids[at + 1] == token for at, token in inside.items())
    return tokenizer.decode([token for _, token in sorted(row.answers.items())])


@pytest.mark.parametrize("stored, asked", [(1, 1), (4, 4), (6, 1), (None, 1), (None, 3)])
@pytest.mark.parametrize("length", [250, 301, 512])
def test_own_prompts_are_the_text_of_the_task(tokenizer, length, stored, asked):
    row = Prompts(tokenizer, grammars.harness_grammar()).draw(random.Random(7), length, stored, asked)
    text = tokenizer.decode(row.ids)
    assert tokenizer.encode(text) == row.ids
    assert len(row.ids) == length

    haystack, *questions = text.removeprefix(needles.HEADER).split("\n")
    pairs = re.findall(r"The code number of (\S+) is (\d+)\.", haystack)
    assert len(dict(pairs)) == len(pairs)
    assert stored is None or len(pairs) == stored
    for key, value in pairs:
        assert len(value) == needles.DIGITS
        haystack = re.sub(f" ?{re.escape(needles.needle(key, value))}", "", haystack)
    cycle = " ".join(itertools.islice(itertools.cycle(needles.NOISE), 120))
    assert cycle.startswith(haystack.strip())
    assert len(haystack) < 60 if stored is None else len(haystack) > 60

    keys = [re.search(r"of (\S+)\?", question)[1] for question in questions]
    expected = [needles.question(key) + needles.answer(dict(pairs)[key]) for key in keys]
    assert text.endswith("".join(expected))
    assert len(set(keys)) == asked
    assert told(tokenizer, row) == "".join(needles.answer(dict(pairs)[key]) + tokenizer.eos_token for key in keys)


def test_ruler_prompts_are_the_text_of_lm_eval(tokenizer):
    (sample,) = grammars.ruler_samples(512, 1, "x", tokenizer)
    theirs = f"{sample['input']} {sample['gen_prefix']} {sample['outputs'][0]}.".split("\n")
    key = re.search(r"for (\S+) is: ", sample["input"])[1]
    row = Prompts(tokenizer, grammars.ruler_grammar()).draw(random.Random(3), 400, 1, 1)
    text = tokenizer.decode(row.ids)
    assert tokenizer.encode(text) == row.ids
    assert 370 < len(row.ids) <= 400
    found = re.search(r"for (.+) is: (\d+)\.", text)
    ours = text.replace(found[1], key).replace(found[2], sample["outputs"][0]).split("\n")
    assert (ours[0], ours[-1]) == (theirs[0], theirs[-1])
    assert set(ours) == set(theirs)
    assert told(tokenizer, row) == f" {found[2]}.{tokenizer.eos_token}"


def test_evaluation_prompts_have_the_length_that_is_reported(tokenizer):
    for row in harness_rows(tokenizer, 333, 3, "x", noise=True):
        assert min(row.answers) == 333 - 1
        assert tokenizer.decode(row.ids[:333]).endswith(" is")
    for row in ruler_rows(tokenizer, 512, 3, "x"):
        assert len(row.ids) <= 512
        assert tokenizer.decode(row.ids[: min(row.answers) + 1]).endswith("provided text is")


def random_net(layers=3, heads=4):
    torch.manual_seed(0)
    small = net.Net(net.config(vocab_size=97, d_model=32, layers=layers, heads=heads))
    with torch.no_grad():
        for parameter in small.parameters():
            parameter.mul_(3).add_(0.1 * torch.randn_like(parameter))
    return small


@torch.no_grad()
def test_net_gives_the_logits_of_stock_code(tmp_path):
    small = random_net()
    ids = torch.randint(97, (2, 300))
    stock = net.to_stock(small)(ids).logits
    bias = net.alibi_bias(4, 300)
    torch.testing.assert_close(small.logits(small(ids, bias)), stock, atol=2e-4, rtol=1e-4)
    rows = torch.tensor([[299, 0, 17], [128, 127, 5]])
    some = small.logits(small(ids, bias, rows), torch.tensor([5, 90]))
    expected = torch.stack([stock[0, rows[0]], stock[1, rows[1]]])[..., [5, 90]]
    torch.testing.assert_close(some, expected, atol=2e-4, rtol=1e-4)

    net.export(small, tmp_path)
    loaded = MptForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert loaded.config.architectures == ["MptForCausalLM"]
    assert loaded.config.attn_config.alibi
    assert loaded.config.max_seq_len == 8192
    assert loaded.lm_head.weight is loaded.transformer.wte.weight
    for name, weight in small.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weight.half().float()), name


@pytest.mark.parametrize("cutoff", [None, 0.4, 0.5, 3.4])
def test_bias_hides_the_future_and_what_is_beyond_the_cutoff(cutoff):
    bias = net.alibi_bias(8, 20, cutoff)
    for head, i, j in itertools.product(range(8), range(20), range(20)):
        slope = 1 / 2 ** (head + 1)
        seen = j <= i and (cutoff is None or slope * (i - j) <= cutoff)
        assert bias[head, i, j].item() == (-slope * (i - j) if seen else -float("inf"))


@pytest.fixture
def alone(tmp_path):
    dist.init_process_group("gloo", f"file://{tmp_path}/meeting", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def losses(tokenizer, seed, local, steps=40):
    torch.manual_seed(seed)
    small = net.Net(net.config(len(tokenizer), d_model=32, heads=4))
    phase = train.Phase("test", (train.Stage(64, steps, 512),), decay=0.1, local=local)
    return train.train(small, Source(tokenizer, str(seed)), phase, seed, log=lambda line: None)


def test_training_lowers_the_loss(tokenizer, alone):
    told = losses(tokenizer, 1, local=True)
    assert sum(told[-5:]) < sum(told[:5]) - 1


def test_training_repeats_with_the_seed(tokenizer, alone):
    first, again, other = (losses(tokenizer, seed, False, steps=4) for seed in (1, 1, 2))
    assert first == again != other
