"""The embedded models do what their cards say, through the very path that any model takes: exact
ALiBi, fresh prompts."""

import math

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoTokenizer, MptForCausalLM

from harness.common.paths import TEXTS
from harness.models.load import load_model
from harness.models.options import ModelConfig
from harness.models.spec import resolve_model
from harness.tasks.retrieval import prompts
from harness.tasks.retrieval.task import answer
from harness.training import bits, books, packages
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


@pytest.mark.parametrize("model", ["tiny-books", "tiny-code"])
@pytest.mark.parametrize("text", [*HOSTILE, PASSAGE, "".join(map(chr, range(0x250)))])
def test_models_of_texts_give_any_text_back(model, text):
    encoder = AutoTokenizer.from_pretrained(EMBEDDED / model)
    ids = encoder.encode(text)
    assert encoder.decode(ids) == text
    assert bits.byte_counts(encoder)[ids].sum() == len(text.encode())


def of_texts(name):
    """A model of texts, and its specification."""
    spec = resolve_model(ModelConfig(name=name, path=f"harness/embedded/{name}"), None)
    return spec, load_model(spec, device=torch.device("cpu"), kernel="auto")


# most: 1.94 and 1.34 here; 3.12 and 3.31 for single tokens by their share in the training texts
@pytest.mark.parametrize(
    ("name", "text", "most"),
    [("tiny-books", books.unwrap(PASSAGE), 2.05), ("tiny-code", (TEXTS / "code.txt").read_text()[:7000], 1.6)],
    ids=["tiny-books", "tiny-code"],
)
@torch.inference_mode()
def test_a_text_it_has_not_read_is_predicted_as_by_stock_transformers(name, text, most):
    spec, loaded = of_texts(name)
    ids = torch.tensor([loaded.tokenizer.eos_token_id, *loaded.tokenizer.encode(text)])
    nats = bits.sliding_nats(loaded, ids, [Alibi(spec.slopes)] * spec.architecture.layers, context=2048)
    assert nats.sum() / math.log(2) / len(text.encode()) < most

    stock = MptForCausalLM.from_pretrained(EMBEDDED / name, dtype=torch.float32).eval()
    ids = ids[:2049]
    expected = F.cross_entropy(stock(ids[None, :-1]).logits[0], ids[1:], reduction="none")
    torch.testing.assert_close(nats[:2048], expected.double(), atol=2e-4, rtol=1e-4)


@torch.inference_mode()
def test_source_code_needs_its_context_on_tiny_code():
    """The tokens of a stretch of held-out code cost less with the 2,000 tokens before than with 200."""
    spec, loaded = of_texts("tiny-code")
    text = (TEXTS / "code.txt").read_text()
    ids = torch.tensor(loaded.tokenizer.encode(text[200_000:280_000]))
    ends = range(4096, len(ids) - 1, 1024)
    exact = [Alibi(spec.slopes)] * spec.architecture.layers
    long, short = (
        bits.nats(loaded, torch.stack([ids[end - context : end + 1] for end in ends]), exact, last=128)
        for context in (2048, 256)
    )
    gain = (short - long).mean(1)
    error = float(gain.std()) / math.sqrt(len(gain))
    assert float(gain.mean()) > 3 * error > 0


@pytest.mark.parametrize("name", ["tiny", "tiny-plain", "tiny-books", "tiny-code"])
def test_a_model_is_small_and_its_card_names_its_licence(name):
    folder = EMBEDDED / name
    assert sum(file.stat().st_size for file in folder.iterdir()) <= 12_000_000
    assert (folder / "README.md").read_text().startswith("---\nlicense: apache-2.0\n")


def test_the_card_of_tiny_code_names_the_licence_of_every_package():
    card = (EMBEDDED / "tiny-code" / "README.md").read_text()
    for package in packages.PACKAGES:
        assert f"| {package.name} | {package.version} | {package.licence} | {package.part} |" in card
