"""The two grammars of training: the harness's, and that of lm-eval's niah_single_1.

lm-eval's texts are extracted from a sample that lm-eval generates.
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

    needle, question, answer: texts with the placeholders KEY and VALUE.
    words: adjectives and nouns of the keys.
    fill: whether words of the noise fill the haystack to the exact length.
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
        """Return texts with all pieces that are equal in all prompts."""
        sentences = (*self.noise, self.needle)
        joined = (self.joint + sentence for sentence in sentences)
        texts = (self.header, self.question, self.answer, *sentences, *joined)
        return [part for text in texts for part in re.split(f" ?(?:{KEY}|{VALUE})", text)]

    def key_texts(self) -> list[str]:
        """Return texts with all pieces of all keys."""
        adjectives, nouns = self.words
        return [*(f" {word}-" for word in adjectives), *(f"-{word}" for word in nouns)]


@functools.cache
def harness_grammar() -> Grammar:
    """Return the grammar of `harness.tasks.retrieval.needles`."""
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
    """Return documents of niah_single_1 from lm-eval's generator; seeds the global `random`.

    Args:
        length: tokens of a document, including those for generation.
        samples: number of documents.
        seed: seed of the documents.
        tokenizer: the tokenizer.
    """
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
    """Return the grammar of lm-eval's niah_single_1, extracted from one of its samples."""
    from lm_eval.tasks.ruler import prepare_niah

    line = prepare_niah.get_haystack("repeat")
    (sample,) = ruler_samples(512, 1, "", lambda text: SimpleNamespace(input_ids=text.split()))
    (value,) = sample["outputs"]
    needle = prepare_niah.NEEDLE.format(type_needle_v="numbers", key=KEY, value=VALUE)
    match = re.search(re.escape(needle).replace(KEY, "(.+)").replace(VALUE, value), sample["input"])
    assert match, "lm-eval's sample does not contain lm-eval's needle"
    sentences = {line, match[0]}
    lines = sample["input"].split("\n")
    haystack_lines = [i for i, text in enumerate(lines) if text in sentences]
    header, question = lines[: haystack_lines[0]], lines[haystack_lines[-1] + 1 :]
    question_text = "\n".join(["", *question]) + " " + sample["gen_prefix"]
    words = prepare_niah.r._categories
    return Grammar(
        header="\n".join([*header, ""]),
        noise=(line,),
        joint="\n",
        needle=needle,
        question=question_text.replace(match[1], KEY),
        answer=f" {VALUE}.",
        words=(tuple(sorted(set(words["adjectives"]))), tuple(sorted(set(words["nouns"])))),
        fill=False,
    )


def all_texts() -> tuple[list[str], list[str]]:
    """Return texts with all fixed pieces of both grammars, and texts with all pieces of keys."""
    both = harness_grammar(), ruler_grammar()
    fixed = [text for grammar in both for text in grammar.fixed_texts()]
    return fixed, [text for grammar in both for text in grammar.key_texts()]


def build_tokenizer(max_length: int = 8192) -> PreTrainedTokenizerFast:
    """Return the tokenizer whose vocabulary covers both grammars."""
    return tokens.build(*all_texts(), max_length)


def core_size() -> int:
    """Return the number of ids of specials, bytes, digits and fixed pieces, which precede keys."""
    return tokens.vocabulary(*all_texts())[1]
