"""How many prompts and draws decide a difference of accuracy: from the discordance and the spread of
draws in a store, and for assumed ones."""

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from harness.analysis.decisions import ALPHA, draws_needed, prompts_needed, variance_parts
from harness.analysis.reader import SCORES, Comparison, paired
from harness.analysis.verdict import Finding
from harness.common.files import short_hash
from harness.common.stats import POWER
from harness.common.table import Table

DISCORDANT = (0.02, 0.05, 0.1, 0.2, 0.4)  # assumed shares of prompts that only one attention answers
BETWEEN = (0.0, 0.05, 0.1, 0.2)  # assumed standard deviations between draws
PER_DRAW = 20  # prompts of a draw


@dataclass(frozen=True)
class Observed:
    """One comparison of accuracies in a store.

    Attributes:
        where, against: the masks and their place; the competitor.
        discordant: share of prompts that only one of both answers.
        between, within: standard deviations of the difference, between draws and within one.
    """

    where: str
    against: str
    discordant: float
    between: float
    within: float


def observed(compared: Sequence[Comparison], findings: Sequence[Finding]) -> list[Observed]:
    """Return the spread of the accuracies that findings compare, each pair once.

    Args:
        compared: comparisons of a store.
        findings: its findings.
    """
    records = {(q.model, q.task, short_hash(r.options), r.cell_id): r for q in compared for r in q.records}
    found = {}
    for f in findings:
        this, other = (records.get((f.model, f.task, f.question, side.cell_id)) for side in (f.this, f.other))
        if f.unit not in SCORES or f.at == "oracle" or this is None or other is None:
            continue
        scores = paired(this, other)
        changes = [scores.this[k] - scores.reference[k] for k in scores.this]
        draws = [scores.draw_of[k] for k in scores.this]
        between, within = variance_parts(changes, draws)
        within = within or (1 / (len(changes) + 2)) ** 0.5  # as if one more prompt were discordant
        where = f"{f.model}, {f.task}, {f.context:,} tokens, {f.this.label}"
        share = statistics.fmean(c != 0 for c in changes)
        found[f.test] = Observed(where, f.other.label, share, between, within)
    return list(found.values())


def tables(difference: float, tests: int, found: Sequence[Observed]) -> list[Table]:
    """Return the tables of a plan.

    Args:
        difference: the difference of accuracy that is to be decided.
        tests: number of tests that one correction covers.
        found: what a store shows.
    """
    levels = dict.fromkeys((ALPHA, ALPHA / max(1, tests)))
    at = [f"at {level:.2g}" for level in levels]
    points = f"{100 * difference:g} points"
    notes = [
        f"With {100 * POWER:.0f} % power. {at[-1]} is the level of the strictest of {tests} tests under Holm's "
        "correction."
        if tests > 1
        else f"With {100 * POWER:.0f} % power."
    ]
    result = [
        Table(
            f"Prompts that decide {points} between two attentions without draws",
            ["share of discordant prompts (assumed)", *at],
            [
                [f"{share:g}", *(_shown(prompts_needed(difference, share, alpha=a)) for a in levels)]
                for share in DISCORDANT
            ],
            [],
        ),
        Table(
            f"Draws of {PER_DRAW} prompts that decide {points} of masks",
            ["deviation between draws (assumed), discordant 0.2", *at],
            [
                [f"{between:g}", *(_shown(_draws(difference, between, 0.2**0.5, a)) for a in levels)]
                for between in BETWEEN
            ],
            [] if found else notes,
        ),
    ]
    if found:
        columns = ["comparison", "against", "discordant", "deviation between draws", *(f"draws {a}" for a in at)]
        rows = [
            [
                o.where,
                o.against,
                f"{o.discordant:.3f}",
                f"{o.between:.3f}",
                *(_shown(_draws(difference, o.between, o.within, a)) for a in levels),
            ]
            for o in found
        ]
        title = f"Draws of {PER_DRAW} prompts that decide {points}, from this store"
        result.append(Table(title, columns, rows, notes, words=2))
    return result


def as_dict(difference: float, tests: int, found: Sequence[Observed]) -> dict:
    """Return the plan's JSON line: what a store shows, and the draws it takes."""
    observations = [
        {**asdict(o), "draws": _draws(difference, o.between, o.within, ALPHA / max(1, tests))} for o in found
    ]
    return {"difference": difference, "tests": tests, "prompts_per_draw": PER_DRAW, "observed": observations}


def _draws(difference: float, between: float, within: float, alpha: float) -> int | None:
    return draws_needed(difference, between=between, within=within, per_draw=PER_DRAW, alpha=alpha)


def _shown(units: int | None) -> str:
    return "more than 10,000,000" if units is None else f"{units:,}"
