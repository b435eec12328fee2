"""Write the embedded texts, which no embedded model was trained on.

`python -m harness.training.held_out --books FOLDER --packages FOLDER`, with the folders of `python -m
harness.training`.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from harness.common.command import Parser, command
from harness.common.errors import EXIT_OK
from harness.common.paths import TEXTS
from harness.tasks.texts import text_hash
from harness.training import books, packages

NOVEL = "validation"  # part of the novel; that of the test is larger than 1 MB

README = """# Held-out texts

Texts to evaluate language models on without a download. No embedded model was trained on them.

| file | what it is | bytes | sha256 |
|---|---|---:|---|
{rows}

* `novel.txt`: {title} by {author},
  number {number} of Project Gutenberg, in the public domain in the United States. Project Gutenberg's
  header and licence are cut off; each paragraph is one line with single blanks; a blank line is left
  where there were two or more.
* `code.txt`: the Python files of {packages},
  in order of their paths, one after the other, without tests, documentation and examples.
  `LICENSES.txt` holds their licences.

Made by

    python -m harness.training.held_out --books FOLDER --packages FOLDER
"""


def code(folder: Path) -> str:
    """Return the files of the test packages, one after the other.

    Args:
        folder: folder of the archives.
    """
    tested = [package for package in packages.PACKAGES if package.part == "test"]
    return "".join(text for package in tested for text in packages.read_source(folder, package))


def write(out: Path, novels: Path, archives: Path) -> None:
    """Write novel.txt, code.txt, LICENSES.txt and README.md.

    Args:
        out: their folder.
        novels: folder of the novels, as in `books.read_books`.
        archives: folder of the archives, as in `packages.members`.
    """
    book, text = next((b, t) for b, t in books.read_books(novels).items() if b.part == NOVEL)
    tested = [package for package in packages.PACKAGES if package.part == "test"]
    texts = {"novel.txt": books.unwrap(text), "code.txt": code(archives)}
    out.mkdir(parents=True, exist_ok=True)
    for name, content in texts.items():
        (out / name).write_text(content, encoding="utf-8", newline="\n")
    licences = "\n\n".join(packages.read_licence(archives, package) for package in tested)
    (out / "LICENSES.txt").write_text(licences, encoding="utf-8", newline="\n")
    kinds = {"novel.txt": book.title, "code.txt": "Python source"}
    rows = [f"| `{n}` | {kinds[n]} | {len(t.encode())} | `{text_hash(t)}` |" for n, t in texts.items()]
    readme = README.format(
        rows="\n".join(rows),
        title=book.title,
        author=book.author,
        number=book.number,
        packages=" and ".join(f"{p.name} {p.version} ({p.licence})" for p in tested),
    )
    (out / "README.md").write_text(readme)


@command
def main(arguments: Sequence[str]) -> int:
    """Run the command and return the exit code: 0, or 2 for a mistake."""
    parser = Parser(prog="python -m harness.training.held_out", description=__doc__)
    parser.add_argument("--books", type=Path, metavar="FOLDER", required=True, help="the novels of tiny-books")
    parser.add_argument("--packages", type=Path, metavar="FOLDER", required=True, help="the archives of tiny-code")
    parser.add_argument("--out", type=Path, default=TEXTS, help="folder of the texts")
    options = parser.parse_args(arguments)
    write(options.out, options.books, options.packages)
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
