"""`python -m tests.measure.flat`: time per decoded token against context, all contexts by turns in
one process, so that they share whatever else the machine does. Writes docs/results/flat.json for
the table of docs/throughput.md."""

from collections.abc import Mapping

import torch

from harness.common import environment
from harness.common.files import write_atomic
from harness.common.paths import ROOT
from harness.common.stats import quartiles
from harness.common.table import Table
from harness.models.families import model_family
from harness.models.family import Architecture
from harness.models.load import LoadedModel, random_model
from harness.models.swap import SwappedAttention
from harness.tasks.throughput.session import Session, random_prompt
from kernels import Alibi, PositionalLSH

FILE = ROOT / "docs" / "results" / "flat.json"
SHAPE = Architecture("mpt", layers=2, heads=4, width=256, vocabulary=1024)
CONTEXTS = {"exact ALiBi": (1024, 2048, 4096, 8192), "PLSH S=16 gamma rb, evicting": (1024, 2048, 4096, 8192, 16384)}
ROUNDS, DECODED, CHUNK, MASKS = 15, 16, 512, 16


def measure() -> list[dict]:
    """Milliseconds per token (median and quartiles over rounds) and errors of each attention at
    each context."""
    slopes, cpu = model_family(SHAPE.family).slopes(SHAPE), torch.device("cpu")
    model = random_model(SHAPE, 0).eval().requires_grad_(False)
    swapped = SwappedAttention(model, model_family(SHAPE.family), slopes, kernel="sdpa")
    masks = [PositionalLSH.draw(slopes, MASKS, seed=0, layer=i, weights="rb") for i in range(SHAPE.layers)]
    weights = dict(zip(CONTEXTS, ([Alibi(slopes)] * SHAPE.layers, masks), strict=True))
    sessions, found = [], []
    for label, contexts in CONTEXTS.items():
        for context in contexts:
            ids = random_prompt(SHAPE, 1, context + DECODED, 0, cpu)
            evict = not isinstance(weights[label][0], Alibi)
            session = Session(LoadedModel(model, None, swapped), weights[label], ids, context, CHUNK, evict)
            checked = session.check([1])
            sessions.append(session)
            found.append({"attention": label, "context": context, "error": checked["error_cached"], "all": []})
    for _ in range(ROUNDS):
        for session, record in zip(sessions, found, strict=True):
            record["all"].append(session.measure("decode", 1)["ms"])
    for record in found:
        ms = quartiles(record.pop("all"), unit="ms")
        record["ms"] = {"value": ms.value, "low": ms.low, "high": ms.high}
    return found


def markdown(record: Mapping) -> str:
    """The record as a table: attentions down, contexts across."""
    contexts = sorted({f["context"] for f in record["figures"]})
    rows = []
    for label in CONTEXTS:
        of = {f["context"]: f for f in record["figures"] if f["attention"] == label}
        cells = [f"{of[c]['ms']['value']:.1f} [{of[c]['ms']['low']:.1f}, {of[c]['ms']['high']:.1f}]" for c in of]
        worst = max(f["error"] for f in of.values())
        rows.append([label, *cells, *[""] * (len(contexts) - len(of)), f"{worst:.1e}"])
    columns = ["ms per decoded token", *(f"{c:,} tokens" for c in contexts), "largest error"]
    return Table("", columns, rows, []).markdown().rstrip()


if __name__ == "__main__":
    about = environment.describe(torch.device("cpu")) | {"command": "python -m tests.measure.flat"}
    write_atomic(FILE, {"environment": about, "figures": measure()})
