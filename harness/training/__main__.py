"""Train the embedded models from scratch on a CPU: `python -m harness.training`.

For the models that read texts: `--only tiny-books --books FOLDER` and `--only tiny-code --packages FOLDER`.
"""

import argparse
import dataclasses
import functools
import sys
from collections.abc import Sequence
from pathlib import Path

from harness.common.command import Parser, command
from harness.common.errors import EXIT_OK, UserError
from harness.common.files import write_atomic
from harness.common.paths import EMBEDDED, ROOT
from harness.tasks.texts import text_hash
from harness.training import (
    books,
    books_card,
    books_measure,
    card,
    code_card,
    code_measure,
    evaluate,
    held_out,
    packages,
    recipe,
    text_model,
    text_recipes,
)

FOLDER_OPTIONS = {"tiny-books": "books", "tiny-code": "packages"}


@command
def main(arguments: Sequence[str]) -> int:
    """Run the command and return the exit code: 0, or 2 for a mistake."""
    options = parser().parse_args(arguments)
    check(options)
    if options.only == "tiny-books":
        train_novel_model(options)
    elif options.only == "tiny-code":
        train_code_model(options)
    else:
        train_prompt_models(options)
    return EXIT_OK


def parser() -> Parser:
    """Return the parser of the command line."""
    made = Parser(prog="python -m harness.training", description=__doc__)
    models = [*sorted(recipe.FINAL_PHASES), *text_recipes.RECIPES]
    made.add_argument("--only", choices=models, help="train only this model; default: those that need no texts")
    made.add_argument(
        "--books",
        type=Path,
        metavar="FOLDER",
        help="the novels of tiny-books, FOLDER/train/*.txt, validation and test, named in training/books.py",
    )
    made.add_argument(
        "--packages",
        type=Path,
        metavar="FOLDER",
        help="the source distributions of tiny-code, named in training/packages.py",
    )
    made.add_argument("--download", action="store_true", help="fetch those that FOLDER lacks with pip")
    made.add_argument("--out", type=Path, default=EMBEDDED, help="folder of the models")
    made.add_argument(
        "--work",
        type=Path,
        metavar="FOLDER",
        help="folder of checkpoints of a model that reads texts; default: OUT/MODEL/work",
    )
    made.add_argument("--resume", action="store_true", help="go on from the checkpoint in --work")
    made.add_argument(
        "--steps",
        type=steps,
        metavar="LENGTH=N,...",
        help="steps by row length of a model that reads texts, instead of the recipe's",
    )
    made.add_argument("--decay", type=float, metavar="X", help="its final share of steps with falling rates")
    made.add_argument(
        "--steps-scale",
        type=float,
        default=1.0,
        metavar="X",
        help="X times the steps of every stage (0 for a smoke test)",
    )
    made.add_argument(
        "--measure", action="store_true", help="train nothing: measure the model of texts that is in --out again"
    )
    made.add_argument("--passages", type=int, metavar="N", help="passages of text that are measured")
    return made


def steps(text: str) -> dict[int, int]:
    """Return the steps by row length of "256=600,2048=900".

    Raises:
        argparse.ArgumentTypeError: for any other text, and for rows longer than a step.
    """
    try:
        found = {int(length): int(count) for length, count in (part.split("=") for part in text.split(","))}
    except ValueError:
        found = {}
    if not found or min(*found, *found.values()) < 1 or max(found) > text_recipes.TOKENS_PER_STEP:
        raise argparse.ArgumentTypeError(
            f"{text} is not LENGTH=N,... as in 256=600, with rows of at most {text_recipes.TOKENS_PER_STEP} tokens"
        )
    return found


def check(options: argparse.Namespace) -> None:
    """Raise UserError for options that do not go together."""
    for model, option in FOLDER_OPTIONS.items():
        if (options.only == model) != (getattr(options, option) is not None):
            raise UserError(f"--only {model} and --{option} FOLDER go together")
    if options.only in FOLDER_OPTIONS:
        return
    for option in ("measure", "resume", "work", "steps", "decay", "passages"):
        if getattr(options, option):
            raise UserError(
                f"--{option} is for the models that read texts: give --only tiny-books --books FOLDER, or "
                "--only tiny-code --packages FOLDER"
            )


def text_recipe(options: argparse.Namespace) -> text_recipes.Recipe:
    """Return the recipe of a model that reads texts, with the steps of the command line."""
    chosen = text_recipes.RECIPES[options.only]
    phase = chosen.phase
    if options.steps:
        phase = text_recipes.phase(phase.name, options.steps, phase.decay)
    if options.decay is not None:
        phase = dataclasses.replace(phase, decay=options.decay)
    return dataclasses.replace(chosen, phase=recipe.scale_steps(phase, options.steps_scale))


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


def train_text_model(options: argparse.Namespace, texts: dict[str, list[str]], facts: dict) -> dict:
    """Train a model that reads texts unless it is only measured, and return its record.

    Args:
        options: the command line.
        texts: the texts of "train" and "validation".
        facts: what else the record holds.
    """
    folder = options.out / options.only
    if not options.measure:
        work = options.work or folder / "work"
        say = functools.partial(print, flush=True)
        text_model.make(text_recipe(options), texts, folder, work, say, resume=options.resume, facts=facts)
    return text_model.read_record(folder)


def train_novel_model(options: argparse.Namespace) -> None:
    """Train or measure tiny-books, and write its card.

    Raises:
        UserError: for novels that cannot be read, and for a model that an earlier recipe trained.
    """
    texts = books.read_books(options.books)
    for sentence in books.text_differences(texts):
        print(sentence, file=sys.stderr)
    shaped = {book: books.unwrap(text) for book, text in texts.items()}
    parts = {part: [text for book, text in shaped.items() if book.part == part] for part in ("train", "validation")}
    facts = {
        "unwrapped": True,
        "texts": {f"{book.part}/{book.file}": text_hash(text) for book, text in texts.items()},
    }
    record = train_text_model(options, parts, facts)
    if not record.get("unwrapped"):
        raise UserError(f"{options.out / options.only} reads hard line breaks, by an earlier recipe: train it again.")
    chunks = options.passages or (books_measure.CHUNKS if options.steps_scale >= 1 else books_measure.DRAWS)
    folder = options.out / options.only
    figures = books_measure.measure(folder, texts, functools.partial(print, flush=True), chunks)
    write_atomic(folder / "measured.json", figures)
    books_card.write(folder, record, figures)


def train_code_model(options: argparse.Namespace) -> None:
    """Train or measure tiny-code, and write its figures and card."""
    if options.download:
        packages.download(options.packages)
    sources = {package: packages.read_source(options.packages, package) for package in packages.PACKAGES}
    parts = {
        part: [text for package, files in sources.items() if package.part == part for text in files]
        for part in ("train", "validation")
    }
    digests = {package.name: packages.digest(files) for package, files in sources.items()}
    record = train_text_model(options, parts, {"texts": digests})
    folder = options.out / options.only
    passages = options.passages or (code_measure.PASSAGES if options.steps_scale >= 1 else code_measure.DRAWS)
    say = functools.partial(print, flush=True)
    figures = code_measure.measure(folder, held_out.code(options.packages), say, passages)
    results = ROOT / "docs" / "results" if options.out == EMBEDDED else folder
    write_atomic(results / "tiny_code.json", figures)
    code_card.write(folder, record, figures)


if __name__ == "__main__":
    sys.exit(main())
