"""`python -m tests.measure.recency [--model M] [--text TEXT]`: how far back exact ALiBi attends.

The bias favours near keys whatever they hold. Measured is the attention of the last rows of windows
of a text by the distance of the key, beside that of the bias alone, under which all scores are
equal. Writes docs/results/recency.json.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from harness.common import environment
from harness.common.command import command
from harness.common.errors import UserError
from harness.common.files import write_atomic
from harness.common.paths import EMBEDDED, ROOT
from harness.common.table import Table
from harness.models.capture import capture
from harness.models.load import load_model
from harness.models.options import ModelConfig
from harness.models.spec import resolve_model
from harness.tasks.texts import read_text

FILE = ROOT / "docs" / "results" / "recency.json"
CONTEXT, ROWS, WINDOWS = 2048, 512, 16
EDGES = (0, 1, 16, 64, 256, 1024, CONTEXT)  # first distance of each class


def by_distance(log_weights: torch.Tensor) -> torch.Tensor:
    """Return the attention of each class of distances, (heads, classes), in the mean over rows.

    log_weights: biased scores (heads, R, N) of the last R rows of N tokens.
    """
    rows, tokens = log_weights.shape[1:]
    distance = torch.arange(tokens - rows, tokens)[:, None] - torch.arange(tokens)
    mass = log_weights.masked_fill(distance < 0, -torch.inf).double().softmax(2)
    pairs = zip(EDGES, EDGES[1:], strict=False)
    return torch.stack([(mass * ((distance >= low) & (distance < high))).sum(2).mean(1) for low, high in pairs], 1)


def measure(name: str, text: str) -> dict:
    """Return the shares of attention on a text and of the bias alone, as JSON.

    Args:
        name: an embedded model.
        text: as in task=perplexity.

    Raises:
        UserError: for a text that is too short, or cannot be read.
    """
    spec = resolve_model(ModelConfig(name=name, path=str(EMBEDDED / name)), None)
    loaded = load_model(spec, device=torch.device("cpu"), kernel="auto")
    ids = torch.tensor(loaded.tokenizer.encode(read_text("--text", text)))
    if len(ids) < CONTEXT + WINDOWS:
        raise UserError(f"--text {text} has {len(ids)} tokens: it takes more than {CONTEXT + WINDOWS}.")
    distance = torch.arange(CONTEXT - ROWS, CONTEXT)[:, None] - torch.arange(CONTEXT)
    bias = -spec.slopes[:, None, None] * distance.abs()
    found: list[list[torch.Tensor]] = [[] for _ in range(spec.architecture.layers)]
    for start in torch.linspace(0, len(ids) - CONTEXT, WINDOWS).long().tolist():

        def visit(layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> None:
            found[layer].append(by_distance(q[0, :, -ROWS:].double() @ k[0].double().mT * scale + bias))

        capture(loaded, ids[None, start : start + CONTEXT], visit)
    measured = torch.stack([torch.stack(windows).mean(0) for windows in found])
    about = environment.describe(torch.device("cpu"))
    return {
        "model": name,
        "text": text,
        "classes": list(EDGES),
        "windows": WINDOWS,
        "rows": ROWS,
        "slopes": spec.slopes.tolist(),
        "bias": by_distance(bias).tolist(),
        "measured": measured.tolist(),
        "environment": {key: about[key] for key in ("commit", "dirty", "device")},
    }


def markdown(record: dict) -> str:
    """Return the table of a record."""
    bias, measured = (torch.tensor(record[key], dtype=torch.float64) for key in ("bias", "measured"))
    flat = len(bias) // 4
    columns = [bias.mean(0), measured.mean((0, 1)), bias[-flat:].mean(0), measured[:, -flat:].mean((0, 1))]
    edges = record["classes"]
    names = [
        f"{low:,}" if high == low + 1 else f"{low:,}-{high - 1:,}" for low, high in zip(edges, edges[1:], strict=False)
    ]
    rows = [[name, *(f"{float(column[i]):.3f}" for column in columns)] for i, name in enumerate(names)]
    heads = ["all heads: bias alone", "measured", f"{flat} flattest heads of a layer: bias alone", "measured"]
    title = f"{record['model']}, {record['text']}, {edges[-1]:,} tokens: attention of exact ALiBi by distance"
    return Table(title, ["tokens back", *heads], rows, []).markdown().rstrip()


@command
def main(arguments: Sequence[str]) -> int:
    """Return 0, or 2 for a mistake."""
    parser = argparse.ArgumentParser(prog="python -m tests.measure.recency", description=__doc__.split("\n\n")[1])
    parser.add_argument("--model", default="tiny-code", help="an embedded model (tiny-code)")
    parser.add_argument("--text", default="code", help="a text as in task=perplexity (code)")
    parser.add_argument("--json", type=Path, default=FILE, metavar="FILE", help="the file to write")
    given = parser.parse_args(arguments)
    record = measure(given.model, given.text)
    write_atomic(given.json, record)
    print(markdown(record))
    return 0


if __name__ == "__main__":
    sys.exit(main())
