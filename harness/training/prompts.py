"""Training prompts, made on the fly as token ids.

Prompts are put together from ids of fixed pieces whose borders are pre-token borders, so a prompt's
ids are exactly what the tokenizer gives for its text, at a small part of the cost.
"""

import functools
import itertools
import random
import re
from dataclasses import dataclass

from transformers import PreTrainedTokenizerFast

from harness.tasks.retrieval import needles
from harness.training.grammars import KEY, VALUE, Grammar

Pair = tuple[tuple[int, ...], tuple[int, ...]]


@dataclass(frozen=True)
class Row:
    """Token ids; `answers` maps the positions that predict an answer and its end to the tokens."""

    ids: list[int]
    answers: dict[int, int]


class Prompts:
    """Draws rows of at most a given length (tokens) from a grammar."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, grammar: Grammar) -> None:
        self.grammar = grammar
        self.end = tokenizer.eos_token_id

        @functools.cache
        def encode(text: str) -> list[int]:
            return tokenizer.encode(text, add_special_tokens=False)

        self.encode = encode
        self.header = encode(grammar.header)
        # The first form of a sentence opens the haystack; the second one follows another sentence.
        self.noise = [[encode(joint + s) for s in grammar.noise] for joint in ("", grammar.joint)]
        self.needle = [self.pieces(joint + grammar.needle) for joint in ("", grammar.joint)]
        self.question = self.pieces(grammar.question)
        self.answer = self.pieces(grammar.answer)

    def pieces(self, text: str) -> list[list[int] | str]:
        """Ids of the fixed parts of `text`, with the marks KEY and VALUE left between them."""
        parts = re.split(f"( {KEY}|{VALUE})", text)
        return [p.strip() if p.strip() in (KEY, VALUE) else self.encode(p) for p in parts if p]

    def pair(self, rng: random.Random) -> Pair:
        """Ids of a random key (with the space before it) and of a random value."""
        adjectives, nouns = self.grammar.words
        text = needles.draw_value(rng)
        digits = (self.encode(text[at : at + 3])[0] for at in range(0, len(text), 3))
        key = (*self.encode(f" {rng.choice(adjectives)}"), *self.encode(f"-{rng.choice(nouns)}"))
        return key, tuple(digits)

    def draw(self, rng: random.Random, length: int, stored: int | None, asked: int) -> Row:
        """One prompt with its answers: up to `stored` needles, up to `asked` questions.

        The needles stand in noise, or with `stored` None there are only needles, as many as fit.
        The row has exactly `length` tokens, the last answer included, when the grammar fills its
        haystack, and at most that otherwise. ValueError if there is no room for one needle and its
        question.
        """
        room = length - len(self.header)
        pairs: dict[tuple[int, ...], tuple[int, ...]] = {}
        queries: list[tuple[list[int], list[int]]] = []
        while stored is None or len(pairs) < stored:
            key, value = self.pair(rng)
            cost = len(write(self.needle[1], key, value))
            query = write(self.question, key, value), write(self.answer, key, value)
            wanted = len(queries) < asked
            if wanted:
                cost += sum(map(len, query))
            if cost > room:
                break
            if key in pairs:
                continue
            room -= cost
            pairs[key] = value
            if wanted:
                queries.append(query)
        if not queries:
            raise ValueError(f"{length} tokens have no room for a needle and its question")
        ids = self.header + self.haystack(rng, list(pairs.items()), room, noisy=stored is not None)
        answers: dict[int, int] = {}
        rng.shuffle(queries)
        for question, answer in queries:
            ids += question
            answers |= {len(ids) - 1 + at: token for at, token in enumerate([*answer, self.end])}
            ids += answer
        return Row(ids, answers)

    def haystack(self, rng: random.Random, pairs: list[Pair], room: int, *, noisy: bool) -> list[int]:
        """Needles at random places among the noise that `room` (tokens) holds, or among none."""
        cycle = self.noise[1]
        count = 0
        while noisy and len(cycle[count % len(cycle)]) <= room:
            room -= len(cycle[count % len(cycle)])
            count += 1
        order: list[Pair | None] = [None] * count
        for pair in pairs:
            order.insert(rng.randrange(len(order) + 1), pair)
        ids: list[int] = []
        seen = 0
        for place in order:
            form = 1 if ids else 0
            if place is None:
                ids += self.noise[form][seen % len(cycle)]
                seen += 1
            else:
                ids += write(self.needle[form], *place)
        if self.grammar.fill:
            words = itertools.islice(itertools.cycle(cycle), count % len(cycle), None)
            rest = itertools.chain.from_iterable(words)
            ids += itertools.islice(rest, room)
        return ids

    def bare(self, rng: random.Random, length: int) -> Row:
        """An exercise: keys with values and nothing else, then all again in another order."""
        middle, end = self.encode(" is "), self.encode(".")
        pairs: list[Pair] = []
        room = length
        while True:
            key, value = self.pair(rng)
            room -= 2 * (len(key) + len(middle) + len(value) + len(end))
            if room < 0:
                break
            pairs.append((key, value))
        ids: list[int] = []
        answers: dict[int, int] = {}
        for again in (False, True):
            rng.shuffle(pairs)
            for key, value in pairs:
                ids += [*key, *middle]
                if again:
                    answers |= {len(ids) - 1 + at: token for at, token in enumerate(value)}
                ids += [*value, *end]
        return Row(ids, answers)


def write(parts: list[list[int] | str], key: tuple[int, ...], value: tuple[int, ...]) -> list[int]:
    """The ids of `parts` with the marks replaced."""
    ids: list[int] = []
    for part in parts:
        if isinstance(part, str):
            ids += key if part == KEY else value
        else:
            ids += part
    return ids


def echo(rng: random.Random, length: int, vocabulary: int) -> Row:
    """An exercise: random tokens, then the same tokens once more."""
    half = [rng.randrange(vocabulary) for _ in range(length // 2)]
    ids = half + half
    return Row(ids, {at: ids[at + 1] for at in range(len(half), len(ids) - 1)})
