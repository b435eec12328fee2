"""The verdict's record as Markdown, in parts that pages show between the marks of
`tests.measure.tables`."""

import operator
import textwrap
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from harness.analysis import table, words
from harness.analysis.verdict import AGAINST_EXACT, Finding
from harness.common.table import Table
from harness.pareto.record import Point, Verdict
from harness.pareto.ruler import THRESHOLD, weighted_average
from harness.tasks.lmeval.catalogue import RULER

WIDTH = 100  # of the lines
BRIEF = ("tiny-plain", "tiny-code")  # one model of retrieval and one of text, trained with plain ALiBi


def markdown(figures: dict[str, Any]) -> str:
    """Return the whole verdict of a record."""
    return "\n\n".join(draw(figures) for name, draw in PARTS.items() if name != "brief")


def short(figures: dict[str, Any]) -> str:
    """Return who wins, in a paragraph for each model and task."""
    return _spoken(figures, operator.attrgetter("text"))


def brief(figures: dict[str, Any]) -> str:
    """Return one example in figures for each task: of the models in BRIEF, or of all that have it."""
    models: dict[str, set[str]] = defaultdict(set)
    for f in Verdict.read(figures).findings:
        models[f.task].add(f.model)
    return _spoken(figures, operator.attrgetter("brief"), {t: m.intersection(BRIEF) or m for t, m in models.items()})


def _spoken(
    figures: dict[str, Any], text: Callable[[words.Paragraph], str], models: Mapping[str, Collection[str]] | None = None
) -> str:
    findings = Verdict.read(figures).findings
    spoken = [p for p in words.paragraphs(findings) if models is None or p.model in models[p.task]]
    said = [words.summary(findings), *(f"**{p.subject}.** {text(p)}" for p in spoken)]
    return "\n\n".join(map(_wrapped, filter(None, said + words.warnings(findings))))


def long(figures: dict[str, Any]) -> str:
    """Return a sentence for each kind of masks and competitor."""
    sentences = words.headlines(Verdict.read(figures).findings)
    return "\n".join(_wrapped(f"* {sentence}", indent="  ") for sentence in sentences)


def cells(figures: dict[str, Any]) -> str:
    """Return the table of the cells' quality and cost."""
    return "\n".join(t.markdown() for t in tables(Verdict.read(figures).points)).rstrip()


def comparisons(figures: dict[str, Any]) -> str:
    """Return the table of all comparisons."""
    return comparison_table(Verdict.read(figures).findings).markdown().rstrip()


def ruler(figures: dict[str, Any]) -> str:
    """Return the table of RULER's averages, or a sentence that there are none."""
    averages = Verdict.read(figures).averages
    if not averages:
        return "The record holds no tasks of RULER."
    lengths = sorted({n for a in averages for n in a.by_length})
    columns = ["model, attention", "tasks", *(f"{n:,}" for n in lengths), "wAvg. (inc)", "wAvg. (dec)", "effective"]
    rows = []
    for a in averages:
        weighted = [weighted_average(a.by_length, increasing=up) if a.by_length else None for up in (True, False)]
        shown = [a.by_length.get(n) for n in lengths] + weighted
        percent = ["" if v is None else f"{100 * v:.1f}" for v in shown]
        effective = f"{a.effective_length:,}" if a.effective_length else "none"
        rows.append([f"{a.model}, {a.label}", f"{len(a.tasks)} of {len(RULER)}", *percent, effective])
    note = (
        f"Mean accuracy of the tasks in %; effective: the largest length above {100 * THRESHOLD:.1f} %, the average "
        f"of Llama2-7B at 4K over all {len(RULER)} tasks."
    )
    return Table("RULER", columns, rows, [note]).markdown().rstrip()


def made(figures: dict[str, Any]) -> str:
    """Return a sentence on tests, commits and machine."""
    facts = Verdict.read(figures).facts
    versions = ", ".join(f"{name} {' and '.join(v)}" for name, v in facts["packages"].items())
    commits = ", ".join(commit[:8] + commit[40:] for commit in facts["commits"])
    return _wrapped(
        f"A decision is made at {facts['alpha']:.2g} after Holm's correction over all {facts['tests']} tests of "
        f"difference and equivalence. Records of commit {commits} on "
        f"{', '.join(facts['devices'])}, with {versions}."
    )


# by the word after the record's name in a mark
PARTS: dict[str, Callable[[dict[str, Any]], str]] = {
    "short": short,
    "brief": brief,
    "long": long,
    "cells": cells,
    "comparisons": comparisons,
    "ruler": ruler,
    "made": made,
}


def tables(points: Sequence[Point]) -> list[Table]:
    """Return a table for each model and context: quality beside cost."""
    groups: dict[tuple[str, int], list[Point]] = defaultdict(list)
    for p in points:
        groups[p.model, p.context].append(p)
    return [_table(f"{model}, {context:,} tokens", group) for (model, context), group in groups.items()]


def _table(title: str, group: Sequence[Point]) -> Table:
    names = list(dict.fromkeys(name for p in group for name in p.metrics))
    costs: dict[str, Callable[[Point], str]] = {
        "pairs per row": lambda p: f"{p.cost.pairs:.1f}" if p.cost.pairs is not None else "",
        "prefill ms": lambda p: f"{p.cost.ms:.1f}" if p.cost.ms is not None else "",
        "share of exact's time": lambda p: f"{p.cost.time:.2f}" if p.cost.time is not None else "",
        "KV MiB": lambda p: _mebibytes(p),
    }
    known = {name: show for name, show in costs.items() if any(show(p) for p in group)}
    columns = ["attention", *known, *(name.replace("/", ": ").replace("_", " ") for name in names)]
    rows = [
        [p.label, *(show(p) for show in known.values()), *(table.interval(p.metrics.get(name)) for name in names)]
        for p in group
    ]
    return Table(title, columns, rows, [])


def _mebibytes(point: Point) -> str:
    if point.cost.kv_bytes is None:
        return ""
    return f"{point.cost.kv_bytes / 2**20:.2f}" + (" (evicting)" if point.cost.evicting else "")


def comparison_table(findings: Sequence[Finding]) -> Table:
    """Return a table of findings: the loss against the competitor, and the decision."""
    columns = ["model, task, tokens", "masks", "against", "at equal", "loss", "p, Holm", "p equal, Holm", "masks are"]
    rows = []
    for f in findings:
        ends = "" if f.low is None or f.high is None else f" [{f.low:+.3f}, {f.high:+.3f}]"
        p_values = [("" if p is None else f"{p:.2g}") for p in (f.adjusted, f.adjusted_equal)]
        place = f"{f.model}, {f.task}, {f.context:,}"
        at = "" if f.at in AGAINST_EXACT else f.at
        rows.append([place, f.this.label, f.other.label, at, f"{f.loss:+.3f}{ends}", *p_values, f.decision])
    note = "Loss: in the task's unit, positive where the masks are worse, with its 95 % interval before correction."
    return Table("Every comparison", columns, rows, [note], words=4)


def _wrapped(text: str, indent: str = "") -> str:
    return textwrap.fill(text, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
