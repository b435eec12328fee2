"""What a near field is worth, and how far a sliding window gets.

    python -m tests.measure.near text --text FOLDER/test/moby-dick.txt       # bits per byte
    python -m harness.sweep sweeps/near.yaml --results STORE
    python -m tests.measure.near retrieval --results STORE                   # accuracy, from the store

They write docs/results/near_text.json, in which several models may stand side by side, and
near_retrieval.json. `python -m tests.measure.near_picture` draws the picture from both.
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from harness.analysis import reader
from harness.analysis.reader import Comparison, Record, difference
from harness.analysis.table import interval, signed
from harness.attentions.base import TILE
from harness.common import environment
from harness.common.command import command
from harness.common.errors import UserError
from harness.common.files import read_json, write_atomic
from harness.common.paths import EMBEDDED, ROOT
from harness.common.stats import Difference, Metric
from harness.common.table import Table
from harness.models.load import load_model
from harness.models.options import ModelConfig
from harness.models.spec import resolve_model
from harness.tasks.texts import text_hash
from harness.training import bits, books, books_measure
from harness.training.text_train import stream

FILES = {part: ROOT / "docs" / "results" / f"near_{part}.json" for part in ("text", "retrieval")}
# what is done to the lines of a text before it is read
FORMS: dict[str, Callable[[str], str]] = {
    "file": lambda text: text,
    "wrapped": lambda text: text,
    "unwrapped": lambda text: " ".join(text.split()) + "\n",
    "paragraphs": books.unwrap,
}


def measure_text(model: str, text: Path, forms: list[str], chunks: int) -> dict:
    """Return bits per byte of a text under every attention of `books_measure.attentions`.

    Args:
        model: name of an embedded model, or the folder of a checkpoint.
        text: a novel in UTF-8.
        forms: names in FORMS.
        chunks: chunks of `books_measure.CONTEXT` tokens.

    Raises:
        UserError: without such a model or text, and for a text that is too short.
    """
    folder = EMBEDDED / model if (EMBEDDED / model).is_dir() else Path(model)
    if not (folder / "config.json").is_file():
        raise UserError(f"--model {model} is no embedded model and no folder with a config.json.")
    if chunks < books_measure.DRAWS:
        raise UserError(f"--chunks {chunks} is too few: each of {books_measure.DRAWS} draws of the masks reads some.")
    try:
        written = books.body(text.read_bytes().decode("utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--text {text} cannot be read as UTF-8: {error}.") from None
    spec = resolve_model(ModelConfig(name=folder.name, path=str(folder)), None)
    loaded = load_model(spec, device=torch.device("cpu"), kernel="auto")
    sizes = bits.byte_counts(loaded.tokenizer)
    rows = {}
    for form in forms:
        ids = stream(loaded.tokenizer, [FORMS[form](written)])
        if len(ids) <= books_measure.CONTEXT:
            raise UserError(f"--text {text} has {len(ids)} tokens: it takes more than {books_measure.CONTEXT}.")
        print(f"{folder.name}, {text.name}, {form}:", flush=True)
        rows[form] = books_measure.compare(spec, loaded, ids, sizes, chunks, lambda line: print(line, flush=True))
    setup = {"text": text.name, "sha256": text_hash(written), "context": books_measure.CONTEXT}
    setup |= {"chunks": chunks, "draws": books_measure.DRAWS, "weights": spec.identity["weights"]}
    return {"setup": setup, "forms": rows, "environment": _environment()}


def measure_retrieval(results: Path) -> dict:
    """Return accuracies and paired differences of the store of sweeps/near.yaml.

    Raises:
        UserError: if the store lacks a cell of the sweep, or one has other samples.
    """
    rows: list[dict[str, Any]] = []
    questions = [q for q in reader.comparisons(reader.records(results)) if q.task == "retrieval"]
    for q in questions:
        found = dict(_named(q))
        for name, record in found.items():
            against = ("exact", "window", "sliding") if record.method.beside_windows else ("exact",)
            others = {role: found[_beside(role, record)] for role in against if name != "exact"}
            changes = {role: difference(record, other) for role, other in others.items()}
            rows.append(
                {
                    "model": q.model,
                    "context": q.context,
                    "name": name,
                    "label": record.cell.label,
                    "cell_id": record.cell_id,
                    "pairs_per_row": record.pairs["fused"],
                    "accuracy": record.metrics["retrieval/accuracy"].as_dict(),
                    "answer_nll": record.metrics["retrieval/answer_nll"].as_dict(),
                    "minus": {role: change.as_dict() for role, change in changes.items() if change},
                }
            )
    if not rows:
        raise UserError(f"{results} holds no retrieval: python -m harness.sweep sweeps/near.yaml --results {results}")
    samples = {row["accuracy"]["n"] for row in rows}
    if len(samples) > 1:
        raise UserError(f"The cells of {results} have {sorted(samples)} samples: let the sweep end first.")
    made = questions[0].records[0].environment
    return {"rows": rows, "samples": samples.pop(), "environment": {"commit": made.commit, "device": made.device}}


def _named(q: Comparison) -> Iterator[tuple[str, Record]]:
    """The records of a question by a name that does not depend on the context."""
    if q.exact is None:
        raise UserError(f"{q.model}, {q.context} tokens: exact ALiBi is not in the store. Let the sweep end first.")
    yield "exact", q.exact
    for near in (0, TILE):
        masks = [r for r in q.named("plsh") if r.method.near == near and r.metrics]
        windows = q.windows(masks[0]) if masks else {}
        for role, record in {"plsh": masks[0] if masks else None, "window": None, "sliding": None, **windows}.items():
            if record is None:
                raise UserError(f"{q.model}, {q.context} tokens: {role} with near={near} is not in the store.")
            if role != "passes":
                yield f"{role} {near}", record
    for record in q.named("sliding"):
        if getattr(record.method, "tokens", 0) == TILE and record.metrics:
            yield "tile", record


def _beside(role: str, record: Record) -> str:
    return role if role == "exact" else f"{role} {record.method.near}"


def _environment() -> dict:
    found = environment.describe(torch.device("cpu"))
    return {name: found[name] for name in ("commit", "dirty", "device")}


NAMES = {
    "exact": "exact ALiBi",
    "plsh 0": "PLSH S=16 gamma rb",
    f"plsh {TILE}": f"PLSH S=16 gamma rb, near {TILE}",
    "window 0": "slope window",
    f"window {TILE}": f"slope window, near {TILE}",
    "sliding 0": "sliding window, pairs of PLSH",
    f"sliding {TILE}": f"sliding window, pairs of PLSH near {TILE}",
    "tile": f"sliding window, {TILE} tokens",
}


def markdown(figures: dict) -> str:
    """Return the tables of one of FILES."""
    if "models" in figures:
        parts = [_text_table(model, part) for model, part in figures["models"].items()]
    else:
        parts = _retrieval_tables(figures)
    return "\n".join(table.markdown() for table in parts).rstrip()


def _text_table(model: str, part: dict) -> Table:
    forms, setup = part["forms"], part["setup"]
    first = next(iter(forms.values()))
    rows = []
    for i, row in enumerate(first):
        changes = [rows_of[i]["minus_exact"] for rows_of in forms.values()]
        values = [interval(Metric(**rows_of[i]["bits_per_byte"])) for rows_of in forms.values()]
        shown = [digits(c, "+.4f") if c else f"{value}" for c, value in zip(changes, values, strict=True)]
        rows.append([row["label"], f"{row['pairs_per_row']['fused']:.1f}", *shown])
    columns = ["attention", "pairs per row", *forms]
    title = f"{model}, {setup['text']}: bits per byte, and minus exact, of {setup['chunks']} chunks"
    return Table(title, columns, rows, [])


def digits(figure: dict, form: str) -> str:
    """Return a figure with its interval. form: of each number, as "+.4f"."""
    return f"{figure['value']:{form}} [{figure['low']:{form}}, {figure['high']:{form}}]"


# rows of the table of both tasks: their name in NAMES, and their place in `books_measure.attentions`
BOTH = {"exact": 0, "plsh 0": 2, "window 0": 4, "sliding 0": 6, f"plsh {TILE}": 3, f"window {TILE}": 5}
RETRIEVAL_MODEL, TEXT_MODEL, CONTEXT = "tiny-plain", "tiny-code", books_measure.CONTEXT


def side_by_side(figures: dict) -> str:
    """Return a table of retrieval beside text.

    figures: the content of the file of "text"; that of "retrieval" is read.
    """
    retrieval = read_json(FILES["retrieval"])
    assert retrieval is not None, "the figures of retrieval are missing"
    there = (RETRIEVAL_MODEL, CONTEXT)
    accuracies = {r["name"]: r for r in retrieval["rows"] if (r["model"], r["context"]) == there}
    part = figures["models"][TEXT_MODEL]
    (rows_of_text,) = part["forms"].values()
    lines = []
    for name, place in BOTH.items():
        accuracy, text = accuracies[name], rows_of_text[place]
        change = text["minus_exact"]
        lines.append(
            [
                NAMES[name],
                f"{accuracy['pairs_per_row']:.1f}, {text['pairs_per_row']['fused']:.1f}",
                interval(Metric(**accuracy["accuracy"])),
                signed(Difference(**change)) if change else f"{text['bits_per_byte']['value']:.3f}",
            ]
        )
    columns = [
        "attention",
        "pairs per row",
        f"{RETRIEVAL_MODEL}: accuracy of retrieval",
        f"{TEXT_MODEL}: bits per byte, minus exact",
    ]
    title = f"{retrieval['samples']} prompts of retrieval, and {part['setup']['chunks']} chunks of held-out source code"
    return Table(f"{title}, {CONTEXT:,} tokens", columns, lines, []).markdown().rstrip()


# tables besides `markdown`, by the word after the file's name in a mark
PARTS: dict[str, Callable[[dict], str]] = {"side-by-side": side_by_side}


def _retrieval_tables(part: dict) -> list[Table]:
    rows = part["rows"]
    places = list(dict.fromkeys((row["model"], row["context"]) for row in rows))
    at = {(row["model"], row["context"], row["name"]): row for row in rows}
    columns = [f"{model}, {context}" for model, context in places]
    lines = []
    for name, label in NAMES.items():
        pairs = dict.fromkeys(f"{at[m, c, name]['pairs_per_row']:.1f}" for m, c in sorted(places, key=lambda p: p[1]))
        values = [interval(Metric(**at[m, c, name]["accuracy"])) for m, c in places]
        lines.append([label, ", ".join(pairs), *values])
    pairs_at = ", ".join(str(c) for c in dict.fromkeys(c for _, c in sorted(places, key=lambda p: p[1])))
    accuracy = Table(
        f"retrieval accuracy of {part['samples']} prompts",
        ["attention", f"pairs per row at {pairs_at}", *columns],
        lines,
        [],
    )
    lines = []
    for near in (0, TILE):
        for role in ("exact", "window", "sliding"):
            changes = [at[m, c, f"plsh {near}"]["minus"].get(role) for m, c in places]
            against = {"exact": NAMES["exact"], "window": "slope window", "sliding": "sliding window"}[role]
            cells = [signed(Difference(**change)) if change else "" for change in changes]
            lines.append([NAMES[f"plsh {near}"], against, *cells])
    return [accuracy, Table("paired differences", ["accuracy of", "minus that of", *columns], lines, [])]


@command
def main(arguments: Sequence[str]) -> int:
    """Return 0, or 2 for a mistake."""
    parser = argparse.ArgumentParser(prog="python -m tests.measure.near", description=__doc__.split("\n\n")[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="the file to write, in docs/results by default")
    parts = parser.add_subparsers(dest="part", required=True)
    text = parts.add_parser("text", help="bits per byte of a text")
    text.add_argument("--model", default="tiny-books", help="an embedded model, or a folder (tiny-books)")
    text.add_argument("--text", type=Path, required=True, metavar="FILE", help="a text in UTF-8")
    text.add_argument(
        "--forms",
        nargs="+",
        choices=FORMS,
        default=["paragraphs", "wrapped", "unwrapped"],
        help="as the file is (of a novel: its wrapped lines), all white space made one blank, or one line for each "
        "paragraph; several side by side (paragraphs wrapped unwrapped)",
    )
    text.add_argument("--chunks", type=int, default=books_measure.CHUNKS, metavar="N", help="chunks of 1,024 tokens")
    retrieval = parts.add_parser("retrieval", help="accuracies of the store of sweeps/near.yaml")
    retrieval.add_argument("--results", type=Path, required=True, metavar="STORE")
    given = parser.parse_args(arguments)
    file = given.json or FILES[given.part]
    if given.part == "text":
        found = measure_text(given.model, given.text, given.forms, given.chunks)
        models = (read_json(file) or {}).get("models", {})
        figures = {"models": {**models, Path(given.model).name: found}}
    else:
        figures = measure_retrieval(given.results)
    write_atomic(file, figures)
    print(markdown(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
