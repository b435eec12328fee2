"""What `make fuzz` has found, as a table: examples of each session, and how they ended."""

from harness.common.errors import EXIT_FAILED, EXIT_INVALID, EXIT_OK, EXIT_RETRY
from harness.common.table import Table

CODES = {EXIT_OK: "done (0)", EXIT_INVALID: "refused (2)", EXIT_FAILED: "failed (1)", EXIT_RETRY: "to go on (75)"}
COLUMNS = ["what is odd", "examples", *CODES.values(), "promises broken", "seconds"]


def markdown(record: dict) -> str:
    """The sessions, and with which code they were run."""
    rows = []
    for session in record["sessions"]:
        ends = [session["codes"].get(str(code), 0) for code in CODES]
        counts = [session["examples"], *ends, sum(session["broken"].values()), session["seconds"]]
        rows.append([session["session"], *(f"{count:,}" for count in counts)])
    sums = (sum(int(row[column].replace(",", "")) for row in rows) for column in range(1, len(COLUMNS)))
    rows.append(["all", *(f"{total:,}" for total in sums)])
    about = record["environment"]
    note = f"Commit {about['commit'][:7]}, {about['cores']} cores, by {about['command']}."
    return Table("", COLUMNS, rows, [note]).markdown()
