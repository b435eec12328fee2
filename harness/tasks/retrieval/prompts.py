"""Retrieval prompts of `context` tokens: a needle at a chosen depth of a haystack, then the
question."""

import bisect
import hashlib
import itertools
import random
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import datasets

from harness.common.errors import UserError
from harness.tasks.base import Prepared
from harness.tasks.kept import keep
from harness.tasks.retrieval import needles

VERSION = 2  # of the way prompts are kept: part of what a data set's name is hashed from
STRETCH = 400  # characters at most between the places at which a text's haystack may begin
PIECES = 16  # of a text's haystack at least: a needle lies within half of one of the depth that it is said to have
# a sentence's end and the white space behind it; full-width stops need none
STOP = re.compile(r"[.!?…؟।۔]+[\"'”’»)\]]*\s+|[。！？｡]+[”’」』）]*\s*")
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
    """Yield the samples: key (number), prompt, answer, value, depth, distance (tokens from the
    needle's end to the prompt's end), tokens (`context`, or a few less where this tokenizer allows
    no other length), and of a user's text text_share (the part of these tokens that is the file's).
    A pure function of its arguments: sample i does not depend on how many are asked for. Raises
    UserError where nothing of the text fits."""
    source = pieces(read_text(text), STRETCH) if haystack == "text" else None
    for number in range(samples):
        # depths are dealt in shuffled rounds: each has every depth once, and no depth falls in step
        # with the draws
        turn, place = divmod(number, len(depths))
        order = list(depths)
        random.Random(f"depths {data_seed} {turn}").shuffle(order)
        rng = random.Random(f"sample {data_seed} {number}")
        prompt = _Prompt(encode, context, order[place], rng, haystack, source)
        if source and not prompt.units:
            raise UserError(f"context={context} leaves no room for the text of {text}: choose a larger context.")
        yield {"key": number, **prompt.sample()}


def doc_hash(prompt: str, value: str) -> str:
    """What tells one question from another: of a prompt as it is fed and the number that is asked
    for."""
    return hashlib.sha256((prompt + "\0" + value).encode()).hexdigest()[:16]


def shortest(encode: Encode) -> int:
    """Tokens of the longest of a few prompts without any haystack: a context must have room for
    them."""
    rng = random.Random("shortest")
    keys = [needles.draw_key(rng) for _ in range(32)]
    return max(len(encode(f"{needles.HEADER}{needles.needle(k, '1234567')}{needles.question(k)}")) for k in keys)


def read_text(path: str | None) -> str:
    """A user's text file, without the white space around it. UserError if there is none."""
    if not path:
        raise UserError("task.retrieval.haystack=text needs a file: set task.retrieval.text=FILE.")
    file = Path(path).expanduser()
    try:
        if not file.is_file():
            raise UserError(f"task.retrieval.text={path}: there is no such file.")
        text = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"task.retrieval.text={path} cannot be read as UTF-8 text: {error}.") from None
    if not text:
        raise UserError(f"task.retrieval.text={path} holds no text.")
    return text


def text_hash(path: str) -> str:
    """sha256 of a user's text, as `read_text` gives it."""
    return hashlib.sha256(read_text(path).encode()).hexdigest()


def pieces(text: str, longest: int) -> list[str]:
    """The text in sentences, and those of more than `longest` characters in lines, then words, then
    characters: joined, they are the text."""
    found = [text]
    for end in (STOP, re.compile(r"\n\s*"), re.compile(r"\s+"), re.compile("(?s).")):
        found = [part for piece in found for part in ([piece] if len(piece) <= longest else _cut_behind(end, piece))]
    return found


def _cut_behind(end: re.Pattern, text: str) -> list[str]:
    places = [0, *(m.end() for m in end.finditer(text)), len(text)]
    return [text[a:b] for a, b in itertools.pairwise(places) if a < b]


def kept(folder: Path, encode: Encode, tokenizer_name: str, **arguments) -> Prepared:
    """The samples, built once, and kept under a hash of all that they depend on."""
    recipe = {"version": VERSION, "tokenizer": tokenizer_name, **arguments}
    if arguments["text"]:
        recipe["text"] = text_hash(arguments["text"])

    def make(draft: Path) -> Prepared:
        datasets.disable_progress_bars()
        made = list(build(encode, **arguments))
        datasets.Dataset.from_list(made).save_to_disk(str(draft))
        return Prepared.of(draft, made)

    return keep(folder, "retrieval", recipe, make)


def read(place: Path) -> datasets.Dataset:
    """The samples that `kept` put there."""
    return datasets.load_from_disk(str(place), keep_in_memory=True)


