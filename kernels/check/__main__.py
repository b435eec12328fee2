"""`python -m kernels.check`: the fused kernels on this GPU against the oracle, in float64.

Two sets of calls, each forward, decoding and backward:

* the shared matrix (`kernels.check.cases`) with the head dimensions of models: pairwise coverage of
  law, sampler, dtype, mask count, head dimension, call shape, padding and memory layout;
* the configurations that the bench measures: bfloat16 at head dimension 128, each law in every call
  shape, also with evicted keys.

Output buffers are pre-filled with NaN. Most of the time is compilation: the parts run in separate
processes, side by side, and a kernel that crashes takes down its own part only. Each part is
printed and written as it ends. Needs torch, triton and numpy only. Exits with 1, and names the
failures, if an error is above its limit. `--kernel` and `--device` check another kernel, or the
CPU.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import torch

from kernels.check import calls
from kernels.common.dtypes import dtype_name
from kernels.common.environment import environment, replace_file, unwritable, written

PART_SECONDS = 280  # time limit of a part


def in_a_process(name: str, dtype: torch.dtype, kernel: str, device: str) -> list[dict]:
    """Runs `calls.check` in a separate process.

    Args:
        name: of the weights.
        dtype: of the inputs.
        kernel, device: as on the command line.

    Returns:
        The rows; one row with the reason if the process fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "rows.json")
        command = [sys.executable, "-m", "kernels.check", "--part", name, dtype_name(dtype)]
        command += ["--kernel", kernel, "--device", device]
        try:
            done = subprocess.run([*command, "--json", file], capture_output=True, text=True, timeout=PART_SECONDS)
            reason = f"ended with {done.returncode}: " + (done.stderr.strip().splitlines() or [""])[-1]
        except subprocess.TimeoutExpired:
            reason = f"took longer than {PART_SECONDS} s"
        if file.exists():
            return json.loads(file.read_text())["rows"]
    return [calls.blank(name, "all", dtype, 0) | {"reason": reason}]


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line and returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m kernels.check", description=__doc__.split("\n")[0])
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--kernel", choices=["triton", "sdpa", "flex"], help="triton on a GPU, sdpa on the CPU")
    parser.add_argument("--part", nargs=2, metavar=("WEIGHTS", "DTYPE"), help="only these, in this process")
    parser.add_argument("--workers", type=int, help="processes at a time; by default one for each core, 16 at most")
    parser.add_argument("--json", type=Path, help="write every error to this file")
    parser.add_argument("--commit", help="of the code, where it is no git checkout")
    options = parser.parse_args(arguments)
    if options.workers is not None and options.workers < 1:
        parser.error(f"--workers takes a whole number from 1 on, not {options.workers}.")
    if options.json is not None and (reason := unwritable(options.json)):
        parser.error(f"--json: {reason}")
    if options.device == "cuda" and not torch.cuda.is_available():
        print("kernels.check found no CUDA GPU: --device cpu checks kernel sdpa, `pytest tests/kernels` the others.")
        return 2
    kernel = options.kernel or ("triton" if options.device == "cuda" else "sdpa")
    if options.device == "cpu" and kernel == "flex":
        parser.error(
            "--kernel flex gives no log-sum-exp on the CPU, which every call is checked by: use --device cuda."
        )
    chosen = calls.parts()
    if options.part:
        chosen = [(name, dtype) for name, dtype in chosen if [name, dtype_name(dtype)] == options.part]
        if not chosen:
            known = "; ".join(f"{name!r} {dtype_name(dtype)}" for name, dtype in calls.parts())
            parser.error(f"--part: there are {known}.")
    workers = options.workers or (1 if options.device == "cpu" else min(16, os.cpu_count() or 1))
    in_this_process = options.part or (options.device == "cpu" and workers == 1)
    begin = time.perf_counter()
    ended: dict[tuple[str, torch.dtype], list[dict]] = {}
    about = environment(options.device, "kernels.check", options.commit)

    def check(part: tuple[str, torch.dtype]) -> list[dict]:
        if in_this_process:
            return calls.check(*part, kernel=kernel, device=options.device, tokens=calls.TOKENS[options.device])
        return in_a_process(*part, kernel, options.device)

    def save() -> dict:
        """Writes the rows so far to the file and returns its content."""
        rows = [row for part in chosen for row in ended.get(part, [])]
        failed = [failure for row in rows if (failure := calls.failure(row))]
        left = [f"{name}, {dtype_name(dtype)}" for name, dtype in chosen if (name, dtype) not in ended]
        took = round(time.perf_counter() - begin)
        content = {
            "environment": about,
            "kernel": kernel,
            "seconds": took,
            "failed": failed,
            "left": left,
            "rows": rows,
        }
        if options.json:
            replace_file(options.json, written(content) + "\n")
        return content

    content = save()
    with ThreadPoolExecutor(workers) as pool:
        running = {pool.submit(check, part): part for part in chosen}
        for done in as_completed(running):
            (name, dtype), rows = running[done], done.result()
            ended[name, dtype] = rows
            worst = max((r["worst"] for r in rows if r["worst"] is not None), default=torch.inf)
            summary = f"{name:30} {dtype_name(dtype):9} {len(rows)} calls, largest error {worst:.2g} of its limit"
            print(summary + "".join(f"\n  FAILED {failure}" for r in rows if (failure := calls.failure(r))), flush=True)
            content = save()
    failed, count = content["failed"], len(content["rows"])
    print(f"{count} calls in {content['seconds']} s: " + (f"{len(failed)} failed" if failed else "all right"))
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
