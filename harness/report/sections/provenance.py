"""The provenance of records: each combination of code, packages and machine, with its times."""

from collections import defaultdict

from harness.analysis.reader import Comparison, Record
from harness.common.table import Table
from harness.report.describe import Grid, Section, Tags
from harness.report.sections import common
from harness.results.schema import Environment


def section(comparisons: list[Comparison]) -> Section:
    """Return the section on the provenance of records."""
    groups: dict[tuple, list[tuple[Comparison, Record]]] = defaultdict(list)
    for q in comparisons:
        for r in q.records:
            if r.environment:
                groups[_provenance(r.environment)].append((q, r))
    rows, tags = [], []
    for (commit, device, packages), group in groups.items():
        starts = sorted(r.start for _, r in group)
        hosts = sorted({str(r.environment.host) for _, r in group})
        host_text = ", ".join(hosts[:3]) + (f" and {len(hosts) - 3} more" if len(hosts) > 3 else "")
        rows.append([commit, device, packages, host_text, starts[0], starts[-1], str(len(group))])
        models = {q.model for q, _ in group}
        tags.append(Tags(models.pop() if len(models) == 1 else ""))
    columns = ["commit", "device", "packages", "hosts", "first started", "last started", "records"]
    return Section(
        "provenance",
        "Provenance",
        "Records that stand in one plot should come from one commit and, where times are compared, from one device. "
        "More than one row here says that they do not.",
        [Grid(Table("What the records were made with", columns, rows, []), tags)] if rows else [],
        common.commands(comparisons),
        [] if rows else [("No record says where it was made.", "python -m harness.run")],
    )


def _provenance(environment: Environment) -> tuple[str, str, str]:
    dirty = " with uncommitted changes" if environment.dirty else ""
    packages = {"python": environment.python, **environment.packages}
    versions = ", ".join(f"{name} {version}" for name, version in packages.items() if version)
    driver = f", driver {environment.driver}" if environment.driver else ""
    tf32 = ", TF32 on" if environment.tf32 else ""
    commit = environment.commit[:12] if environment.commit else environment.code
    return f"{commit}{dirty}", f"{environment.device}{driver}{tf32}", versions
