"""The verdict in words: a few templates that turn findings into sentences."""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from harness.analysis.verdict import AGAINST_EXACT, BETTER, EQUAL, SAME, UNDECIDED, WORSE, Finding, Side

PLSH = "Positional LSH"
TEXTS = {"novel": "the held-out novel", "code": "the held-out code"}
NOUNS = {"nats per token": "nats", "bits per byte": "bits per byte", "fraction": "points", "score": "points"}
PRIMARY_AXIS = {"fidelity": "time"}  # of a task, where it was measured; otherwise pairs
EXAMPLE = "S=16"  # the setting that examples show, where there is one
SMALLEST = 1e-6  # p-value that is written out
BY_OTHERS = ("perplexity",)  # tasks that a short verdict leaves to another of the same model


@dataclass(frozen=True)
class Paragraph:
    """What is said of one task of a model.

    Attributes:
        model, task: of the findings.
        subject: both in words.
        tallies: who wins how often, a sentence for each competitor.
        examples: one comparison in figures for each kind of masks.
        bounds: what an oracle loses that reads all scores.
    """

    model: str
    task: str
    subject: str
    tallies: list[str]
    examples: list[str]
    bounds: list[str]

    @property
    def text(self) -> str:
        """All sentences."""
        return " ".join([*self.tallies, *self.examples, *self.bounds])

    @property
    def brief(self) -> str:
        """The first example, and what an oracle loses."""
        return " ".join([*self.examples[:1], *self.bounds])


def paragraphs(findings: Sequence[Finding]) -> list[Paragraph]:
    """Return the verdict in few sentences, a paragraph for each model, task and text: who
    wins how often, and one comparison in figures for each kind of masks."""
    groups: dict[tuple[str, str, str], list[Finding]] = defaultdict(list)
    for f in findings:
        groups[f.model, f.task, f.about].append(f)
    models = {model for model, task, _ in groups if task not in BY_OTHERS}
    return [_paragraph(g) for (model, task, _), g in groups.items() if task not in BY_OTHERS or model not in models]


def summary(findings: Sequence[Finding]) -> str:
    """Return a sentence for each competitor on all comparisons with it; empty without any."""
    against = [f for f in findings if f.at not in AGAINST_EXACT]
    return " ".join(map(_summary, _by(against, lambda f: f.other.curve)))


def _summary(group: Sequence[Finding]) -> str:
    counts = Counter(f.decision for f in group)
    equal = counts[EQUAL] + counts[SAME]
    parts = [f"{PLSH} wins {counts[BETTER]}", f"loses {counts[WORSE]}", f"is equal in {equal}"]
    return (
        f"Of all {_count(group)} with the {group[0].other.curve} at no more pairs or time, {_list(parts)}; "
        f"{counts[UNDECIDED]} {'is' if counts[UNDECIDED] == 1 else 'are'} undecided."
    )


def headlines(findings: Sequence[Finding]) -> list[str]:
    """Return a sentence for each model, task, curve of masks and competitor."""
    groups: dict[tuple, list[Finding]] = defaultdict(list)
    for f in findings:
        groups[f.model, f.task, f.about, f.at, f.this.curve, f.other.curve].append(f)
    return [_headline(group) for group in groups.values()]


def warnings(findings: Sequence[Finding]) -> list[str]:
    """Return a sentence if masks beat what they approximate."""
    odd = [f for f in findings if f.suspicious]
    if not odd:
        return []
    named = "; ".join(f"{f.this.label} on {_place(f)} by {amount(-f.loss, f.unit)}" for f in odd)
    return [f"Check for a fault: {PLSH} is better than exact ALiBi, which it approximates, in {_count(odd)}: {named}."]


def sentence(finding: Finding, *, within: bool = False) -> str:
    """Return one comparison in a sentence. within: leave out model and task, which stand before."""
    f = finding
    place = f"At {f.context:,} tokens" if within else f"On {_place(f)}"
    if f.at == "oracle":
        kept = (
            ""
            if f.this.cost.pairs is None
            else f", which reads all scores and keeps {f.this.cost.pairs:.1f} pairs a row,"
        )
        return f"{place}, the {f.this.label}{kept} {_lost(f.this, f)} against exact ALiBi{_ruling_exact(f)}."
    if f.at == "exact":
        return f"{place}, {f.this.label} {_lost(f.this, f)} against exact ALiBi{_ruling_exact(f)}."
    against = " against exact ALiBi" if f.this.loss is not None else ""
    return (
        f"{place}, {f.this.label} {_lost(f.this, f)}{against}; the {f.other.label}, {_cost(f)}, "
        f"{_lost(f.other, f)}: {_ruling(f)}."
    )


def amount(value: float, unit: str) -> str:
    """Return an amount with its unit."""
    return f"{_number(value, unit)} {_noun(unit)}"


def p_value(p: float | None) -> str:
    """Return a p-value as "p = 0.012" or "p < 1e-6"; empty without one."""
    if p is None:
        return ""
    return f"p < {SMALLEST:.0e}".replace("e-0", "e-") if p < SMALLEST else f"p = {p:.2g}"


