"""How the error of Positional LSH falls with the masks, and which heads of a model it fails.

    python -m harness.sweep sweeps/theory.yaml --results STORE
    for W in count rb; do python -m harness.run model=tiny-books task=theory attn=plsh attn.weights=$W masks=16 \\
        context=1024 kernel=sdpa draws=4 task.theory.score_ranges=[0.5,1,2,4,8] references=none results=STORE; done
    python -m tests.measure.theory --results STORE

The last command writes docs/results/theory.json from all records of task=theory in the store.
"""

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scipy import stats

from harness.analysis import reader
from harness.analysis.reader import Record
from harness.common.command import command
from harness.common.errors import UserError
from harness.common.files import read_json, write_atomic
from harness.common.paths import ROOT
from harness.common.table import Table

FILE = ROOT / "docs" / "results" / "theory.json"
RANGE = re.compile(r"variation_worst_(.+)$")
HEADS = 4  # of the largest errors, in the table by head
BY_HEAD = {
    "output_error": "error",
    "mass_missed_predicted": "attention on keys that no mask covers, expected",
    "advantage_over_1": "share of its far attention that outweighs the bias",
}
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
    heads = {}
    if captured:
        rows = [row.more["heads"] for row in record.rows.values()]
        layers = rows[0]["output_error"]
        for layer, head in ((i, j) for i in range(len(layers)) for j in range(len(layers[i]))):
            heads[f"{layer + 1},{head + 1}"] = {
                name: sum(row[name][layer][head] for row in rows) / len(rows) for name in BY_HEAD if name in rows[0]
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
        worst = [row for row in of_model if "variation_gaussian" in row["metrics"]]
        plain = [row for row in of_model if not row["captured"] and row not in worst]
        if captured:
            title = f"{model}, {captured[0]['context']} tokens: attention on captured queries, keys and values"
            tables.append(_table(title, captured, CAPTURED))
            tables.append(_by_head(model, max(captured, key=lambda r: (r["masks"] == 16, r["weights"] == "count"))))
        if worst:
            tables.append(_worst(worst, captured))
        if plain:
            tables.append(_table(f"{model}, {plain[0]['context']} tokens: weights alone", plain, PLAIN))
    return "\n".join(table.markdown() for table in tables).rstrip()


def _table(title: str, rows: list[dict], names: dict[str, str]) -> Table:
    lines = [
        [row["weights"], f"{row['masks']:,}", *(_shown(row["metrics"].get(name)) for name in names)] for row in rows
    ]
    return Table(title, ["weights", "masks", *names.values()], lines, [])


def _shown(metric: dict | None) -> str:
    if not metric:
        return ""
    if metric["low"] is None:
        return f"{metric['value']:.3g}"
    return f"{metric['value']:.3g} [{metric['low']:.2g}, {metric['high']:.2g}]"


def _by_head(model: str, row: dict) -> Table:
    """The heads of the largest errors, and the rest on average."""
    ordered = sorted(row["heads"].items(), key=lambda item: -item[1]["output_error"])
    rest = [figures for _, figures in ordered[HEADS:]]
    lines = [[name, *(f"{f[n]:.3f}" for n in BY_HEAD)] for name, f in ordered[:HEADS]]
    if rest:
        means = [f"{sum(f[n] for f in rest) / len(rest):.3f}" for n in BY_HEAD]
        lines.append([f"mean of the other {len(rest)}", *means])
    columns = [[f[n] for f in row["heads"].values()] for n in BY_HEAD]
    ranks = [f"{stats.spearmanr(columns[0], column).statistic:.2f}" for column in columns[1:]]
    lines.append(["rank correlation with the error", "", *ranks])
    title = f"{model}, {row['masks']} masks, {row['weights']}: heads of the largest errors"
    return Table(title, ["layer, head", *BY_HEAD.values()], lines, [])


def _worst(rows: list[dict], captured: list[dict]) -> Table:
    """Total variation on Gaussian and captured input, and at worst by the range of the scores."""
    of_range: dict[str, float] = {}
    lines = []
    for row in rows:
        metrics = row["metrics"]
        same = [c for c in captured if (c["masks"], c["weights"]) == (row["masks"], row["weights"])]
        of_range = {m[1]: float(m[1]) for name in metrics if (m := RANGE.match(name))}
        values = [_shown(metrics["variation_gaussian"]), _shown(same[0]["metrics"]["tv"]) if same else ""]
        for r in sorted(of_range, key=of_range.__getitem__):
            worst, found = (metrics[f"variation_{kind}_{r}"]["value"] for kind in ("worst", "found"))
            values.append(f"{worst:.3f} ({found:.3f})")
        lines.append([row["weights"], f"{row['masks']:,}", *values])
    ranges = [f"worst at r={r} (found)" for r in sorted(of_range, key=of_range.__getitem__)]
    title = f"{rows[0]['model']}, {rows[0]['context']} tokens: total variation of a row"
    return Table(title, ["weights", "masks", "Gaussian", "captured", *ranges], lines, [])


@command
def main(arguments: Sequence[str]) -> int:
    """Return 0, or 2 for a mistake."""
    parser = argparse.ArgumentParser(prog="python -m tests.measure.theory", description=__doc__.split("\n\n")[0])
    parser.add_argument("--results", type=Path, required=True, metavar="STORE")
    parser.add_argument("--json", type=Path, default=FILE, metavar="FILE", help="the file to write")
    given = parser.parse_args(arguments)
    figures = measure(given.results)
    write_atomic(given.json, figures)
    print(markdown(read_json(given.json) or {}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
