"""Retrieval prompts of `context` tokens: a needle at some depth of a haystack, and the question."""

import bisect
import hashlib
import itertools
import random
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from harness.common.errors import UserError
from harness.tasks import texts
from harness.tasks.base import Prepared
from harness.tasks.prepared import prepare_once
from harness.tasks.retrieval import needles

PROMPT_VERSION = 2  # of the prompts, part of the recipe that names their folder
MAX_START_GAP = 400  # characters between possible starts of a text's haystack
MIN_UNITS = 16  # of a text's haystack: a needle lies within half a unit of its nominal depth
# the end of a sentence with its white space; full-width stops need none
SENTENCE_END = re.compile(r"[.!?…؟।۔]+[\"'”’»)\]]*\s+|[。！？｡]+[”’」』）]*\s*")
Encode = Callable[[str], list[int]]


def encoder(tokenizer) -> Encode:
    """Return the function from text to ids, with the tokenizer's prefix and without truncation."""
    return lambda text: tokenizer(text, truncation=False, verbose=False)["input_ids"]


def make_samples(
    encode: Encode,
    *,
    samples: int,
    context: int,
    data_seed: int,
    haystack: str,
    text: str | None,
    depths: Sequence[float],
) -> Iterator[dict]:
    """Yield samples; sample i does not depend on the number of samples.

    Args:
        encode: text to ids, see `encoder`.
        samples: number of samples.
        context: tokens of each prompt.
        data_seed: seed of keys, values, depths and haystacks.
        haystack: "noise", "distractors" or "text".
        text: file of the haystack "text".
        depths: depths of the needles, from 0 to 1.

    Yields:
        dict with key (the sample's number), prompt, answer, value, depth, distance, tokens and, for
        a text, text_share. distance: tokens from the needle's end to the prompt's end. tokens:
        `context`, or slightly fewer if the tokenizer allows no exact length. text_share: the share
        of tokens from the file.

    Raises:
        UserError: if the text cannot be read, or no part of it fits into the context.
    """
    source = split_text(read_text(text), MAX_START_GAP) if haystack == "text" else None
    for number in range(samples):
        # each cycle has all depths in random order, so that no depth coincides with certain draws
        cycle, position = divmod(number, len(depths))
        order = list(depths)
        random.Random(f"depths {data_seed} {cycle}").shuffle(order)
        rng = random.Random(f"sample {data_seed} {number}")
        prompt = _Prompt(encode, context, order[position], rng, haystack, source)
        if source and not prompt.units:
            raise UserError(f"context={context} leaves no room for the text of {text}: choose a larger context.")
        yield {"key": number, **prompt.sample()}


def doc_hash(prompt: str, value: str) -> str:
    """Return the hash that identifies a question: of the prompt and the value."""
    return hashlib.sha256((prompt + "\0" + value).encode()).hexdigest()[:16]


def overhead(encode: Encode) -> int:
    """Return the tokens of a prompt without haystack, the largest of 32 random prompts."""
    rng = random.Random("shortest")
    keys = [needles.draw_key(rng) for _ in range(32)]
    return max(len(encode(f"{needles.HEADER}{needles.needle(k, '1234567')}{needles.question(k)}")) for k in keys)


def read_text(path: str | None) -> str:
    """Return a user's text with Unix line ends, stripped of white space at both ends.

    Raises:
        UserError: without a path, or if the file is missing, unreadable or blank.
    """
    if not path:
        raise UserError("task.retrieval.haystack=text needs a file: set task.retrieval.text=FILE.")
    return texts.read_text("task.retrieval.text", path).replace("\r\n", "\n").replace("\r", "\n").strip()


def text_hash(path: str) -> str:
    """Return the sha256 of the text of `read_text`."""
    return texts.text_hash(read_text(path))


def split_text(text: str, max_length: int) -> list[str]:
    """Split a text into sentences of at most `max_length` characters, without loss.

    Longer sentences are split into lines, then words, then characters.
    """
    parts = [text]
    for end in (SENTENCE_END, re.compile(r"\n\s*"), re.compile(r"\s+"), re.compile("(?s).")):
        pieces = [[part] if len(part) <= max_length else _split_after(end, part) for part in parts]
        parts = list(itertools.chain.from_iterable(pieces))
    return parts


def _split_after(end: re.Pattern, text: str) -> list[str]:
    ends = [0, *(m.end() for m in end.finditer(text)), len(text)]
    return [text[a:b] for a, b in itertools.pairwise(ends) if a < b]


def prepare_samples(folder: Path, encode: Encode, tokenizer_name: str, **arguments) -> Prepared:
    """Return the samples on disk, and make them if they are not there yet.

    Args:
        folder: folder of all prepared data.
        encode: text to ids, see `encoder`.
        tokenizer_name: name or hash of the tokenizer.
        arguments: further arguments of `make_samples`.

    Raises:
        UserError: if they cannot be stored, and as `make_samples`.
    """
    recipe = {"version": PROMPT_VERSION, "tokenizer": tokenizer_name, **arguments}
    if arguments["text"]:
        recipe["text"] = text_hash(arguments["text"])

    def make(draft: Path) -> Prepared:
        import datasets  # takes half a second, which commands without prompts need not pay

        datasets.disable_progress_bars()
        samples = list(make_samples(encode, **arguments))
        datasets.Dataset.from_list(samples).save_to_disk(str(draft))
        return Prepared.from_samples(draft, samples)

    return prepare_once(folder, "retrieval", recipe, make)


def load_samples(place: Path) -> list[dict]:
    """Return the samples that `prepare_samples` stored."""
    import datasets  # takes half a second, as above

    return datasets.load_from_disk(str(place), keep_in_memory=True).to_list()


