"""`python -m tests.measure.upstream`: how far the attention of stock transformers is from exact
ALiBi, measured on small random models. Writes docs/results/upstream.json, from which `make tables`
draws the table of docs/models.md.

Everything is compared with our exact attention in float32, over the same weights, which bfloat16
holds exactly: what differs is the arithmetic alone.
"""

import json
import math
from importlib.metadata import version

import torch

from harness.common.files import write_atomic
from harness.common.paths import ROOT
from harness.common.table import Table
from harness.models.families import model_family
from harness.models.family import Architecture
from harness.models.load import random_model
from harness.models.swap import SwappedAttention

FILE = ROOT / "docs" / "results" / "upstream.json"
EDGES = (0, 256, 1024, 2048)
SETUP = {"layers": 2, "width": 512, "vocabulary": 512}
ROWS = {
    "MPT, 8 heads": ("mpt", 8, {}),
    "MPT, 8 heads, alibi_bias_max 16": ("mpt", 8, {"bias_max": 16}),
    "BLOOM, 16 heads": ("bloom", 16, {}),
    "Falcon (sdpa, its default), 32 heads": ("falcon", 32, {}),
    "Falcon (eager), 32 heads": ("falcon", 32, {"attn_implementation": "eager"}),
}
METHODS = ("stock float32", "stock bfloat16", "ours bfloat16")


@torch.inference_mode()
def measure(family: str, heads: int, *, bias_max: float = 8, seed: int = 0, **config) -> dict:
    """Mean |logit error| of stock and ours by position bucket, and the standard deviation of the
    logits."""
    tokens = EDGES[-1]
    architecture = Architecture(family, heads=heads, bias_max=bias_max, positions=tokens, **SETUP)
    # rows of norm 1.35: scores that differ enough for attention to matter
    config["initializer_range"] = 1.35 / math.sqrt(architecture.width)
    model = random_model(architecture, seed, **config).bfloat16().float().eval()
    attention = SwappedAttention(model, model_family(family), model_family(family).slopes(architecture), kernel="sdpa")
    x = torch.randint(architecture.vocabulary, (1, tokens), generator=torch.Generator().manual_seed(seed))

    def logits(*, stock: bool) -> torch.Tensor:
        if not stock:
            return model(x).logits[0].float()
        with attention.use(None):
            return model(x).logits[0].float()

    exact = logits(stock=False)
    found = {"stock float32": logits(stock=True)}
    model.bfloat16()
    found |= {"stock bfloat16": logits(stock=True), "ours bfloat16": logits(stock=False)}
    buckets = list(zip(EDGES, EDGES[1:], strict=False))
    errors = {
        method: [float((one - exact)[first:last].abs().mean()) for first, last in buckets]
        for method, one in found.items()
    }
    return {"std_of_logits": float(exact.std()), "mean_abs_error": errors}


def markdown(measured: dict) -> str:
    """The table of docs/models.md."""
    spans = [f"{first}-{last}" for first, last in zip(measured["edges"], measured["edges"][1:], strict=False)]
    rows = [
        [
            name,
            f"{row['std_of_logits']:.2f}",
            *(" / ".join(f"{error:.2g}" for error in row["mean_abs_error"][method]) for method in METHODS),
        ]
        for name, row in measured["rows"].items()
    ]
    title = f"Mean absolute logit error at tokens {' / '.join(spans)}, transformers {measured['transformers']}"
    return Table(title, ["model", "std of logits", *METHODS], rows, []).markdown().rstrip()


def main() -> None:
    rows = {}
    for name, (family, heads, options) in ROWS.items():
        rows[name] = measure(family, heads, **options)
        print(json.dumps({name: rows[name]}), flush=True)
    versions = {package: version(package) for package in ("transformers", "torch")}
    write_atomic(FILE, {**versions, "device": "cpu", "setup": SETUP, "edges": EDGES, "rows": rows})


if __name__ == "__main__":
    main()
