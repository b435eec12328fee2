"""Measure how much each head of a model needs its distant keys, and spend a budget of pairs over them.

One head at a time sees a shorter window, all others everything, on a text for calibration; lengths
with the least sum of divergences are chosen within the budget. --rounds repeats this around the
lengths found before, which accounts for heads that stand in for one another. FILE is for
`attn=allocated attn.allocation=FILE`; evaluate it on other texts than that of the calibration.
KEY=VALUE are options of harness.run: model, context, batch, dtype, device, data_seed, kernel.
stdout ends with one JSON line. Exit codes: 0 done, 2 invalid arguments.
"""

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path

from harness.common.command import Parser, command
from harness.common.errors import UserError
from harness.common.files import write_atomic
from harness.common.preflight import refuse_foreign_kernels
from harness.common.table import Table

OPTIONS = ("model", "context", "batch", "dtype", "device", "data_seed", "kernel")


def parser() -> Parser:
    """Return the parser of the command line."""
    kind = argparse.RawTextHelpFormatter
    result = Parser(prog="python -m harness.allocate", description=__doc__, formatter_class=kind)
    result.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="options of harness.run")
    budgets = "visited pairs per row, the mean over heads; several budgets as 24,64"
    result.add_argument("--pairs", required=True, metavar="P", help=budgets)
    out = "the file to write; with several budgets each has its number at the end of the name"
    result.add_argument("--out", type=Path, required=True, metavar="FILE", help=out)
    result.add_argument("--text", help="novel, code, a file in UTF-8, or prompts: those of task=retrieval")
    result.add_argument("--samples", type=int, default=8, metavar="N", help="sequences for calibration (8)")
    result.add_argument("--rounds", type=int, default=1, metavar="N", help="measurements of all heads (1)")
    return result


@command
def main(arguments: Sequence[str]) -> int:
    """Run the command and return its exit code."""
    given = parser().parse_intermixed_args(arguments)
    budgets = _budgets(given.pairs)
    for name in ("samples", "rounds"):
        if getattr(given, name) < 1:
            raise UserError(f"--{name} must be at least 1, not {getattr(given, name)}.")
    for word in given.overrides:
        name = word.partition("=")[0].lstrip("+~")
        if name not in OPTIONS and not name.startswith("model."):
            raise UserError(f"{name} is no option of this command: it has {', '.join(OPTIONS)} and model.*.")
    if not given.out.parent.is_dir():
        raise UserError(f"--out {given.out}: there is no folder {given.out.parent}.")
    refuse_foreign_kernels()
    from harness.allocate.allocation import allocate
    from harness.experiment.compose import compose_config
    from harness.experiment.plan import Planner, to_run_config
    from harness.models.load import load_model

    words = ["attn=alibi", "tracking=disabled", "references=none", *given.overrides]
    if given.text and given.text != "prompts":
        words.append("task=theory")  # it demands least of text and context, which the calibration checks
    plan = Planner().plan(to_run_config(compose_config(words)))
    if plan.cell.model.random:
        raise UserError("Random weights need no keys more than others: use model.weights=checkpoint.")
    text = given.text or ("prompts" if plan.cell.model.reads == "prompts" else "novel")
    several = len(budgets) > 1
    files = [given.out.with_stem(f"{given.out.stem}-{n:g}") if several else given.out for n in budgets]
    contents = allocate(
        plan.cell,
        lambda: load_model(plan.cell.model, device=plan.device, kernel=plan.cell.kernel),
        text=text,
        samples=given.samples,
        budgets=budgets,
        rounds=given.rounds,
        batch=plan.batch,
        say=lambda line: print(line, file=sys.stderr, flush=True),
    )
    heads, made = range(1, plan.cell.model.architecture.heads + 1), []
    for file, content in zip(files, contents, strict=True):
        write_atomic(file, content)
        rows = [[f"{layer}", *map(str, tokens)] for layer, tokens in enumerate(content["tokens"], 1)]
        title = f"tokens of each head, {content['pairs_per_row']:.1f} pairs per row"
        Table(title, ["layer", *map(str, heads)], rows, []).print()
        made.append({"file": str(file), "pairs_per_row": content["pairs_per_row"], "nats": content["nats"]})
    print(json.dumps({"status": "ok", "allocations": made}))
    return 0


def _budgets(words: str) -> list[float]:
    try:
        found = [float(word) for word in words.split(",")]
    except ValueError:
        found = []
    if not found or not all(0 <= n < math.inf for n in found):
        raise UserError(f"--pairs must be numbers of at least 0 with commas between them, not {words}.")
    return found


if __name__ == "__main__":
    sys.exit(main())