class _Prompt:
    """One prompt: as many units of the haystack as fit, then words of the noise to fill the length.

    The filled length is exact, or slightly less if the tokenizer allows no exact length. Units end
    with white space.
    """

    def __init__(self, encode, context, depth, rng, haystack, source):
        self.encode, self.context, self.depth = encode, context, depth
        self.key, self.value = needles.draw_key(rng), needles.draw_value(rng)
        self.needle = needles.needle(self.key, self.value)
        self.by_length = haystack == "text"
        if haystack == "text":
            self.units = self._text_units(source, rng)
        elif haystack == "noise":
            self.units = self._fitting_units(f"{sentence} " for sentence in itertools.cycle(needles.NOISE))
        else:
            self.units = self._fitting_units(self._distractors(rng))

    def _text_units(self, source: list[str], rng) -> list[str]:
        """Return as much of the text as fits, in units, from a random start and cyclically.

        It ends at the end of a word if there is one near.
        """
        first = rng.randrange(len(source))
        rotated = _end_with_space("".join(source[first:])) + _end_with_space("".join(source[:first]))
        length = 4 * self.context  # characters, too many for the context after the loop
        while self._tokens([_repeat(rotated, length)]) <= self.context:
            length *= 2
        repeated = _repeat(rotated, length)
        end = bisect.bisect_right(range(length), self.context, key=lambda n: self._tokens([repeated[:n]])) - 1
        ends = [0, *(m.end() for m in re.finditer(r"\S+", repeated[:end]))]
        if end and not repeated[end].isspace() and ends[-1] == end and ends[-2] > end - end // MIN_UNITS:
            ends.pop()
        end = ends[-1]
        while end > 0 and self._tokens(units := split_text(repeated[:end], max(1, end // MIN_UNITS))) > self.context:
            end -= 1
        return units if end > 0 else []

    def _distractors(self, rng) -> Iterator[str]:
        used = {self.key}
        while True:
            key = needles.draw_key(rng)
            if key not in used:
                used.add(key)
                yield f"{needles.needle(key, needles.draw_value(rng))} "

    def _text(self, units: list[str], fill: str) -> tuple[str, str]:
        """Return the prompt in two parts, split after the needle."""
        index = self._needle_index(units)
        before = needles.HEADER + _end_with_space("".join(units[:index])) + self.needle
        after = (_end_with_space("".join(units[index:])) + fill).rstrip()
        return before, (f" {after}" if after else "") + needles.question(self.key)

    def _needle_index(self, units: list[str]) -> int:
        """Return the number of units before the needle; units of a text are weighted by length."""
        if not self.by_length:
            return round(self.depth * len(units))
        ends = [0, *itertools.accumulate(map(len, units))]
        return min(range(len(ends)), key=lambda n: abs(ends[n] - self.depth * ends[-1]))

    def _tokens(self, units: Sequence[str], fill: str = "") -> int:
        return len(self.encode("".join(self._text(list(units), fill))))

    def _room(self) -> int:
        return self.context - self._tokens([])

    def sample(self) -> dict:
        """Return the sample, without its key."""
        fill, tokens = self._fill()
        before, after = self._text(self.units, fill)
        sample = {
            "prompt": before + after,
            "answer": needles.answer(self.value),
            "value": self.value,
            "depth": self.depth,
            "distance": tokens - len(self.encode(before)),
            "tokens": tokens,
        }
        if self.by_length:
            sample["text_share"] = (tokens - self._tokens([], fill)) / tokens
        return sample

    def _fitting_units(self, candidates: Iterator[str]) -> list[str]:
        """Return as many units as fit.

        Each unit is tokenized once; a final check accounts for tokens that span two units.
        """
        room = self._room()
        units: list[str] = []
        count = {}
        while room > 0:
            unit = next(candidates)
            if unit not in count:
                count[unit] = max(1, len(self.encode(f" {unit.rstrip()}")) - len(self.encode("")))
            room -= count[unit]
            if room >= 0:
                units.append(unit)
        while units and self._tokens(units) > self.context:
            units.pop()
        return units

    def _fill(self) -> tuple[str, int]:
        """Return words of the noise that fill the prompt best, and its length in tokens."""
        cycle = " ".join(needles.NOISE).split()
        tokens = self._tokens(self.units)
        missing = self.context - tokens
        best: tuple[list[str], int] = ([], tokens)

        def prefixes() -> Iterator[list[str]]:
            for words in sorted(range(missing + 1), key=lambda w: abs(w - round(missing * 0.8))):
                fill = (cycle * (words // len(cycle) + 1))[:words]
                yield fill
                if fill:  # a full stop may be a separate token: try without it too
                    yield [*fill[:-1], fill[-1].rstrip(".")]

        def with_last_word() -> Iterator[list[str]]:
            current = best[0]
            for length in range(len(current), max(-1, len(current) - 3), -1):
                for word in sorted({*cycle, *(w.rstrip(".") for w in cycle)}):
                    yield [*current[:length], word]

        for search in (prefixes, with_last_word):
            for fill in search():
                tokens = self._tokens(self.units, " ".join(fill))
                if best[1] < tokens <= self.context:
                    best = fill, tokens
                if best[1] == self.context:
                    return " ".join(best[0]), best[1]
        return " ".join(best[0]), best[1]


def _end_with_space(text: str) -> str:
    """Return the text with white space at its end."""
    return text if not text or text[-1].isspace() else f"{text} "


def _repeat(text: str, length: int) -> str:
    """Return `length` characters of the text, repeated cyclically."""
    return (text * (length // len(text) + 1))[:length]