def _paragraph(group: Sequence[Finding]) -> Paragraph:
    first = group[0]
    axis = PRIMARY_AXIS.get(first.task, "pairs")
    masks, oracles = ([f for f in group if (f.at == "oracle") == oracle] for oracle in (False, True))
    against = [f for f in masks if f.at == axis] or [f for f in masks if f.at != "exact"]
    tallies = [_tally(fs) for fs in _by(against, lambda f: f.other.curve)]
    if axis == "time" and against[:1] and against[0].at == "time":
        tallies += _slow(group, _clock(against[0]))
    examples = [sentence(_example(fs), within=True) for fs in _by(against or masks, lambda f: f.this.curve)]
    bounds = [sentence(_example(fs), within=True) for fs in _by(oracles, lambda f: f.this.curve)]
    return Paragraph(first.model, first.task, f"{first.model}, {_text(first)}", tallies, examples, bounds)


def _tally(group: Sequence[Finding]) -> str:
    counts, first, total = Counter(f.decision for f in group), group[0], len(group)
    equal = counts[EQUAL] + counts[SAME]
    what = f"{total} comparisons" if total > 1 else "comparison"
    other = f"the {first.other.curve}"
    within = f"equal within {amount(first.margin, first.unit)}"
    alone = {
        counts[WORSE]: f"{other} wins {{every}}",
        counts[BETTER]: f"{PLSH} wins over {other} {{every}}",
        equal: f"{PLSH} and {other} are {within} {{every}}",
    }
    if counts[UNDECIDED] == total:
        none = f"none of the {what}" if total > 1 else "not the one comparison"
        return f"At equal {_axis(first)} {none} of {PLSH} with {other} is decided."
    if total in alone:
        every = f"in all {what}" if total > 1 else "in the one comparison"
        return f"At equal {_axis(first)} {alone[total].format(every=every)}."
    parts = [f"{other} wins {counts[WORSE]}"] * bool(counts[WORSE])
    parts += [f"{PLSH} wins {counts[BETTER]}"] * bool(counts[BETTER])
    parts += [f"{equal} {'are' if equal > 1 else 'is'} {within}"] * bool(equal)
    undecided = counts[UNDECIDED]
    parts += [f"{undecided} {'are' if undecided > 1 else 'is'} undecided"] * bool(undecided)
    return f"Of {what} with {other} at equal {_axis(first)}, {_list(parts)}."


def _slow(group: Sequence[Finding], clock: str) -> list[str]:
    """Say where masks take no less time than what they approximate, which then wins at equal time."""
    timed = [f for f in group if f.at == "exact" and f.this.cost.time is not None]
    slow = [f for f in timed if (f.this.cost.time or 0) >= 1]
    if not slow:
        return []
    return [
        f"In {len(slow)} of {len(timed)} settings of {PLSH} exact ALiBi itself takes no more {clock}: "
        f"at {_list([f'{c:,}' for c in sorted({f.context for f in slow})])} tokens."
    ]


