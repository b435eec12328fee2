"""What `make odd` has found, as a table: odd inputs, and the number or the refusal that each
got."""

from harness.common.table import Table

COLUMNS = ["kind", "what is odd", "answer"]


def markdown(record: dict) -> str:
    """The inputs by kind, and with which code they were run."""
    rows = []
    for case in record["cases"]:
        answer = case["answer"]
        told = f"accuracy {answer:.3f}" if isinstance(answer, float) else f"refused: {answer}"
        rows.append([case["kind"], case["odd"], told])
    about, wrong = record["environment"], sum(case["wrong"] is not None for case in record["cases"])
    note = f"{len(rows)} inputs, {wrong} with a wrong answer; commit {about['commit'][:7]}, by {about['command']}."
    return Table("", COLUMNS, rows, [note], words=3).markdown()
