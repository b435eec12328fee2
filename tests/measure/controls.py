"""The controls and the allocated windows beside masks and windows, from a store of their runs.

    python -m tests.measure.controls --commands     # the runs, one command a line
    python -m tests.measure.controls --results STORE

The second writes docs/results/controls.json. The allocations are those of docs/results/allocation.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from harness.analysis import reader
from harness.analysis.reader import Comparison, difference
from harness.analysis.table import interval, signed
from harness.common.errors import UserError, report_mistake
from harness.common.files import write_atomic
from harness.common.paths import ROOT
from harness.common.stats import Difference, Metric
from harness.common.table import Table

FILE = ROOT / "docs" / "results" / "controls.json"
ALLOCATIONS = "docs/results/allocation"
# the text of the record, in the layout of books and without its name of a folder
BOOK = "moby-dick.txt"
TEXT = "model=tiny-books context=1024 samples=16 task=[fidelity,perplexity]"
RETRIEVAL = "context=1024 samples=80 task=retrieval"
BUDGETS = {"tiny-books": (16, 24, 32, 64, 148), "tiny-plain": (24, 40, 80, 148)}
METRICS = {
    "fidelity": ("fidelity/kl", "fidelity/top_1_agreement"),
    "perplexity": ("perplexity/bits_per_byte",),
    "retrieval": ("retrieval/accuracy",),
}


def commands() -> Iterator[str]:
    """Yield the commands whose results the record holds. FOLDER is that of the novels, STORE the
    results folder."""
    run = "python -m harness.run -m references=none tracking=disabled results=STORE"

    def allocated(model: str) -> str:
        files = ",".join(f"{ALLOCATIONS}/{model}-{n}.json" for n in BUDGETS[model])
        return f"attn=allocated attn.allocation={files}"

    for text in (f"FOLDER/test/{BOOK}", "code"):
        on_text = f"{run} {TEXT} task.fidelity.text={text} task.perplexity.text={text}"
        yield f"{on_text} attn=alibi,window"
        yield f"{on_text} attn=sliding attn.tokens=25,65,162"
        yield f"{on_text} {allocated('tiny-books')}"
        if text != "code":  # of a kind that tiny-books has not learned
            yield f"{on_text} attn=window attn.stagger=true"
            yield f"{on_text} attn=plsh attn.weights=rb attn.share=none,layers,heads,all"
            yield f"{on_text} attn=topk attn.keys=16"
    for model in ("tiny-plain", "tiny"):
        on_prompts = f"{run} model={model} {RETRIEVAL}"
        yield f"{on_prompts} attn=alibi,sliding,plsh attn.weights=rb"
        yield f"{on_prompts} attn=topk attn.keys=4,16"
        yield f"{on_prompts} attn=window attn.stagger=false,true"
    yield f"{run} model=tiny-plain {RETRIEVAL} {allocated('tiny-plain')}"


def measure(results: Path) -> dict:
    """Return the record of a store.

    Raises:
        UserError: for a store that lacks exact ALiBi, or holds different numbers of samples.
    """
    found = [q for q in reader.comparisons(reader.records(results)) if q.task in METRICS]
    if not found:
        raise UserError(f"{results} holds none of the runs: python -m tests.measure.controls --commands names them.")
    parts = [_part(q) for q in found]
    made = found[0].records[0].environment
    return {"parts": parts, "environment": {"commit": made.commit, "device": made.device}}


def _part(q: Comparison) -> dict[str, Any]:
    if q.exact is None:
        raise UserError(f"{q.model}, {q.task}: exact ALiBi is not in the store.")
    text = q.exact.outcome.options.get("text")
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
    return {**about, "text": text and Path(str(text)).name, "samples": samples.pop(), "rows": rows}


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
        shown = signed(Difference(**change)) if change else value
        lines.append([row["label"], f"{row['pairs_per_row']:.1f}", shown, interval(kl), f"{top.value:.2f}"])
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


def main(arguments: list[str] | None = None) -> int:
    """Return 0, or 2 for a mistake."""
    parser = argparse.ArgumentParser(prog="python -m tests.measure.controls", description=__doc__.split("\n\n")[0])
    kinds = parser.add_mutually_exclusive_group(required=True)
    kinds.add_argument("--commands", action="store_true", help="print the commands of the runs")
    kinds.add_argument("--results", type=Path, metavar="STORE", help="the store of these runs")
    parser.add_argument("--json", type=Path, default=FILE, metavar="FILE", help="the file to write")
    given = parser.parse_args(arguments)
    if given.commands:
        print("\n".join(commands()))
        return 0
    try:
        figures = measure(given.results)
    except UserError as error:
        return report_mistake(str(error))
    write_atomic(given.json, figures)
    print(markdown(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
