"""How the error of Positional LSH falls with the masks, and which heads of a model it fails.

    python -m harness.sweep sweeps/theory.yaml --results STORE
    python -m tests.measure.theory --results STORE

The second command writes docs/results/theory.json from all records of task=theory in the store.
"""

import argparse
import re
import sys
from pathlib import Path
from typing import Any

from harness.analysis import reader
from harness.analysis.reader import Record
from harness.analysis.table import interval
from harness.common.errors import UserError, report_mistake
from harness.common.files import read_json, write_atomic
from harness.common.paths import ROOT
from harness.common.stats import Metric
from harness.common.table import Table

FILE = ROOT / "docs" / "results" / "theory.json"
HEAD = re.compile(r"_head_(\d+)_(\d+)$")
HEADS = 4  # of the largest errors, in the table by head
CAPTURED = {
    "output_error": "error",
    "output_error_centred": "V centred",
    "row_error_p99": "rows, p99",
    "cosine": "cosine",
    "tv": "total variation",
}
PLAIN = {"spectral_error": "spectral error", "share_of_expectation_bound": "share of the bound"}


def measure(results: Path) -> dict:
    """Return the figures of a store's records of task=theory.

    Raises:
        UserError: without such records.
    """
    rows = []
    for q in reader.comparisons(reader.records(results)):
        rows += [_row(q.model, r) for r in q.records if q.task == "theory" and r.metrics]
    if not rows:
        raise UserError(f"{results} holds no theory: python -m harness.sweep sweeps/theory.yaml --results {results}")
    rows.sort(key=lambda row: (row["model"], row["captured"], row["weights"], row["masks"]))
    return {"rows": rows}


def _row(model: str, record: Record) -> dict[str, Any]:
    metrics = {name.removeprefix("theory/"): metric for name, metric in record.metrics.items()}
    captured = "output_error_centred" in metrics
    heads = {
        f"{found[1]},{found[2]}": {
            name: metrics[f"{name}_head_{found[1]}_{found[2]}"].value
            for name in ("output_error", "mass_missed_predicted")
            if f"{name}_head_{found[1]}_{found[2]}" in metrics
        }
        for name in metrics
        if captured and name.startswith("output_error") and (found := HEAD.search(name))
    }
    named = {name: m.as_dict() for name, m in metrics.items() if not re.search(r"_head_\d", name)}
    about = {"model": model, "context": record.context, "commit": record.environment.commit, "captured": captured}
    method = {"weights": record.attention.weights, "masks": record.attention.masks or 0}
    return {**about, **method, "samples": record.count, "metrics": named, "heads": heads}


def markdown(figures: dict) -> str:
    """Return the tables of FILE."""
    tables = []
    for model in dict.fromkeys(row["model"] for row in figures["rows"]):
        of_model = [row for row in figures["rows"] if row["model"] == model]
        captured = [row for row in of_model if row["captured"]]
        plain = [row for row in of_model if not row["captured"]]
        if captured:
            title = f"{model}, {captured[0]['context']} tokens: attention on captured queries, keys and values"
            tables.append(_table(title, captured, CAPTURED))
            tables.append(_by_head(model, max(captured, key=lambda r: (r["masks"] == 10, r["weights"] == "count"))))
        if plain:
            tables.append(_table(f"{model}, {plain[0]['context']} tokens: weights alone", plain, PLAIN))
    return "\n".join(table.markdown() for table in tables).rstrip()


def _table(title: str, rows: list[dict], names: dict[str, str]) -> Table:
    lines = [
        [row["weights"], f"{row['masks']:,}", *(_shown(row["metrics"].get(name)) for name in names)] for row in rows
    ]
    return Table(title, ["weights", "masks", *names.values()], lines, [])


def _shown(metric: dict | None) -> str:
    return interval(Metric(**metric)) if metric else ""


def _by_head(model: str, row: dict) -> Table:
    """The heads of the largest errors, and the rest on average."""
    ordered = sorted(row["heads"].items(), key=lambda item: -item[1]["output_error"])
    rest = [figures for _, figures in ordered[HEADS:]]
    lines = [[name, f"{f['output_error']:.3f}", f"{f['mass_missed_predicted']:.3f}"] for name, f in ordered[:HEADS]]
    names = ("output_error", "mass_missed_predicted")
    means = [f"{sum(f[name] for f in rest) / len(rest):.3f}" for name in names] if rest else []
    lines += [[f"mean of the other {len(rest)}", *means]] if rest else []
    title = f"{model}, {row['masks']} masks, {row['weights']}: heads of the largest errors"
    return Table(title, ["layer, head", "error", "attention on keys that no mask covers, expected"], lines, [])


def main(arguments: list[str] | None = None) -> int:
    """Return 0, or 2 for a mistake."""
    parser = argparse.ArgumentParser(prog="python -m tests.measure.theory", description=__doc__.split("\n\n")[0])
    parser.add_argument("--results", type=Path, required=True, metavar="STORE")
    parser.add_argument("--json", type=Path, default=FILE, metavar="FILE", help="the file to write")
    given = parser.parse_args(arguments)
    try:
        figures = measure(given.results)
    except UserError as error:
        return report_mistake(str(error))
    write_atomic(given.json, figures)
    print(markdown(read_json(given.json) or {}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
