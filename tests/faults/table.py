"""What `make faults` has found, as a table: faults that were put into runs, and what they did in
the end."""

from harness.common.table import Table

COLUMNS = ["fault", "injected", "lost", "doubled", "changed", "computed twice", "exit codes", "seconds each"]
HARM = ("lost", "doubled", "changed", "twice")


def markdown(record: dict) -> str:
    """The faults by kind, their sum, and where they were injected."""
    kinds, about = record["kinds"], record["environment"]
    rows = []
    for kind in kinds:
        codes = ", ".join(f"{code} ({count})" for code, count in kind["exit_codes"].items())
        counts = [f"{kind[name]:,}" for name in ("injected", *HARM)]
        rows.append([kind["kind"], *counts, codes, f"{kind['seconds'] / max(kind['injected'], 1):.1f}"])
    sums = [f"{sum(kind[name] for kind in kinds):,}" for name in ("injected", *HARM)]
    rows.append(["all", *sums, "", ""])
    broken = sum(len(kind["broken_promises"]) for kind in kinds)
    note = f"{record['seconds'] / 60:.0f} minutes on {about['device']}, {about['cores']} cores, commit "
    note += f"{about['commit'][:7]}, by {about['command']}. Promises broken (exit codes, tracebacks, rows): {broken}."
    return Table("", COLUMNS, rows, [note]).markdown()
