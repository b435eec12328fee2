"""The record of a verdict: every cell with its quality and cost, every comparison, and RULER's
averages, as JSON. The page and the picture are drawn from it alone."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from harness.analysis import reader
from harness.analysis.costs import TIMING, Cost, Costs
from harness.analysis.decisions import ALPHA
from harness.analysis.reader import Comparison
from harness.analysis.verdict import MARGINS, SLACK, Finding, count_tests, curve_of, find, text_of
from harness.attentions.registry import table_order
from harness.common.errors import UserError
from harness.common.files import short_hash
from harness.common.stats import Metric
from harness.pareto import ruler

VERSION = 1  # of the record
# figures beside the headlines of the tasks
ALSO = ("theory/output_error",)


@dataclass(frozen=True)
class Point:
    """A cell.

    Attributes:
        model, context, label, cell_id: of the cell.
        curve: the method without its size.
        style: key of its colours (`harness.attentions.base.Style`).
        cost: what it costs.
        metrics: the headline of each task, and those of ALSO.
    """

    model: str
    context: int
    label: str
    cell_id: str
    curve: str
    style: str
    cost: Cost
    metrics: dict[str, Metric]

    @classmethod
    def read(cls, value: dict[str, Any]) -> "Point":
        """Return the point of a record."""
        metrics = {name: Metric(**metric) for name, metric in value["metrics"].items()}
        return cls(**{**value, "cost": Cost(**value["cost"]), "metrics": metrics})


@dataclass(frozen=True)
class Verdict:
    """The content of a record.

    Attributes:
        points: the cells.
        findings: the comparisons.
        averages: RULER's by (model, attention), if there are any.
        facts: alpha, margins, slack, commits and machine.
    """

    points: list[Point]
    findings: list[Finding]
    averages: list[ruler.Average]
    facts: dict[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """Return the record as JSON."""
        return {
            "version": VERSION,
            **self.facts,
            "points": [asdict(p) for p in self.points],
            "findings": [f.as_dict() for f in self.findings],
            "ruler": [asdict(a) for a in self.averages],
        }

    @classmethod
    def read(cls, value: dict[str, Any]) -> "Verdict":
        """Return the content of a record.

        Raises:
            UserError: for a record of another version.
        """
        if value.get("version") != VERSION:
            raise UserError(f"The record has version {value.get('version')}, and this code reads {VERSION}.")
        facts = {k: v for k, v in value.items() if k not in ("version", "points", "findings", "ruler")}
        return cls(
            [Point.read(p) for p in value["points"]],
            [Finding.read(f) for f in value["findings"]],
            [ruler.Average.read(a) for a in value["ruler"]],
            facts,
        )


def make(results: Path) -> Verdict:
    """Return the verdict of a store.

    Raises:
        UserError: if the store holds nothing that can be compared.
    """
    compared = reader.comparisons(reader.records(results))
    findings = find(compared)
    if not findings:
        raise UserError(
            f"{results} holds no masks beside exact ALiBi or a window on the same samples: run "
            f"python -m harness.sweep sweeps/pareto.yaml --results {results} first."
        )
    return Verdict(points(compared), findings, ruler.averages(compared), _facts(compared, findings))


def points(compared: Sequence[Comparison]) -> list[Point]:
    """Return the cells that have figures other than times, in the order of tables."""
    costs = Costs.of([r for q in compared for r in q.records])
    found: dict[tuple[str, str], Point] = {}
    order = {}
    questions: dict[tuple[str, str, int], set[str]] = defaultdict(set)
    for q in compared:
        questions[q.model, q.task, q.context] |= {short_hash(r.options) for r in q.records if r.metrics}
    for q in compared:
        several = len(questions[q.model, q.task, q.context]) > 1  # whose figures need a name each
        for r in q.records:
            if not r.metrics or r.task == TIMING:
                continue
            cost = costs.of_record(r)
            key = (q.model, r.cell_id)
            empty = Point(q.model, q.context, r.cell.label, r.cell_id, curve_of(r), r.method.style.key, cost, {})
            point = found.setdefault(key, empty)
            names = [r.headline, *(name for name in ALSO if name in r.metrics)]
            about = f" ({text_of(r) or 'options'} {short_hash(r.options)[:4]})" if several else ""
            point.metrics.update({name + about: r.metrics[name] for name in names})
            order[key] = (q.model, q.context, table_order(r.method), curve_of(r), cost.pairs or 0.0, r.cell.label)
    return [found[key] for key in sorted(found, key=lambda key: order[key])]


def _facts(compared: Sequence[Comparison], findings: Sequence[Finding]) -> dict[str, Any]:
    used = [r.environment for q in compared for r in q.records if r.environment]
    commits = sorted({e.code + (" with changes" if e.dirty else "") for e in used})
    packages: dict[str, set[str]] = {}
    for e in used:
        for name, version in e.packages.items():
            if version:
                packages.setdefault(name, set()).add(version)
    return {
        "alpha": ALPHA,
        "margins": MARGINS,
        "slack": SLACK,
        "tests": count_tests(findings),
        "commits": commits,
        "devices": sorted({e.device for e in used if e.device}),
        "packages": {name: sorted(versions) for name, versions in sorted(packages.items())},
    }
