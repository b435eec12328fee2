"""Retrieval prompts of exactly `context` tokens: a needle at a chosen depth of a haystack, then the question."""

import contextlib
import hashlib
import itertools
import json
import os
import random
import re
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import datasets

from harness.errors import UserError
from harness.tasks import needles

VERSION = 1  # of the way prompts are made: part of what a data set's name is hashed from
Encode = Callable[[str], list[int]]


def encoder(tokenizer) -> Encode:
    """Text to ids, with the special tokens that the tokenizer itself puts in front; never cut."""
    return lambda text: tokenizer(text, truncation=False, verbose=False)["input_ids"]


def build(
    encode: Encode,
    *,
    samples: int,
    context: int,
    data_seed: int,
    haystack: str,
    text: str | None,
    depths: Sequence[float],
) -> Iterator[dict]:
    """Yield the samples: key (number), prompt, answer, value, depth, distance (tokens from the needle's end to the
    prompt's end), tokens, doc_hash. A pure function of its arguments: sample i does not depend on how many are asked
    for."""
    sentences = read_sentences(text) if haystack == "text" else None
    for number in range(samples):
        # depths are dealt in shuffled rounds: each has every depth once, and no depth falls in step with the draws
        turn, place = divmod(number, len(depths))
        order = list(depths)
        random.Random(f"depths {data_seed} {turn}").shuffle(order)
        rng = random.Random(f"sample {data_seed} {number}")
        prompt = _Prompt(encode, context, order[place], rng, haystack, sentences)
        yield {"key": number, **prompt.sample()}


def shortest(encode: Encode) -> int:
    """Tokens of the longest of a few prompts without any haystack: a context must have room for them."""
    rng = random.Random("shortest")
    keys = [needles.draw_key(rng) for _ in range(32)]
    return max(len(encode(f"{needles.HEADER}{needles.needle(k, '1234567')}{needles.question(k)}")) for k in keys)


def read_sentences(path: str | None) -> list[str]:
    """Sentences of a user's text file. UserError if there are none."""
    if not path:
        raise UserError("task.retrieval.haystack=text needs a file: set task.retrieval.text=FILE.")
    try:
        words = " ".join(Path(path).expanduser().read_text(encoding="utf-8").split())
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"task.retrieval.text={path} cannot be read as UTF-8 text: {error}.") from None
    sentences = [s for s in re.split(r"(?<=[.!?])\s+", words) if s]
    if not sentences:
        raise UserError(f"task.retrieval.text={path} holds no text.")
    return sentences


def text_hash(path: str) -> str:
    """sha256 of a user's text file."""
    return hashlib.sha256(Path(path).expanduser().read_bytes()).hexdigest()


def kept(folder: Path, encode: Encode, tokenizer_name: str, **arguments) -> Path:
    """Where the samples lie: built once, and kept under a hash of all that they depend on."""
    recipe = {"version": VERSION, "tokenizer": tokenizer_name, **arguments}
    if arguments["text"]:
        recipe["text"] = text_hash(arguments["text"])
    name = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:16]
    place = folder / f"retrieval-{name}"
    if not place.exists():
        draft = folder / f".{place.name}.{uuid.uuid4().hex[:8]}"
        datasets.disable_progress_bars()
        datasets.Dataset.from_list(list(build(encode, **arguments))).save_to_disk(str(draft))
        with contextlib.suppress(OSError):  # another run was first; its content is the same
            os.rename(draft, place)
    return place


def read(place: Path) -> datasets.Dataset:
    """The samples that `kept` put there."""
    return datasets.load_from_disk(str(place), keep_in_memory=True)


class _Prompt:
    """One prompt: whole sentences first, then words of the noise until the length is exact."""

    def __init__(self, encode, context, depth, rng, haystack, sentences):
        self.encode, self.context, self.depth = encode, context, depth
        self.key, self.value = needles.draw_key(rng), needles.draw_value(rng)
        self.needle = needles.needle(self.key, self.value)
        self.units = self._units(haystack, sentences, rng)

    def _units(self, haystack, sentences, rng) -> Iterator[str]:
        if haystack == "noise":
            return itertools.cycle(needles.NOISE)
        if haystack == "text":
            first = rng.randrange(len(sentences))
            return itertools.cycle(sentences[first:] + sentences[:first])
        return self._distractors(rng)

    def _distractors(self, rng) -> Iterator[str]:
        taken = {self.key}
        while True:
            key = needles.draw_key(rng)
            if key not in taken:
                taken.add(key)
                yield needles.needle(key, needles.draw_value(rng))

    def _text(self, units: list[str], fill: list[str]) -> tuple[str, str]:
        """(prompt up to the needle's end, the rest)."""
        place = round(self.depth * len(units))
        before = needles.HEADER + " ".join([*units[:place], self.needle])
        after = " ".join(["", *units[place:], *fill]) + needles.question(self.key)
        return before, after

    def _tokens(self, units: list[str], fill: list[str] = ()) -> int:
        return len(self.encode("".join(self._text(units, list(fill)))))

    def sample(self) -> dict:
        units = self._whole_sentences()
        fill = self._words(units)
        before, after = self._text(units, fill)
        prompt = before + after
        return {
            "prompt": prompt,
            "answer": needles.answer(self.value),
            "value": self.value,
            "depth": self.depth,
            "distance": self.context - len(self.encode(before)),
            "tokens": self.context,
            "doc_hash": hashlib.sha256((prompt + "\0" + self.value).encode()).hexdigest()[:16],
        }

    def _whole_sentences(self) -> list[str]:
        """As many sentences as fit, found by counting each once and correcting for how they join."""
        room = self.context - self._tokens([])
        units: list[str] = []
        count = {}
        while room > 0:
            unit = next(self.units)
            if unit not in count:
                count[unit] = max(1, len(self.encode(" " + unit)) - len(self.encode("")))
            room -= count[unit]
            if room >= 0:
                units.append(unit)
        while units and self._tokens(units) > self.context:
            units.pop()
        return units

    def _words(self, units: list[str]) -> list[str]:
        """Leading words of the noise that make the length exact."""
        cycle = " ".join(needles.NOISE).split()
        missing = self.context - self._tokens(units)
        for words in sorted(range(missing + 1), key=lambda w: abs(w - round(missing * 0.8))):
            fill = (cycle * (words // len(cycle) + 1))[:words]
            # a full stop is a token of its own: the last sentence may also end without it
            for tail in (fill, [*fill[:-1], fill[-1].rstrip(".")] if fill else fill):
                if self._tokens(units, tail) == self.context:
                    return tail
        raise UserError(
            f"No prompt of exactly {self.context} tokens could be made with this tokenizer: try "
            f"context={self.context + 1}."
        )
