"""Training prompts, generated as token ids.

Prompts are joined from ids of fixed pieces whose borders are borders of pre-tokens. The ids thus
equal those of the tokenizer, at a small part of its cost.
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
    """Token ids; answers: tokens of answers and end tokens, by the positions that predict them."""

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
        # The first form of a sentence opens the haystack, the second follows another sentence.
        self.noise = [[encode(joint + s) for s in grammar.noise] for joint in ("", grammar.joint)]
        self.needle = [self.pieces(joint + grammar.needle) for joint in ("", grammar.joint)]
        self.question = self.pieces(grammar.question)
        self.answer = self.pieces(grammar.answer)

    def pieces(self, text: str) -> list[list[int] | str]:
        """Return the ids of fixed parts of a text, with the placeholders KEY and VALUE."""
        parts = re.split(f"( {KEY}|{VALUE})", text)
        return [p.strip() if p.strip() in (KEY, VALUE) else self.encode(p) for p in parts if p]

    def pair(self, rng: random.Random) -> Pair:
        """Draw a key, with its leading space, and a value, as ids."""
        adjectives, nouns = self.grammar.words
        text = needles.draw_value(rng)
        digits = (self.encode(text[first : first + 3])[0] for first in range(0, len(text), 3))
        key = (*self.encode(f" {rng.choice(adjectives)}"), *self.encode(f"-{rng.choice(nouns)}"))
        return key, tuple(digits)

    def draw(self, rng: random.Random, length: int, stored: int | None, questions: int) -> Row:
        """Draw a prompt with its answers.

        Args:
            rng: source of the prompt.
            length: tokens of the row, with the last answer: exact if the grammar fills its
                haystack, else an upper limit.
            stored: maximum number of needles among noise, or None for needles only.
            questions: maximum number of questions.

        Raises:
            ValueError: if there is no room for a needle and its question.
        """
        room = length - len(self.header)
        pairs: dict[tuple[int, ...], tuple[int, ...]] = {}
        queries: list[tuple[list[int], list[int]]] = []
        while stored is None or len(pairs) < stored:
            key, value = self.pair(rng)
            cost = len(write(self.needle[1], key, value))
            query = write(self.question, key, value), write(self.answer, key, value)
            is_queried = len(queries) < questions
            if is_queried:
                cost += sum(map(len, query))
            if cost > room:
                break
            if key in pairs:
                continue
            room -= cost
            pairs[key] = value
            if is_queried:
                queries.append(query)
        if not queries:
            raise ValueError(f"{length} tokens have no room for a needle and its question")
        ids = self.header + self.haystack(rng, list(pairs.items()), room, noisy=stored is not None)
        answers: dict[int, int] = {}
        rng.shuffle(queries)
        for question, answer in queries:
            ids += question
            answers |= {len(ids) - 1 + position: token for position, token in enumerate([*answer, self.end])}
            ids += answer
        return Row(ids, answers)

    def haystack(self, rng: random.Random, pairs: list[Pair], room: int, *, noisy: bool) -> list[int]:
        """Return the ids of a haystack with needles at random positions.

        Args:
            rng: source of the positions.
            pairs: keys and values of the needles.
            room: tokens left for noise.
            noisy: whether there is noise.
        """
        cycle = self.noise[1]
        count = 0
        while noisy and len(cycle[count % len(cycle)]) <= room:
            room -= len(cycle[count % len(cycle)])
            count += 1
        order: list[Pair | None] = [None] * count
        for pair in pairs:
            order.insert(rng.randrange(len(order) + 1), pair)
        ids: list[int] = []
        noise_index = 0
        for item in order:
            form = 1 if ids else 0
            if item is None:
                ids += self.noise[form][noise_index % len(cycle)]
                noise_index += 1
            else:
                ids += write(self.needle[form], *item)
        if self.grammar.fill:
            words = itertools.islice(itertools.cycle(cycle), count % len(cycle), None)
            rest = itertools.chain.from_iterable(words)
            ids += itertools.islice(rest, room)
        return ids

    def bare(self, rng: random.Random, length: int) -> Row:
        """Draw an exercise: keys with values, then all again in another order."""
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
        for with_answers in (False, True):
            rng.shuffle(pairs)
            for key, value in pairs:
                ids += [*key, *middle]
                if with_answers:
                    answers |= {len(ids) - 1 + position: token for position, token in enumerate(value)}
                ids += [*value, *end]
        return Row(ids, answers)


def write(parts: list[list[int] | str], key: tuple[int, ...], value: tuple[int, ...]) -> list[int]:
    """Return the ids of `parts` with replaced placeholders.

    Args:
        parts: ids and placeholders, see `Prompts.pieces`.
        key: ids for KEY.
        value: ids for VALUE.
    """
    ids: list[int] = []
    for part in parts:
        if isinstance(part, str):
            ids += key if part == KEY else value
        else:
            ids += part
    return ids


def echo(rng: random.Random, length: int, vocabulary: int) -> Row:
    """Draw an exercise: random tokens, repeated once.

    Args:
        rng: source of the tokens.
        length: tokens of the row.
        vocabulary: tokens of the vocabulary.
    """
    half = [rng.randrange(vocabulary) for _ in range(length // 2)]
    ids = half + half
    return Row(ids, {position: ids[position + 1] for position in range(len(half), len(ids) - 1)})
