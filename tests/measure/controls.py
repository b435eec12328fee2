"""The controls and the allocated windows beside masks and windows, from a store of their runs.

    python -m tests.measure.controls --books FOLDER --text TEXT   # Moby-Dick, a line for each paragraph
    python -m tests.measure.controls --commands                   # the runs, one command a line
    python -m tests.measure.controls --results STORE --text TEXT

The last writes docs/results/controls.json. The allocations are those of docs/results/allocation.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from harness.analysis import reader
from harness.analysis.reader import Comparison, difference
from harness.analysis.table import interval
from harness.common.command import command
from harness.common.errors import UserError
from harness.common.files import write_atomic, write_whole
from harness.common.paths import ROOT
from harness.common.stats import Metric
from harness.common.table import Table
from harness.tasks.texts import read_text, text_hash
from harness.training import books
from tests.measure.near import digits

FILE = ROOT / "docs" / "results" / "controls.json"
ALLOCATIONS = "docs/results/allocation"
TEXT = "model=tiny-books context=1024 samples=16 task=[fidelity,perplexity]"
RETRIEVAL = "context=1024 samples=80 task=retrieval"
BUDGETS = {"tiny-books": (24, 64, 148), "tiny-plain": (24, 40, 80, 148)}
METRICS = {
    "fidelity": ("fidelity/kl", "fidelity/top_1_agreement"),
    "perplexity": ("perplexity/bits_per_byte",),
    "retrieval": ("retrieval/accuracy",),
}


def commands() -> Iterator[str]:
    """Yield the commands whose results the record holds. TEXT is the file of the novel, STORE the
    results folder."""
    run = "python -m harness.run -m references=none tracking=disabled results=STORE"

    def allocated(model: str) -> str:
        files = ",".join(f"{ALLOCATIONS}/{model}-{n}.json" for n in BUDGETS[model])
        return f"attn=allocated attn.allocation={files}"

    on_text = f"{run} {TEXT} task.fidelity.text=TEXT task.perplexity.text=TEXT"
    yield f"{on_text} attn=alibi,window"
    yield f"{on_text} attn=window attn.stagger=true"
    yield f"{on_text} attn=sliding attn.tokens=25,65,162"
    yield f"{on_text} attn=topk attn.keys=16"
    yield f"{on_text} {allocated('tiny-books')}"
    on_prompts = f"{run} {RETRIEVAL}"
    yield f"{on_prompts} model=tiny attn=alibi"
    yield f"{on_prompts} model=tiny attn=topk attn.keys=16"
    yield f"{on_prompts} model=tiny-plain attn=alibi,sliding,plsh attn.weights=rb"
    yield f"{on_prompts} model=tiny-plain attn=topk attn.keys=4,16"
    yield f"{on_prompts} model=tiny-plain {allocated('tiny-plain')}"


def measure(results: Path, text: Path | None = None) -> dict:
    """Return the record of a store.

    Args:
        results: the store.
        text: the file that the runs on a text have read.

    Raises:
        UserError: for a store that lacks exact ALiBi, holds different numbers of samples, or runs on
            another text.
    """
    names = {}
    if text is not None:
        names[text_hash(read_text("--text", str(text)))] = text.name
    found = [q for q in reader.comparisons(reader.records(results)) if q.task in METRICS]
    if not found:
        raise UserError(f"{results} holds none of the runs: python -m tests.measure.controls --commands names them.")
    parts = [_part(q, names) for q in found]
    made = found[0].records[0].environment
    return {"parts": parts, "environment": {"commit": made.commit, "device": made.device}}


def _part(q: Comparison, names: dict[str, str]) -> dict[str, Any]:
    if q.exact is None:
        raise UserError(f"{q.model}, {q.task}: exact ALiBi is not in the store.")
    text = q.exact.outcome.options.get("text")
    if text and text not in names:
        raise UserError(f"{q.model}, {q.task}: the runs have read another text than --text names.")
    rows = []
    for record in q.records:
        if not record.metrics:
            raise UserError(f"{q.model}, {q.task}, {record.cell.label}: there is no result in the store.")
        change = difference(record, q.exact) if record is not q.exact else None
        rows.append(
            {
                "cell_id": record.cell_id,
                "label": record.cell.label,
                "pairs_per_row": record.pairs["fused"],
                "metrics": {name: record.metrics[name].as_dict() for name in METRICS[q.task]},
                "minus_exact": change and change.as_dict(),
            }
        )
    samples = {metric["n"] for row in rows for metric in row["metrics"].values()}
    if len(samples) > 1:
        raise UserError(f"{q.model}, {q.task}: the cells have {sorted(samples)} samples. Let the runs end first.")
    about = {"model": q.model, "weights": q.exact.identity.model["weights"], "task": q.task, "context": q.context}
    return {**about, "text": text and names[text], "samples": samples.pop(), "rows": rows}


def markdown(figures: dict) -> str:
    """Return the tables of FILE: one for each text, and one of retrieval."""
    texts: dict[tuple[str, str], dict[str, dict]] = {}
    for part in figures["parts"]:
        if part["task"] != "retrieval":
            texts.setdefault((part["model"], part["text"]), {})[part["task"]] = part
    tables = [_text_table(model, text, parts) for (model, text), parts in texts.items()]
    retrieval = [part for part in figures["parts"] if part["task"] == "retrieval"]
    tables += [_retrieval_table(part) for part in retrieval]
    return "\n".join(table.markdown() for table in tables).rstrip()


def _text_table(model: str, text: str, parts: dict[str, dict]) -> Table:
    bits = {row["cell_id"]: row for row in parts["perplexity"]["rows"]}
    lines = []
    for row in parts["fidelity"]["rows"]:
        other = bits[row["cell_id"]]
        change = other["minus_exact"]
        value = interval(Metric(**other["metrics"]["perplexity/bits_per_byte"]))
        kl, top = (Metric(**row["metrics"][name]) for name in METRICS["fidelity"])
        shown = digits(change, "+.4f") if change else value
        lines.append(
            [row["label"], f"{row['pairs_per_row']:.1f}", shown, digits(kl.as_dict(), ".4f"), f"{top.value:.2f}"]
        )
    title = f"{model}, {text}: {parts['fidelity']['samples']} windows of {parts['fidelity']['context']} tokens"
    columns = ["attention", "pairs per row", "bits per byte, and minus exact", "KL, nats per token", "top-1"]
    return Table(title, columns, lines, [])


def _retrieval_table(part: dict) -> Table:
    lines = []
    for row in part["rows"]:
        accuracy = interval(Metric(**row["metrics"]["retrieval/accuracy"]))
        lines.append([row["label"], f"{row['pairs_per_row']:.1f}", accuracy])
    title = f"{part['model']}: retrieval at {part['context']}, {part['samples']} prompts"
    return Table(title, ["attention", "pairs per row", "accuracy"], lines, [])


@command
def main(arguments: Sequence[str]) -> int:
    """Return 0, or 2 for a mistake."""
    parser = argparse.ArgumentParser(prog="python -m tests.measure.controls", description=__doc__.split("\n\n")[0])
    kinds = parser.add_mutually_exclusive_group(required=True)
    kinds.add_argument("--commands", action="store_true", help="print the commands of the runs")
    kinds.add_argument("--results", type=Path, metavar="STORE", help="the store of these runs")
    kinds.add_argument(
        "--books", type=Path, metavar="FOLDER", help="the novels, as `python -m harness.training` reads them"
    )
    parser.add_argument("--text", type=Path, metavar="FILE", help="the text that the runs read; --books writes it")
    parser.add_argument("--json", type=Path, default=FILE, metavar="FILE", help="the file to write")
    given = parser.parse_args(arguments)
    if given.commands:
        print("\n".join(commands()))
        return 0
    if given.books:
        if not given.text:
            raise UserError("--books needs --text FILE, the file to write.")
        (novel,) = (text for book, text in books.read_books(given.books).items() if book.part == "test")
        write_whole(given.text, books.unwrap(novel))
        return 0
    figures = measure(given.results, given.text)
    write_atomic(given.json, figures)
    print(markdown(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