def _example(group: Sequence[Finding]) -> Finding:
    """The comparison that stands for others: the middle context, the usual number of masks, and the
    competitor that loses least."""
    contexts = sorted({f.context for f in group})
    middle = [f for f in group if f.context == contexts[len(contexts) // 2]]
    usual = [f for f in middle if f.this.setting == EXAMPLE] or middle
    return min(usual, key=lambda f: (-f.loss, f.other.label))


def _headline(group: Sequence[Finding]) -> str:
    first = group[0]
    exact, this, other = first.at in AGAINST_EXACT, first.this.curve, first.other.curve
    templates: dict[str, Callable[[list[Finding]], str]] = {
        WORSE: lambda fs: (
            f"{this} loses {_range(fs)} against exact ALiBi {_places(fs, group)}"
            if exact
            else f"the {other} beats {this} by {_range(fs)} {_places(fs, group)}"
        ),
        BETTER: lambda fs: f"{this} beats {'' if exact else 'the '}{other} by {_range(fs)} {_places(fs, group)}",
        EQUAL: lambda fs: (
            f"{this} and {'' if exact else 'the '}{other} are equal within {amount(first.margin, first.unit)} "
            f"{_places(fs, group)}"
        ),
        SAME: lambda fs: f"{this} and {'' if exact else 'the '}{other} agree on every sample {_places(fs, group)}",
        UNDECIDED: lambda fs: (
            f"{_samples(fs)} do not decide between {this} and {'' if exact else 'the '}{other} {_places(fs, group)}"
        ),
    }
    clauses = [
        template([f for f in group if f.decision == decision])
        for decision, template in templates.items()
        if any(f.decision == decision for f in group)
    ]
    at = "" if exact else f" at equal {_axis(first)}"
    return f"{first.model}, {_text(first)}{at}: {'; '.join(clauses)}."


def _places(some: Sequence[Finding], whole: Sequence[Finding]) -> str:
    """Where findings hold: contexts, with the settings of masks unless these are all."""
    settings = list(dict.fromkeys(f.this.setting for f in whole))
    named = _list([f"{context:,}" for context in sorted({f.context for f in some})]) + " tokens"
    if len(some) == len(whole):
        every = f" ({_list(settings)})" if len(settings) > 1 or settings[0] != some[0].this.label else ""
        return f"at {named}{every}"
    contexts_of: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for context in sorted({f.context for f in some}):
        here, there = ([f.this.setting for f in fs if f.context == context] for fs in (some, whole))
        contexts_of[() if here == there else tuple(here)].append(context)
    parts = [
        f"{_list([f'{c:,}' for c in contexts])} tokens" + (f" ({_list(here)})" if here else "")
        for here, contexts in contexts_of.items()
    ]
    return f"at {_list(parts)}"


def _lost(side: Side, finding: Finding) -> str:
    unit = finding.unit
    if side.loss is None:
        return f"has {amount(side.value, unit)}"
    if side.loss == 0:
        return "loses nothing"
    verb = "loses" if side.loss > 0 else "gains"
    if not side.half_width or not math.isfinite(side.half_width):
        return f"{verb} {amount(abs(side.loss), unit)}"
    scale = 100 if NOUNS[unit] == "points" else 1
    half, value = scale * side.half_width, scale * abs(side.loss)
    decimals = max(0, -math.floor(math.log10(half)) + (f"{half:e}"[0] == "1"))
    return f"{verb} {value:.{decimals}f} ± {half:.{decimals}f} {_noun(unit)}"


def _cost(f: Finding) -> str:
    this, other = f.this.cost, f.other.cost
    if f.at == "pairs":
        return f"which visits no more pairs ({other.pairs:.1f} a row beside {this.pairs:.1f})"
    return f"which takes no more {_clock(f)} ({other.time:.2f} of exact ALiBi's; {PLSH} {this.time:.2f})"


def _ruling(f: Finding) -> str:
    adjusted = f"Holm-adjusted {p_value(f.adjusted)}"
    return {
        BETTER: f"{PLSH} wins ({adjusted})",
        WORSE: f"the {f.other.curve} wins ({adjusted})",
        EQUAL: f"equal within {amount(f.margin, f.unit)} (Holm-adjusted {p_value(f.adjusted_equal)})",
        SAME: "they agree on every sample",
        UNDECIDED: f"{_samples([f])} do not decide ({adjusted})" if f.adjusted is not None else "nothing is decided",
    }[f.decision]


def _ruling_exact(f: Finding) -> str:
    if f.decision == EQUAL:
        return f", equal within {amount(f.margin, f.unit)} (Holm-adjusted {p_value(f.adjusted_equal)})"
    if f.decision == UNDECIDED:
        return f", which {_samples([f])} do not decide" if f.loss else f" on {_samples([f])}"
    return f" (Holm-adjusted {p_value(f.adjusted)})" if f.decision != SAME else ""


def _range(findings: Sequence[Finding]) -> str:
    unit = findings[0].unit
    low, high = (_number(end(abs(f.loss) for f in findings), unit) for end in (min, max))
    noun = _noun(unit)
    return f"{low} {noun}" if low == high else f"{low} to {high} {noun}"


def _samples(findings: Sequence[Finding]) -> str:
    """The number of samples, and of draws where there are several."""

    def count(numbers: set[int], what: str) -> str:
        low, high = min(numbers), max(numbers)
        return f"{low} {what}" if low == high else f"{low} to {high} {what}"

    draws = {f.draws for f in findings}
    of = f" under {count(draws, 'draws')}" if max(draws) > 1 else ""
    return count({f.samples for f in findings}, "samples") + of


def _number(value: float, unit: str) -> str:
    if NOUNS[unit] == "points":
        return f"{100 * value:.1f}"
    return f"{value:.2g}" if abs(value) >= 1e-4 or value == 0 else "less than 0.0001"


def _noun(unit: str) -> str:
    return NOUNS[unit]


def _place(f: Finding) -> str:
    return f"{f.model}, {_text(f)}, {f.context:,} tokens"


def _text(f: Finding) -> str:
    if not f.about:
        return f.task
    what = {"fidelity": "divergence on ", "perplexity": "bits per byte of "}.get(f.task, f"{f.task} on ")
    return what + TEXTS.get(f.about, f"text {f.about[:8]}")


def _axis(f: Finding) -> str:
    return "pairs" if f.at == "pairs" else _clock(f)


def _clock(f: Finding) -> str:
    return "time on a CPU" if f.device.startswith("cpu") else f"time on {f.device}"


def _count(findings: Sequence[Finding]) -> str:
    return f"{len(findings)} comparison{'s' * (len(findings) != 1)}"


def _by(findings: Iterable[Finding], key: Callable[[Finding], str]) -> list[list[Finding]]:
    groups: dict[str, list[Finding]] = defaultdict(list)
    for f in findings:
        groups[key(f)].append(f)
    return list(groups.values())


def _list(words: Sequence[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else words[0]
