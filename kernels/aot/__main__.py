"""Compiles the Triton kernels ahead of time, without a GPU, and compares the results with a
committed record.

`python -m kernels.aot` compiles every configuration for sm_80 and sm_90 and compares with
docs/results/aot.json; `--write` renews the record, all of it or what a name chooses, and `--table`
prints what docs/kernels.md shows of it. Registers, spills and shared memory decide how many blocks
share a multiprocessor.
"""

import argparse
import json
import sys
from concurrent.futures import ProcessPoolExecutor

import triton

from kernels.aot.configurations import RECORD, build, compare, every, table
from kernels.aot.issue import table as floors
from kernels.methods.slopes import alibi_slopes


def main() -> int:
    """Runs the command line and returns the exit code."""
    how = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m kernels.aot", description=__doc__, formatter_class=how)
    parser.add_argument("only", nargs="?", default="", help="configurations with this in their name, dkdv-sm90 say")
    parser.add_argument("--write", action="store_true", help="renew docs/results/aot.json")
    parser.add_argument("--table", action="store_true", help="print the tables of docs/kernels.md from the record")
    parser.add_argument("-j", "--jobs", type=int, default=1, help="compile in so many processes")
    options = parser.parse_args()
    if options.jobs < 1:
        parser.error("-j takes whole numbers from 1 on.")
    if options.table:
        print(table(json.loads(RECORD.read_text())["kernels"]), floors(alibi_slopes(32), 131072), sep="\n\n")
        return 0
    record = json.loads(RECORD.read_text()) if RECORD.exists() else {"triton": None, "kernels": {}}
    chosen = [configuration for configuration in every() if options.only in configuration.id]
    if not chosen:
        parser.error(f"no configuration has {options.only!r} in its name.")
    if options.only and options.write and record["triton"] != triton.__version__:
        parser.error(f"the record is of triton {record['triton']}: renew all of it.")
    resources, worse = {c.id: record["kernels"].get(c.id) for c in every()}, 0
    with ProcessPoolExecutor(options.jobs) as pool:
        for configuration, one in zip(chosen, pool.map(build, chosen), strict=True):
            resources[configuration.id] = one
            known = record["kernels"].get(configuration.id)
            changes = compare(one, known) if known else ["new"]
            worse += bool(changes)
            print(f"{configuration.id:40} {json.dumps(one)} {'; '.join(changes)}", flush=True)
    if options.write:
        lines = [f"    {json.dumps(name)}: {json.dumps(one)}" for name, one in resources.items() if one]
        versions = f'"triton": {json.dumps(triton.__version__)}'
        RECORD.write_text(f'{{\n  {versions},\n  "kernels": {{\n' + ",\n".join(lines) + "\n  }\n}\n")
        return 0
    return int(worse > 0)


if __name__ == "__main__":
    sys.exit(main())
