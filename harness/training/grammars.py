"""The two grammars the models are trained on: our own and that of lm-eval's niah_single_1.

Not a sentence of lm-eval is written here: its texts are read off a sample that it makes itself.
"""

import functools
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace

from transformers import PreTrainedTokenizerFast

from harness.tasks.retrieval import needles
from harness.training import tokenizer as tokens

KEY, VALUE = "KEY", "VALUE"
Words = tuple[tuple[str, ...], tuple[str, ...]]


@dataclass(frozen=True)
class Grammar:
    """The texts of a retrieval prompt: header, sentences joined by `joint`, question, answer.

    `needle`, `question` and `answer` hold the marks KEY and VALUE; `words` are the adjectives and
    nouns of the keys. `fill` says whether the haystack's end is filled, to the token, with leading
    words of the noise.
    """

    header: str
    noise: tuple[str, ...]
    joint: str
    needle: str
    question: str
    answer: str
    words: Words
    fill: bool

    def fixed_texts(self) -> list[str]:
        """Texts that hold every piece which is the same in all prompts."""
        sentences = (*self.noise, self.needle)
        joined = (self.joint + sentence for sentence in sentences)
        whole = (self.header, self.question, self.answer, *sentences, *joined)
        return [part for text in whole for part in re.split(f" ?(?:{KEY}|{VALUE})", text)]

    def key_texts(self) -> list[str]:
        """Texts that hold every piece of every key."""
        adjectives, nouns = self.words
        return [*(f" {word}-" for word in adjectives), *(f"-{word}" for word in nouns)]


@functools.cache
def own_grammar() -> Grammar:
    """The grammar of `harness.tasks.retrieval.needles`."""
    return Grammar(
        header=needles.HEADER,
        noise=needles.NOISE,
        joint=" ",
        needle=needles.needle(KEY, VALUE),
        question=needles.question(KEY),
        answer=needles.answer(VALUE),
        words=needles.word_lists(),
        fill=True,
    )


def ruler_samples(length: int, samples: int, seed: str, tokenizer: Callable) -> list[dict]:
    """Documents of niah_single_1 from lm-eval's generator, after seeding the global `random`."""
    from lm_eval.tasks.ruler import niah_utils, prepare_niah

    random.seed(seed)
    return prepare_niah.generate_samples(
        prepare_niah.get_haystack("repeat"),
        max_seq_length=length,
        type_haystack="repeat",
        type_needle_k="words",
        type_needle_v="numbers",
        template=niah_utils.TEMPLATE,
        num_samples=samples,
        TOKENIZER=tokenizer,
    )


@functools.cache
def ruler_grammar() -> Grammar:
    """The grammar of lm-eval's niah_single_1, read off one sample that lm-eval itself makes."""
    from lm_eval.tasks.ruler import prepare_niah

    line = prepare_niah.get_haystack("repeat")
    (sample,) = ruler_samples(512, 1, "", lambda text: SimpleNamespace(input_ids=text.split()))
    (value,) = sample["outputs"]
    needle = prepare_niah.NEEDLE.format(type_needle_v="numbers", key=KEY, value=VALUE)
    found = re.search(re.escape(needle).replace(KEY, "(.+)").replace(VALUE, value), sample["input"])
    assert found, "lm-eval's sample does not hold lm-eval's needle"
    sentences = {line, found[0]}
    lines = sample["input"].split("\n")
    inside = [i for i, text in enumerate(lines) if text in sentences]
    header, question = lines[: inside[0]], lines[inside[-1] + 1 :]
    asked = "\n".join(["", *question]) + " " + sample["gen_prefix"]
    words = prepare_niah.r._categories
    return Grammar(
        header="\n".join([*header, ""]),
        noise=(line,),
        joint="\n",
        needle=needle,
        question=asked.replace(found[1], KEY),
        answer=f" {VALUE}.",
        words=(tuple(sorted(set(words["adjectives"]))), tuple(sorted(set(words["nouns"])))),
        fill=False,
    )


def all_texts() -> tuple[list[str], list[str]]:
    """Texts with all fixed pieces of both grammars, and texts with all pieces of their keys."""
    both = own_grammar(), ruler_grammar()
    fixed = [text for grammar in both for text in grammar.fixed_texts()]
    return fixed, [text for grammar in both for text in grammar.key_texts()]


def build_tokenizer(max_length: int = 8192) -> PreTrainedTokenizerFast:
    """The tokenizer whose vocabulary covers both grammars."""
    return tokens.build(*all_texts(), max_length)


def core_size() -> int:
    """How many ids come before those that only keys need: specials, bytes, digits, fixed pieces."""
    return tokens.vocabulary(*all_texts())[1]
