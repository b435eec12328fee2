"""The novels for training and measuring tiny-books, and their reader."""

import re
from dataclasses import dataclass
from pathlib import Path

from harness.common.errors import UserError
from harness.tasks.texts import text_hash


@dataclass(frozen=True)
class Book:
    """A novel of Project Gutenberg.

    part, file: its path in the folder is PART/FILE.
    number: its number at Project Gutenberg.
    sha256: of its text after `body`.
    """

    part: str
    file: str
    title: str
    author: str
    number: int
    sha256: str


BOOKS = (
    Book(
        "train",
        "a-tale-of-two-cities.txt",
        "A Tale of Two Cities",
        "Charles Dickens",
        98,
        "5faf3c53a19a8d78a8a30e2740d2b03c2e7306adf86cdf434509e0381badea32",
    ),
    Book(
        "train",
        "crime-and-punishment.txt",
        "Crime and Punishment",
        "Fyodor Dostoevsky, translated by Constance Garnett",
        2554,
        "34a956135c9d172a28416ae0835ff2176911bd9d321a986fd17c0182135d2964",
    ),
    Book(
        "train",
        "david-copperfield.txt",
        "David Copperfield",
        "Charles Dickens",
        766,
        "91b1a66d366c0a2629fe7f780a1c6b09c322032a9077f0659bef000d8cdda62e",
    ),
    Book(
        "train",
        "great-expectations.txt",
        "Great Expectations",
        "Charles Dickens",
        1400,
        "f3a5b94d61f8adbbc2d2195e10e8a5498a12c3b6b17ade9fda7eed30f5b3154c",
    ),
    Book(
        "train",
        "jane-eyre.txt",
        "Jane Eyre",
        "Charlotte Brontë",
        1260,
        "1f283989f551718b76dcfdc1ecd6df2d3051fd8ae8be8afd6b9098cca8acb75e",
    ),
    Book(
        "train",
        "middlemarch.txt",
        "Middlemarch",
        "George Eliot",
        145,
        "3d847bc5d5ed4305eb2176b68c46af70e12b6a5748c5693918d472ea31b59813",
    ),
    Book(
        "train",
        "pride-and-prejudice.txt",
        "Pride and Prejudice",
        "Jane Austen",
        1342,
        "d02c06ecdee0120842aa1274288a07fe68d5316d1e8285853eaf4fc65a0b39a0",
    ),
    Book(
        "train",
        "ulysses.txt",
        "Ulysses",
        "James Joyce",
        4300,
        "a95febec982c6ab1ffd368eb680ed651365f7050f94660ff25d622a3a2e4140f",
    ),
    Book(
        "validation",
        "sherlock-holmes.txt",
        "The Adventures of Sherlock Holmes",
        "Arthur Conan Doyle",
        1661,
        "369b44ac9865a7dd3c06eb27212002653a7ae92422aaeb5f8b15fe9f429fbf8e",
    ),
    Book(
        "test",
        "moby-dick.txt",
        "Moby-Dick",
        "Herman Melville",
        2701,
        "98b2f52deac5d83bd9aa9509dcf9b706216072abe75ef1e309767d03fe6f95c2",
    ),
)
HEADER = re.compile(r"^\*\*\* ?START OF (?:THE|THIS) PROJECT GUTENBERG[^\n]*\n", re.MULTILINE)
LICENCE = re.compile(r"^\*\*\* ?END OF (?:THE|THIS) PROJECT GUTENBERG", re.MULTILINE)


def body(text: str) -> str:
    """Return the text without Project Gutenberg's header and licence.

    Lines end with a line feed. White space around the text is stripped, except for one line feed at
    its end.
    """
    text = text.replace("\r\n", "\n")
    if start := HEADER.search(text):
        text = text[start.end() :]
    if end := LICENCE.search(text):
        text = text[: end.start()]
    return text.strip() + "\n"


def unwrap(text: str) -> str:
    """Return the text with one line for each paragraph, and single blanks in it.

    Blank lines separate paragraphs and disappear; two or more of them, as between chapters, become
    one. Verse and tables lose their lines.
    """
    parts = re.split(r"\n((?:[ \t]*\n)+)", text.strip())
    lines = [" ".join(parts[0].split())]
    for gap, paragraph in zip(parts[1::2], parts[2::2], strict=True):
        lines += [""] * (gap.count("\n") > 1) + [" ".join(paragraph.split())]
    return "\n".join(lines) + "\n"


def read_books(folder: Path) -> dict[Book, str]:
    """Read all novels, in order of `BOOKS`; raise UserError if one is missing or not UTF-8."""
    if not folder.is_dir():
        raise UserError(f"--books {folder}: there is no such folder.")
    texts = {}
    for book in BOOKS:
        path = folder / book.part / book.file
        try:
            texts[book] = body(path.read_bytes().decode("utf-8-sig"))
        except FileNotFoundError:
            raise UserError(
                f"{path} is missing: save {book.title} there, Project Gutenberg's number {book.number}, as plain UTF-8."
            ) from None
        except UnicodeDecodeError:
            raise UserError(f"{path} is not UTF-8: save the novel in that encoding.") from None
    return texts


def text_differences(texts: dict[Book, str]) -> list[str]:
    """Return a sentence for each text that differs from the embedded model's training text."""
    return [
        f"{book.part}/{book.file} is not the text the embedded model was made with (sha256 {text_hash(text)[:12]}, not "
        f"{book.sha256[:12]}): figures will differ."
        for book, text in texts.items()
        if text_hash(text) != book.sha256
    ]
