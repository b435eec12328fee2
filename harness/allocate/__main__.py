"""Measure how much each head of a model needs its distant keys, and spend a budget of pairs over them.

One head at a time sees a shorter window, all others everything, on a text for calibration; lengths
with the least sum of divergences are chosen within the budget. --rounds repeats this around the
lengths found before, which accounts for heads that stand in for one another. FILE is for
`attn=allocated attn.allocation=FILE`; evaluate it on other texts than that of the calibration.
KEY=VALUE are options of harness.run: model, context, batch, dtype, device, data_seed.
stdout ends with one JSON line. Exit codes: 0 done, 2 invalid arguments.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from harness.common.command import Parser, command
from harness.common.errors import UserError
from harness.common.files import write_atomic
from harness.common.preflight import refuse_foreign_kernels
from harness.common.table import Table


def parser() -> Parser:
    """Return the parser of the command line."""
    kind = argparse.RawTextHelpFormatter
    result = Parser(prog="python -m harness.allocate", description=__doc__, formatter_class=kind)
    result.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="options of harness.run")
    result.add_argument("--pairs", type=float, required=True, help="budget: visited pairs per row, the mean over heads")
    result.add_argument("--out", type=Path, required=True, metavar="FILE", help="the file to write")
    result.add_argument("--text", help="novel, code, a file in UTF-8, or prompts: those of task=retrieval")
    result.add_argument("--samples", type=int, default=8, metavar="N", help="sequences for calibration (8)")
    result.add_argument("--rounds", type=int, default=1, metavar="N", help="measurements of all heads (1)")
    return result


@command
def main(arguments: Sequence[str]) -> int:
    """Run the command and return its exit code."""
    given = parser().parse_intermixed_args(arguments)
    if not given.pairs >= 0:
        raise UserError(f"--pairs must be at least 0, not {given.pairs}.")
    for name in ("samples", "rounds"):
        if getattr(given, name) < 1:
            raise UserError(f"--{name} must be at least 1, not {getattr(given, name)}.")
    if any(word.split("=")[0] in ("attn", "task", "samples") for word in given.overrides):
        raise UserError("attn, task and samples are not options of this command, which chooses windows itself.")
    if not given.out.parent.is_dir():
        raise UserError(f"--out {given.out}: there is no folder {given.out.parent}.")
    refuse_foreign_kernels()
    from harness.allocate.allocation import allocate
    from harness.experiment.compose import compose_config
    from harness.experiment.plan import Planner, to_run_config
    from harness.models.load import load_model

    words = ["attn=alibi", "tracking=disabled", "references=none", *given.overrides]
    plan = Planner().plan(to_run_config(compose_config(words)))
    if plan.cell.model.random:
        raise UserError("Random weights need no keys more than others: use model.weights=checkpoint.")
    text = given.text or ("prompts" if plan.cell.model.reads == "prompts" else "novel")
    content = allocate(
        plan.cell,
        lambda: load_model(plan.cell.model, device=plan.device, kernel=plan.cell.kernel),
        text=text,
        samples=given.samples,
        pairs=given.pairs,
        rounds=given.rounds,
        batch=plan.batch,
        say=lambda line: print(line, file=sys.stderr, flush=True),
    )
    write_atomic(given.out, content)
    heads = range(1, plan.cell.model.architecture.heads + 1)
    rows = [[f"{layer}", *map(str, tokens)] for layer, tokens in enumerate(content["tokens"], 1)]
    title = f"tokens of each head, {content['pairs_per_row']:.1f} pairs per row"
    Table(title, ["layer", *map(str, heads)], rows, []).print()
    print(json.dumps({"status": "ok", "file": str(given.out), **{k: content[k] for k in ("pairs_per_row", "nats")}}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
