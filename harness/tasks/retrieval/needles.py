"""The grammar of retrieval prompts, for the task and for training the embedded models.

A prompt is HEADER, a haystack of sentences with needles among them, and a question. The question
ends with the beginning of the needle, so that a base model can answer by continuation.
"""

import functools
import random

HEADER = "The text below hides code numbers, each with a name. You will be asked for one of them.\n"
NOISE = (
    "The river is wide.",
    "The hill is green.",
    "The road goes on.",
    "We walk and rest.",
    "The day is long.",
)
DIGITS = 7


@functools.cache
def word_lists() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return sorted lower-case English adjectives and nouns from the package wonderwords."""
    from wonderwords import RandomWord

    source = RandomWord()

    def plain(part: str) -> tuple[str, ...]:
        words = source.filter(include_parts_of_speech=[part])
        return tuple(sorted({w for w in words if w.isascii() and w.isalpha() and w.islower()}))

    return plain("adjectives"), plain("nouns")


def draw_key(rng: random.Random) -> str:
    """Draw the name of a needle, ADJECTIVE-NOUN."""
    adjectives, nouns = word_lists()
    return f"{rng.choice(adjectives)}-{rng.choice(nouns)}"


def draw_value(rng: random.Random) -> str:
    """Draw a number of DIGITS digits without a leading zero."""
    return str(rng.randrange(10 ** (DIGITS - 1), 10**DIGITS))


def needle(key: str, value: str) -> str:
    """Return the sentence of a needle."""
    return f"The code number of {key} is {value}."


def question(key: str) -> str:
    """Return the question at the end of a prompt."""
    return f"\nWhat is the code number of {key}? The code number of {key} is"


def answer(value: str) -> str:
    """Return the text that a model must generate after `question`."""
    return f" {value}."
