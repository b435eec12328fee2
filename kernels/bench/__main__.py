"""Time every method side by side, each with its error against the float64 oracle: the most
informative parts first, each row written as soon as it is known."""

import argparse
import gc
import math
import signal
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch

from kernels.bench.clock import DeviceLost, clock_for
from kernels.bench.measure import blank, measure, reason_of
from kernels.bench.methods import masked, maskless
from kernels.bench.plan import CALLS, LENGTHS, MASKS, Work, head_sets, plan
from kernels.bench.problem import SAMPLED_ROWS, Problem
from kernels.bench.record import Record
from kernels.bench.table import LEGEND, table
from kernels.common.environment import environment, unwritable
from kernels.common.malloc import disable_malloc_trim

PROCESS_ENDED = "error: the process ended within this row, which --fresh alone tries again"
DEFAULTS: dict[str, dict[str, Any]] = {
    "cuda": {"heads": "mpt-7b,storywriter,bloom-7b1", "tokens": LENGTHS, "masks": MASKS, "calls": tuple(CALLS)},
    "cpu": {"heads": "small", "tokens": (16384, 4096), "masks": (16,), "calls": ("forward", "decode-1", "decode-16")},
}


def main(arguments: list[str] | None = None) -> dict:
    """Runs the command line: prints a table for each run and returns the content of --json."""
    options = parsed(arguments)
    disable_malloc_trim()
    clock = clock_for(options.device, options.repeats)
    about = environment(options.device, "kernels.bench", options.commit)
    try:
        record = Record(about, options.json, fresh=options.fresh)
    except ValueError as e:
        print(f"kernels.bench: {e}", file=sys.stderr)
        sys.exit(2)
    about["memory_gb_s"] = float(f"{clock.memory_rate():.3g}")
    print(", ".join(f"{name} {value}" for name, value in record.content["environment"].items()))
    works = plan(options.heads, options.calls, options.tokens, options.masks)
    begin = time.monotonic()

    def stop() -> bool:
        return options.minutes is not None and time.monotonic() - begin > 60 * options.minutes

    for work in works:
        if record.complete(work):
            continue
        if stop():
            break
        run = one_part(work, options.device, record, clock, stop)
        print(f"\n{table(run)}", flush=True)
    if any(record.failure(work) for work in works):
        print("\nParts that could not be prepared are not tried again, unless --fresh is given.")
    left = [work.title for work in works if not record.complete(work)]
    record.content["not_reached"] = left
    record.save()
    print(f"\n{LEGEND}")
    print("\n".join(f"not reached in {options.minutes:g} minutes: {title}" for title in left))
    return record.content


def one_part(work: Work, device: str, record: Record, clock, stop) -> dict:
    """Measures the rows of this part that the record lacks, and returns its run. A part whose
    inputs or oracle do not fit into memory keeps the methods that were ready before, and the
    reason.

    Args:
        work: the part.
        device: "cuda" for kernel `triton` in bfloat16, "cpu" for kernel `sdpa` in float32.
        record: gets every row as soon as it is known.
        clock: of the device.
        stop: no further method starts once it returns True.

    Raises:
        SystemExit: if a method left the GPU unusable for this process.
    """
    kernel = "triton" if device == "cuda" else "sdpa"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    run = record.run_of(work, dtype)
    problem, methods, failed, at = None, [], None, "preparing it"
    with torch.no_grad():
        try:
            problem = Problem(
                work.heads, work.tokens, work.queries, backward=work.call == "backward", device=device, dtype=dtype
            )
            methods = maskless(problem, kernel) if work.first else []
            methods += masked(problem, kernel, work.masks)
        except Exception as e:  # whatever it is, the other parts are measured
            failed = reason_of(e)
        for method in methods:
            if method.name == run.get("started"):
                record.add(run, blank(method, PROCESS_ENDED))
        known = {row["name"] for row in run["methods"]}
        missing = sorted((m for m in methods if m.name not in known), key=lambda m: m.rank)
        try:
            if failed:
                gc.collect()
                clock.release()
            for row in (
                measure(problem, missing, clock, stop, partial(record.begin, run)) if problem and missing else []
            ):
                at = row["name"]
                record.add(run, row)
                missing = missing[1:]
        except DeviceLost as e:
            sys.exit(f"{work.title}: {at} broke the GPU's context ({e}). The same command goes on after it.")
        except (KeyboardInterrupt, SystemExit):
            record.begin(run, None)  # it was stopped, and not by what it ran
            raise
    if failed and not missing:  # otherwise what was ready is still to be measured
        record.fail(run, work, failed)
    elif not missing:
        run["masks"].append(work.masks)
    return run


def parsed(arguments: list[str] | None) -> argparse.Namespace:
    """The options of the command line, checked; exits with a message for wrong ones."""
    parser = argparse.ArgumentParser(prog="python -m kernels.bench", description=__doc__)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--heads", help="mpt-7b, storywriter, bloom-7b1, small, or 8x64, with commas between them")
    parser.add_argument("--calls", help=", ".join(CALLS))
    parser.add_argument("--tokens", help="lengths, with commas between them")
    parser.add_argument("--masks", help="numbers of masks; the first brings the methods without masks")
    parser.add_argument("--repeats", type=int, default=7, help="how often a long call runs")
    parser.add_argument("--minutes", type=float, help="begin nothing new after these; the rest is listed")
    parser.add_argument("--json", type=Path, help="write to this file after every row, and keep the rows it has")
    parser.add_argument("--fresh", action="store_true", help="forget the rows of the file")
    parser.add_argument("--commit", help="of the code, where it is no git checkout")
    options = parser.parse_args(arguments)
    default = DEFAULTS[options.device]
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("no CUDA GPU was found: use --device cpu.")
    try:
        options.heads = head_sets(_listed(options.heads or default["heads"]))
    except ValueError as e:
        parser.error(str(e))
    options.calls = _listed(options.calls or ",".join(default["calls"]))
    if unknown := set(options.calls) - set(CALLS):
        parser.error(f"--calls takes {', '.join(CALLS)}, not {', '.join(sorted(unknown))}.")
    if options.device == "cpu" and "backward" in options.calls:
        parser.error("backward needs --device cuda.")
    for name, least in (("tokens", 4 * SAMPLED_ROWS), ("masks", 1)):
        text = getattr(options, name) or ",".join(map(str, default[name]))
        numbers = list(dict.fromkeys(int(x) if x.isdecimal() else 0 for x in _listed(text)))
        if min(numbers) < least:
            parser.error(f"--{name} takes whole numbers from {least} on, with commas between them, not {text}.")
        setattr(options, name, numbers)
    if options.repeats < 1:
        parser.error("--repeats takes whole numbers from 1 on.")
    if options.minutes is not None and not 0 <= options.minutes < math.inf:
        parser.error(f"--minutes takes a number from 0 on, not {options.minutes:g}.")
    if options.json is not None and (reason := unwritable(options.json)):
        parser.error(f"--json: {reason}")
    return options


def _listed(text: str) -> list[str]:
    """The entries between the commas, each once."""
    return list(dict.fromkeys(x.strip() for x in text.split(",")))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
    main()
