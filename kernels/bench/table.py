"""A record as text and as Markdown."""

LEGEND = (
    "ms: the whole call as a model makes it, with the tables that it builds; kernel ms: on tables built beforehand; "
    "speedup: over the fastest exact way that passed its check; MB: the least that can be read and written; x floor: "
    "the time over that of these bytes at the measured rate of a copy; x issue: over that of the instructions of the "
    "executed path, one a cycle and scheduler; the larger floor is the limit; equal error: time of the narrowest "
    "window that errs no more, by its fastest implementation, over the time of the row, above 1 the row is faster. In "
    "brackets: the same of the kernels alone. Two rows are compared by their times in a CUDA graph (graph "
    "ms: without the launches) where both have one, a row with the floors, its tables and its TFLOP/s where it has "
    "one. On a CPU no tables are built, and merged passes are measured forward only: with few rows a pass they would "
    "time Python."
)
COLUMNS = (
    "method", "ms", "quartiles", "graph ms", "kernel ms", "tables ms", "speedup", "equal error", "MB", "x floor",
    "x issue", "TFLOP/s eff.", "act.", "pairs/row", "rms rel.", "max error", "check",
)  # fmt: skip

BRIEF = ("method", "ms", "quartiles", "speedup", "equal error", "MB", "x floor", "pairs/row", "rms rel.")
APART = ("kernel ms", "tables ms", "x issue")  # what a GPU has beside these


def cells(row: dict) -> list[str]:
    """One method as one line of the table; without a time its status stands in its place."""
    if row["ms"] is None:
        return [row["name"], row["status"]]
    ms, graph, alone = row["ms"], row.get("graph_ms"), row.get("kernel", {})
    # beside a time in a graph, in one too
    kernel, tables = (row.get(f"{name}_graph_ms") or row.get(f"{name}_ms") for name in ("kernel", "tables"))

    def both(name: str, unit: str = "") -> str:
        """A ratio, and in brackets that of the kernels alone."""
        if not row.get(name):
            return ""
        whole, own = (x["ratio"] if isinstance(x, dict) else x for x in (row[name], alone.get(name)))
        return f"{whole:.2f}{unit}" + (f" ({own:.2f}{unit})" if own else "")

    return [
        row["name"],
        figure(ms["median"]),
        f"{figure(ms['low'])}..{figure(ms['high'])}",
        figure(graph["median"]) if graph else "",
        figure(kernel["median"]) if kernel else "",
        figure(tables["median"]) if tables else "",
        both("speedup", "x"),
        both("equal_error", "x"),
        figure(row["floor_bytes"] / 1e6),
        both("over_floor"),
        both("over_issue"),
        f"{row['effective_tflops']:.3g}",
        f"{row['actual_tflops']:.3g}",
        f"{row['pairs_per_row']:.1f}",
        f"{row['rms_relative_error']:.1e}",
        f"{row['max_abs_error']:.1e}",
        f"{row['check_error']:.1e}",
    ]


def figure(x: float) -> str:
    """Three digits and no exponent."""
    return f"{x:.0f}" if x >= 100 else f"{x:.1f}" if x >= 10 else f"{x:.2f}" if x >= 1 else f"{x:.3f}"


def title(run: dict) -> str:
    _, heads, tokens, dim = run["shape"]
    rows = "" if run["queries"] == tokens else f", {run['queries']} rows"
    return f"{run['heads']}: {run['call']}, {tokens} tokens{rows}, {heads} heads of {dim}, {run['dtype']}, causal"


def table(run: dict) -> str:
    """The rows of one run as lines of text, and what they say of PLSH."""
    lines = [list(COLUMNS)] + [cells(row) for row in run["methods"]]
    full = [line for line in lines if len(line) == len(COLUMNS)]
    names = max(len(line[0]) for line in lines)
    widths = [names] + [max(len(line[i]) for line in full) for i in range(1, len(COLUMNS))]
    drawn = []
    for line in lines:
        rest = [cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=False)]
        drawn.append("  ".join([line[0].ljust(names), *(rest if len(line) > 2 else line[1:])]))
    return "\n".join([title(run), *drawn, *verdicts(run), *gaps(run)])


def verdicts(run: dict) -> list[str]:
    """A sentence on each PLSH row: does it beat the window of equal error in time?"""
    words = {"faster": "faster than", "slower": "slower than", "even": "within the spread of"}
    error = "error of its gradients" if run["call"] == "backward" else "error"  # equal is that of the output
    found = []
    for row in run["methods"]:
        if row["ms"] and (equal := row.get("equal_error")):
            name, own = equal["window"].split(", "), f"{row['rms_relative_error']:.1%}"
            window = name[0] + (f" by {name[-1]}" if not name[-1].startswith("S=") else "")
            tables = ""
            if alone := row.get("kernel", {}).get("equal_error"):
                tables = f" with its tables, which the window does not need; {alone['ratio']:.2f} by the kernels alone"
            found.append(
                f"{row['name']}: {words[equal['verdict']]} the window of equal error ({window}, {error} "
                f"{equal['error']:.1%} beside {own}), {equal['ratio']:.2f} times its speed{tables}."
            )
    return found


def gaps(run: dict) -> list[str]:
    """A sentence on each time that is missing beside a call's own, and on each part that could not
    be prepared."""
    words = {
        "kernel_ms": "its kernel alone was not timed",
        "tables_ms": "building its tables was not timed",
        "graph_ms": "it was not timed in a CUDA graph",
        "kernel_graph_ms": "its kernel alone was not timed in a CUDA graph",
        "tables_graph_ms": "building its tables was not timed in a CUDA graph",
    }
    found = [
        f"{row['name']}: {words[name]} ({reason})."
        for row in run["methods"]
        for name, reason in row.get("untimed", {}).items()
    ]
    return found + [f"{x['masks']} masks: could not be prepared ({x['reason']})." for x in run.get("failed", [])]


def markdown(record: dict) -> str:
    """The forward runs as tables of Markdown, fewer columns, with where they were measured and what
    they say of PLSH; of other calls the latter alone."""
    about = record["environment"]
    where = about["gpu"] or (
        f"{about['cpu']}, {about['threads']} threads, load {about['load'][0]:g} before"
        if about["threads"] > 1
        else f"{about['cpu']}, one thread, its processor time (other programs ran beside it)"
    )
    commit = (about["commit"] or "unknown")[:7] + (", changed" if about["dirty"] else "")
    parts = [f"{where}; torch {about['torch']}; {about['memory_gb_s']:g} GB/s in a copy; commit {commit}:", ""]
    parts += [f"    {about['command']}"]
    shown = [c for c in COLUMNS if c in BRIEF or (about["device"] == "cuda" and c in APART)]
    kept = [COLUMNS.index(column) for column in shown]
    for run in record["runs"]:
        parts += ["", f"**{title(run)}**", ""]
        if run["call"] == "forward":
            parts += ["| " + " | ".join(shown) + " |", "|---" + "|---:" * (len(shown) - 1) + "|"]
            for row in run["methods"]:
                line = cells(row)
                line = [line[i] for i in kept] if row["ms"] else [line[0], line[1], *[""] * (len(shown) - 2)]
                parts.append("| " + " | ".join(line) + " |")
            parts.append("")
        parts += [f"* {sentence}" for sentence in [*verdicts(run), *gaps(run)]]
    return "\n".join([*parts, "", LEGEND[0].upper() + LEGEND[1:]])
