"""The embedded models do what their cards say, through the very path that any model takes: exact
ALiBi, fresh prompts."""

import math

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoTokenizer, MptForCausalLM

from harness.models.load import load_model
from harness.models.options import ModelConfig
from harness.models.spec import resolve_model
from harness.tasks.retrieval import prompts
from harness.tasks.retrieval.task import answer
from harness.training import bits
from kernels import Alibi
from tests.conftest import EMBEDDED
from tests.training.test_train_tiny import HOSTILE

PROMPTS = 100
# The opening of chapter 1 of Moby-Dick, which is not among the novels that tiny-books was trained
# on.
PASSAGE = """\
Call me Ishmael. Some years ago—never mind how long precisely—having
little or no money in my purse, and nothing particular to interest me
on shore, I thought I would sail about a little and see the watery part
of the world. It is a way I have of driving off the spleen and
regulating the circulation. Whenever I find myself growing grim about
the mouth; whenever it is a damp, drizzly November in my soul; whenever
I find myself involuntarily pausing before coffin warehouses, and
bringing up the rear of every funeral I meet; and especially whenever
my hypos get such an upper hand of me, that it requires a strong moral
principle to prevent me from deliberately stepping into the street, and
methodically knocking people’s hats off—then, I account it high time to
get to sea as soon as I can. This is my substitute for pistol and ball.
With a philosophical flourish Cato throws himself upon his sword; I
quietly take to the ship. There is nothing surprising in this. If they
but knew it, almost all men in their degree, some time or other,
cherish very nearly the same feelings towards the ocean with me.

There now is your insular city of the Manhattoes, belted round by
wharves as Indian isles by coral reefs—commerce surrounds it with her
surf. Right and left, the streets take you waterward. Its extreme
downtown is the battery, where that noble mole is washed by waves, and
cooled by breezes, which a few hours previous were out of sight of
land. Look at the crowds of water-gazers there.
"""


@pytest.mark.parametrize(
    ("name", "context", "least"),
    [("tiny", 512, 0.97), ("tiny", 1024, 0.95), ("tiny", 2048, 0.85), ("tiny-plain", 512, 0.95)],
)
def test_accuracy_on_fresh_prompts(name, context, least):
    spec = resolve_model(ModelConfig(name=name, path=f"harness/embedded/{name}"), None)
    loaded = load_model(spec, device=torch.device("cpu"), kernel="auto")
    made = prompts.make_samples(
        prompts.encoder(loaded.tokenizer),
        samples=PROMPTS,
        context=context,
        data_seed=20261121,
        haystack="noise",
        text=None,
        depths=[0.0, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0],
    )
    samples = list(made)
    rows = [row for i in range(0, PROMPTS, 10) for row in answer(loaded, samples[i : i + 10])]
    assert sum(row.score for row in rows) / PROMPTS >= least


@pytest.mark.parametrize("text", [*HOSTILE, PASSAGE, "".join(map(chr, range(0x250)))])
def test_tiny_books_gives_any_text_back(text):
    encoder = AutoTokenizer.from_pretrained(EMBEDDED / "tiny-books")
    ids = encoder.encode(text)
    assert encoder.decode(ids) == text
    assert bits.byte_counts(encoder)[ids].sum() == len(text.encode())


@torch.inference_mode()
def test_tiny_books_predicts_a_novel_it_has_not_read():
    spec = resolve_model(ModelConfig(name="tiny-books", path="harness/embedded/tiny-books"), None)
    loaded = load_model(spec, device=torch.device("cpu"), kernel="auto")
    ids = torch.tensor([loaded.tokenizer.eos_token_id, *loaded.tokenizer.encode(PASSAGE)])
    nats = bits.sliding_nats(loaded, ids, [Alibi(spec.slopes)] * 3, context=1024)
    # 2.01 here; 3.85 for random weights, 3.12 for single tokens by their share in the training
    # novels
    assert nats.sum() / math.log(2) / len(PASSAGE.encode()) < 2.1

    stock = MptForCausalLM.from_pretrained(EMBEDDED / "tiny-books", dtype=torch.float32).eval()
    expected = F.cross_entropy(stock(ids[None, :-1]).logits[0], ids[1:], reduction="none")
    torch.testing.assert_close(nats, expected.double(), atol=2e-4, rtol=1e-4)
