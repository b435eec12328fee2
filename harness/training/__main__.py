"""Train the embedded models from scratch on a CPU: `python -m harness.training`.

For the model that reads novels: `python -m harness.training --only tiny-books --books FOLDER`.
"""

import argparse
import functools
import sys
from collections.abc import Sequence
from pathlib import Path

from harness.common.command import Parser, command
from harness.common.errors import EXIT_OK
from harness.common.files import write_atomic
from harness.common.paths import EMBEDDED
from harness.training import books, books_card, books_measure, books_train, card, evaluate, recipe


@command
def main(arguments: Sequence[str]) -> int:
    """Run the command and return the exit code: 0, or 2 for a mistake."""
    parser = Parser(prog="python -m harness.training", description=__doc__)
    models = [*sorted(recipe.FINAL_PHASES), books_train.NAME]
    parser.add_argument("--only", choices=models, help="train only this model; default: the models that need no novels")
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
    options = parser.parse_args(arguments)
    if options.measure and options.books is None:
        parser.error(f"--measure is for {books_train.NAME} alone: give --only {books_train.NAME} --books FOLDER")
    if (options.only == books_train.NAME) != (options.books is not None):
        parser.error(f"--only {books_train.NAME} and --books FOLDER go together")
    if options.books is None:
        train_prompt_models(options)
    else:
        train_novel_model(options)
    return EXIT_OK


def train_prompt_models(options: argparse.Namespace) -> None:
    """Train the models that read retrieval prompts, and write their cards."""
    names = [options.only] if options.only else list(recipe.FINAL_PHASES)
    costs = recipe.make(names, options.out, options.steps_scale)
    for name in names:
        accuracies = evaluate.measure(options.out / name, samples=200 if options.steps_scale >= 1 else 4)
        arguments = [f"--only {options.only}"] if options.only else []
        arguments += [f"--steps-scale {options.steps_scale}"] if options.steps_scale != 1 else []
        command = " ".join(["python -m harness.training", *arguments])
        card.write(options.out / name, command, costs[name], accuracies)
        for kind, length, share in accuracies.table:
            print(f"{name}: {kind}, {length} tokens: {share:.3f}")


def train_novel_model(options: argparse.Namespace) -> None:
    """Train or measure the model that reads novels, and write its card."""
    texts = books.read_books(options.books)
    for sentence in books.text_differences(texts):
        print(sentence, file=sys.stderr)
    folder = options.out / books_train.NAME
    say = functools.partial(print, flush=True)
    if not options.measure:
        books_train.make(texts, folder, recipe.scale_steps(books_train.PHASE, options.steps_scale), say)
    record = books_train.read_record(folder)
    chunks = books_measure.CHUNKS if options.steps_scale >= 1 else books_measure.DRAWS
    figures = books_measure.measure(folder, texts, say, chunks)
    write_atomic(folder / "measured.json", figures)
    books_card.write(folder, record, figures)


if __name__ == "__main__":
    sys.exit(main())
