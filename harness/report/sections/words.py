"""Who wins, in words: what the paired comparisons of the store decide, with one correction over all of
them."""

from harness.analysis import words
from harness.analysis.reader import Comparison
from harness.analysis.verdict import count_tests, find
from harness.report.describe import Section, Tags, Text


def section(comparisons: list[Comparison]) -> Section:
    """Return the section that the page begins with."""
    findings = find(comparisons)
    blocks = [Text(overall)] if (overall := words.summary(findings)) else []
    blocks += [Text(f"{p.subject}: {p.text}", Tags(p.model, p.task)) for p in words.paragraphs(findings)]
    blocks += [Text(warning) for warning in words.warnings(findings)]
    absent = (
        "No cell of Positional LSH stands beside exact ALiBi or a window on the same samples.",
        "python -m harness.run attn=plsh references=compute",
    )
    return Section(
        "words",
        "Who wins",
        f"What {count_tests(findings)} tests decide at 5 % after Holm's correction over all of them. A competitor of "
        "equal cost is the dearest setting that costs no more than the masks. Undecided is no proof of equality, for "
        "which a difference must surely lie within a margin.",
        blocks,
        missing=[] if blocks else [absent],
    )
