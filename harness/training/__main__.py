"""Make the embedded models from nothing, on a CPU: `python -m harness.training`, and from a folder
of novels `python -m harness.training --only tiny-books --books FOLDER`."""

import argparse
import functools
import sys
from pathlib import Path

from harness.common.errors import UserError
from harness.common.files import write_atomic
from harness.common.paths import EMBEDDED
from harness.training import books, books_card, books_measure, books_train, card, evaluate, recipe


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m harness.training", description=__doc__)
    known = [*sorted(recipe.FINISH), books_train.NAME]
    parser.add_argument("--only", choices=known, help="make this model alone; default: those that need no text")
    parser.add_argument(
        "--books",
        type=Path,
        metavar="FOLDER",
        help=f"the novels of {books_train.NAME}, FOLDER/train/*.txt, validation and test, named in training/books.py",
    )
    parser.add_argument("--out", type=Path, default=EMBEDDED, help="folder of the models")
    parser.add_argument(
        "--steps-scale",
        type=float,
        default=1.0,
        metavar="X",
        help="X times the steps of every stage (0 for a smoke test)",
    )
    parser.add_argument(
        "--measure", action="store_true", help=f"train nothing: measure the {books_train.NAME} that is in --out again"
    )
    options = parser.parse_args()
    if options.measure and options.books is None:
        parser.error(f"--measure is for {books_train.NAME} alone: give --only {books_train.NAME} --books FOLDER")
    if (options.only == books_train.NAME) != (options.books is not None):
        parser.error(f"--only {books_train.NAME} and --books FOLDER go together")
    if options.books is None:
        prompts(options)
        return
    try:
        novels(options)
    except UserError as error:
        parser.error(str(error))


def prompts(options: argparse.Namespace) -> None:
    """The models that read retrieval prompts."""
    names = [options.only] if options.only else list(recipe.FINISH)
    costs = recipe.make(names, options.out, options.steps_scale)
    for name in names:
        measured = evaluate.measure(options.out / name, samples=200 if options.steps_scale >= 1 else 4)
        asked = [f"--only {options.only}"] if options.only else []
        asked += [f"--steps-scale {options.steps_scale}"] if options.steps_scale != 1 else []
        command = " ".join(["python -m harness.training", *asked])
        card.write(options.out / name, command, costs[name], measured)
        for what, length, share in measured.table:
            print(f"{name}: {what}, {length} tokens: {share:.3f}")


def novels(options: argparse.Namespace) -> None:
    """The model that reads novels."""
    texts = books.read(options.books)
    for sentence in books.differing(texts):
        print(sentence, file=sys.stderr)
    folder = options.out / books_train.NAME
    say = functools.partial(print, flush=True)
    if not options.measure:
        books_train.make(texts, folder, recipe.scaled(books_train.PHASE, options.steps_scale), say)
    made = books_train.told(folder)
    chunks = books_measure.CHUNKS if options.steps_scale >= 1 else books_measure.DRAWS
    measured = books_measure.measure(folder, texts, say, chunks)
    write_atomic(folder / "measured.json", measured)
    books_card.write(folder, made, measured)


if __name__ == "__main__":
    main()
