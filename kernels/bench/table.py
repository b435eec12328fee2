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

MARKDOWN_COLUMNS = ("method", "ms", "quartiles", "speedup", "equal error", "MB", "x floor", "pairs/row", "rms rel.")
GPU_COLUMNS = ("kernel ms", "tables ms", "x issue")  # in addition, on a GPU


def cells(row: dict) -> list[str]:
    """The cells of one method; without a time, its name and status."""
    if row["ms"] is None:
        return [row["name"], row["status"]]
    ms, graph, alone = row["ms"], row.get("graph_ms"), row.get("kernel", {})
    # beside a time in a graph, in one too
    kernel, tables = (row.get(f"{name}_graph_ms") or row.get(f"{name}_ms") for name in ("kernel", "tables"))

    def both(name: str, unit: str = "") -> str:
        """A ratio, and in brackets the ratio of the kernels alone."""
        if not row.get(name):
            return ""
        whole, kernels = (x["ratio"] if isinstance(x, dict) else x for x in (row[name], alone.get(name)))
        return f"{whole:.2f}{unit}" + (f" ({kernels:.2f}{unit})" if kernels else "")

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
    """One line that names the call of a run."""
    _, heads, tokens, dim = run["shape"]
    rows = "" if run["queries"] == tokens else f", {run['queries']} rows"
    return f"{run['heads']}: {run['call']}, {tokens} tokens{rows}, {heads} heads of {dim}, {run['dtype']}, causal"


def table(run: dict) -> str:
    """The rows of one run as lines of text, and the verdicts on PLSH."""
    lines = [list(COLUMNS)] + [cells(row) for row in run["methods"]]
    full = [line for line in lines if len(line) == len(COLUMNS)]
    names = max(len(line[0]) for line in lines)
    widths = [names] + [max(len(line[i]) for line in full) for i in range(1, len(COLUMNS))]
    padded = []
    for line in lines:
        rest = [cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=False)]
        padded.append("  ".join([line[0].ljust(names), *(rest if len(line) > 2 else line[1:])]))
    return "\n".join([title(run), *padded, *verdicts(run), *gaps(run)])


def verdicts(run: dict) -> list[str]:
    """A sentence on each PLSH row: whether it takes less time than the window of equal error."""
    words = {"faster": "faster than", "slower": "slower than", "even": "within the spread of"}
    error = "error of its gradients" if run["call"] == "backward" else "error"  # the output has equal error
    sentences = []
    for row in run["methods"]:
        if row["ms"] and (equal := row.get("equal_error")):
            name, percent = equal["window"].split(", "), f"{row['rms_relative_error']:.1%}"
            window = name[0] + (f" by {name[-1]}" if not name[-1].startswith("S=") else "")
            tables = ""
            if alone := row.get("kernel", {}).get("equal_error"):
                tables = f" with its tables, which the window does not need; {alone['ratio']:.2f} by the kernels alone"
            sentences.append(
                f"{row['name']}: {words[equal['verdict']]} the window of equal error ({window}, {error} "
                f"{equal['error']:.1%} beside {percent}), {equal['ratio']:.2f} times its speed{tables}."
            )
    return sentences


def gaps(run: dict) -> list[str]:
    """A sentence on each missing time other than the call's, and on each part that could not be
    prepared."""
    words = {
        "kernel_ms": "its kernel alone was not timed",
        "tables_ms": "building its tables was not timed",
        "graph_ms": "it was not timed in a CUDA graph",
        "kernel_graph_ms": "its kernel alone was not timed in a CUDA graph",
        "tables_graph_ms": "building its tables was not timed in a CUDA graph",
    }
    sentences = [
        f"{row['name']}: {words[name]} ({reason})."
        for row in run["methods"]
        for name, reason in row.get("untimed", {}).items()
    ]
    return sentences + [f"{x['masks']} masks: could not be prepared ({x['reason']})." for x in run.get("failed", [])]


def markdown(record: dict) -> str:
    """The record as Markdown: where it was measured, the forward runs as tables with fewer columns,
    and the verdicts on PLSH of all runs."""
    about = record["environment"]
    where = about["gpu"] or (
        f"{about['cpu']}, {about['threads']} threads, load {about['load'][0]:g} before"
        if about["threads"] > 1
        else f"{about['cpu']}, one thread, its processor time (other programs ran beside it)"
    )
    commit = (about["commit"] or "unknown")[:7] + (", changed" if about["dirty"] else "")
    parts = [f"{where}; torch {about['torch']}; {about['memory_gb_s']:g} GB/s in a copy; commit {commit}:", ""]
    parts += [f"    {about['command']}"]
    shown = [c for c in COLUMNS if c in MARKDOWN_COLUMNS or (about["device"] == "cuda" and c in GPU_COLUMNS)]
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
