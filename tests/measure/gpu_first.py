"""The first times of the kernels on a GPU, as tables: of the kernels as they were, and of variants
of the next ones."""

from harness.common.table import Table


def markdown(record: dict) -> str:
    """Times of calls and kernels, then those of the variants, in ms."""
    about, without = record["environment"], record["without_bias_ms"]
    rows = [
        [f"{one['tokens']}", one["weights"], *([one["failed"], *[""] * 5] if "failed" in one else _cells(one))]
        for one in record["times"]
    ]
    columns = ["tokens", "weights", "kernel", "tables", "whole call", "host of a call", "decoded row", "backward"]
    bare = " and ".join(f"{ms:.1f} ms by {name}" for name, ms in without.items())
    note = (
        f"ms on an {about['gpu']}, torch {about['torch']}, Triton {about['triton']}, commit {about['commit']}; "
        f"{record['how']}. Exact attention without a bias at 32768 tokens: {bare}; a copy moves "
        f"{about['memory_tb_s']:.2f} TB/s, so that the byte floor at 131072 tokens is 1.0 ms."
    )
    first = Table("", columns, rows, [note], words=2).markdown()
    variants = record["prototypes"]["times"]
    shown = [one for one in variants if one["weights"] in ("window T=2", "count", "rb")]
    names = list(dict.fromkeys(name for one in shown for name in one["ms"]))
    heads = ["variant", *(f"{one['weights']}, {one['tokens'] // 1024}k" for one in shown)]
    cells = [[name, *(_ms(one["ms"].get(name)) for one in shown)] for name in names]
    cells.append(["tables by a thread for each row", *(_ms(one["tables_ms"]) for one in shown)])
    second = Table("", heads, cells, [f"ms; {record['prototypes']['how']}."], words=1).markdown()
    return f"{first}\n\n{second}"


def _cells(one: dict) -> list[str]:
    names = ("kernel_ms", "tables_ms", "call_ms", "host_ms", "decoded_row_ms", "backward_ms")
    return [_ms(one[name]) for name in names]


def _ms(time: float | None) -> str:
    return "" if time is None else f"{time:.2f}"