class _Prompt:
    """One prompt: units of the haystack, as many as fit, then words of the noise until the length
    is exact, or as near below it as words come. Units end with the white space that follows
    them."""

    def __init__(self, encode, context, depth, rng, haystack, source):
        self.encode, self.context, self.depth = encode, context, depth
        self.key, self.value = needles.draw_key(rng), needles.draw_value(rng)
        self.needle = needles.needle(self.key, self.value)
        self.by_length = haystack == "text"
        if haystack == "text":
            self.units = self._of_text(source, rng)
        elif haystack == "noise":
            self.units = self._fitting(f"{sentence} " for sentence in itertools.cycle(needles.NOISE))
        else:
            self.units = self._fitting(self._distractors(rng))

    def _of_text(self, source: list[str], rng) -> list[str]:
        """The text from one of its pieces on, again from its start where it ends, as much of it as
        fits: up to a word's end where there is one near."""
        first = rng.randrange(len(source))
        turned = _spaced("".join(source[first:])) + _spaced("".join(source[:first]))
        beyond = 4 * self.context  # characters that are too many
        while self._tokens([_repeated(turned, beyond)]) <= self.context:
            beyond *= 2
        whole = _repeated(turned, beyond)
        fit = bisect.bisect_right(range(beyond), self.context, key=lambda n: self._tokens([whole[:n]])) - 1
        ends = [0, *(m.end() for m in re.finditer(r"\S+", whole[:fit]))]
        if fit and not whole[fit].isspace() and ends[-1] == fit and ends[-2] > fit - fit // PIECES:
            ends.pop()
        fit = ends[-1]
        while fit > 0 and self._tokens(units := pieces(whole[:fit], max(1, fit // PIECES))) > self.context:
            fit -= 1
        return units if fit > 0 else []

    def _distractors(self, rng) -> Iterator[str]:
        taken = {self.key}
        while True:
            key = needles.draw_key(rng)
            if key not in taken:
                taken.add(key)
                yield f"{needles.needle(key, needles.draw_value(rng))} "

    def _text(self, units: list[str], fill: str) -> tuple[str, str]:
        """(prompt up to the needle's end, the rest)."""
        place = self._place(units)
        before = needles.HEADER + _spaced("".join(units[:place])) + self.needle
        after = (_spaced("".join(units[place:])) + fill).rstrip()
        return before, (f" {after}" if after else "") + needles.question(self.key)

    def _place(self, units: list[str]) -> int:
        """How many units lie before the needle. Those of a text differ in length, and count by
        it."""
        if not self.by_length:
            return round(self.depth * len(units))
        ends = [0, *itertools.accumulate(map(len, units))]
        return min(range(len(ends)), key=lambda n: abs(ends[n] - self.depth * ends[-1]))

    def _tokens(self, units: Sequence[str], fill: str = "") -> int:
        return len(self.encode("".join(self._text(list(units), fill))))

    def _room(self) -> int:
        return self.context - self._tokens([])

    def sample(self) -> dict:
        fill, tokens = self._fill()
        before, after = self._text(self.units, fill)
        found = {
            "prompt": before + after,
            "answer": needles.answer(self.value),
            "value": self.value,
            "depth": self.depth,
            "distance": tokens - len(self.encode(before)),
            "tokens": tokens,
        }
        if self.by_length:
            found["text_share"] = (tokens - self._tokens([], fill)) / tokens
        return found

    def _fitting(self, offered: Iterator[str]) -> list[str]:
        """As many whole units as fit, found by counting each once and correcting for how they
        join."""
        room = self._room()
        units: list[str] = []
        count = {}
        while room > 0:
            unit = next(offered)
            if unit not in count:
                count[unit] = max(1, len(self.encode(f" {unit.rstrip()}")) - len(self.encode("")))
            room -= count[unit]
            if room >= 0:
                units.append(unit)
        while units and self._tokens(units) > self.context:
            units.pop()
        return units

    def _fill(self) -> tuple[str, int]:
        """Words of the noise that make the length exact, or the most that fit where none do; and
        the length, in tokens."""
        cycle = " ".join(needles.NOISE).split()
        tokens = self._tokens(self.units)
        missing = self.context - tokens
        best: tuple[list[str], int] = ([], tokens)

        def leading() -> Iterator[list[str]]:
            for words in sorted(range(missing + 1), key=lambda w: abs(w - round(missing * 0.8))):
                fill = (cycle * (words // len(cycle) + 1))[:words]
                yield fill
                if fill:  # a full stop is a token of its own: the last sentence may also end without it
                    yield [*fill[:-1], fill[-1].rstrip(".")]

        def with_another() -> Iterator[list[str]]:
            found = best[0]
            for kept in range(len(found), max(-1, len(found) - 3), -1):
                for word in sorted({*cycle, *(w.rstrip(".") for w in cycle)}):
                    yield [*found[:kept], word]

        for search in (leading, with_another):
            for fill in search():
                tokens = self._tokens(self.units, " ".join(fill))
                if best[1] < tokens <= self.context:
                    best = fill, tokens
                if best[1] == self.context:
                    return " ".join(best[0]), best[1]
        return " ".join(best[0]), best[1]


def _spaced(text: str) -> str:
    """With white space at its end, so that something may follow."""
    return text if not text or text[-1].isspace() else f"{text} "


def _repeated(text: str, length: int) -> str:
    """So many characters of the text, again from its start where it ends."""
    return (text * (length // len(text) + 1))[:length]
