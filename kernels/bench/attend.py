"""`python -m kernels.bench.attend`: `attend` as a model calls it, tables included: time of the
host, and total time."""

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch

from kernels.attend import attend
from kernels.bench.measure import reason_of
from kernels.bench.plan import head_sets
from kernels.common.environment import environment, replace_file, written
from kernels.methods.plsh import PositionalLSH
from kernels.methods.weights import Weights, Window

CUTOFF = 2.0  # of the window: about the same error as 16 masks


def some_weights(slopes: torch.Tensor, masks: int) -> dict[str, Weights]:
    """The weights of the calls, by name."""
    plsh = {kind: PositionalLSH.draw(slopes, masks, seed=0, weights=kind) for kind in ("count", "rb")}
    return {f"{kind}, S={masks}": weights for kind, weights in plsh.items()} | {
        f"window T={CUTOFF:g}": Window(slopes, CUTOFF)
    }


def times(call, wait, calls: int, rounds: int) -> dict:
    """Medians over the rounds in ms per call: `host_ms` until all calls of a round have been
    issued, `ms` until they are finished.

    Args:
        call: without arguments; it runs once before the first round.
        wait: returns when the calls issued so far are finished.
        calls: number of calls of a round.
        rounds: number of rounds.
    """
    call()
    wait()
    host, whole = [], []
    for _ in range(rounds):
        begin = time.perf_counter()
        for _ in range(calls):
            call()
        host.append(time.perf_counter() - begin)
        wait()
        whole.append(time.perf_counter() - begin)
    seconds = {"host_ms": host, "ms": whole}
    return {name: float(f"{1e3 * statistics.median(taken) / calls:.4g}") for name, taken in seconds.items()}


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line and returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m kernels.bench.attend", description=__doc__)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--heads", default="mpt-7b", help="as of kernels.bench")
    parser.add_argument("--tokens", default="32768,131072", help="lengths, with commas between them")
    parser.add_argument("--masks", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=20, help="calls in each of five rounds")
    parser.add_argument("--once", action="store_true", help="call each once and take no time: for a profiler")
    parser.add_argument("--json", type=Path, help="write to this file after every row")
    parser.add_argument("--commit", help="of the code, where it is no git checkout")
    options = parser.parse_args(arguments)
    cuda = options.device == "cuda"
    kernel, dtype = ("triton", torch.bfloat16) if cuda else ("sdpa", torch.float32)
    wait = torch.cuda.synchronize if cuda else lambda: None
    ((name, heads),) = head_sets([options.heads]).items()
    content: dict[str, Any] = {"environment": environment(options.device, "kernels.bench.attend", options.commit)}
    content |= {"heads": name, "shape": [heads.heads, heads.dim], "kernel": kernel, "rows": []}
    failed = False
    with torch.no_grad():
        for tokens in map(int, options.tokens.split(",")):
            generator = torch.Generator(options.device).manual_seed(0)
            q, k, v = (
                torch.randn(1, heads.heads, tokens, heads.dim, generator=generator, device=options.device, dtype=dtype)
                for _ in range(3)
            )
            for title, weights in some_weights(heads.slopes, options.masks).items():
                for queries in (tokens, 1):
                    last = q[:, :, -queries:]

                    def call(last=last, k=k, v=v, weights=weights) -> torch.Tensor:
                        return attend(last, k, v, weights, kernel=kernel)

                    row = {"tokens": tokens, "weights": title, "queries": queries, "status": "ok"}
                    try:
                        row |= (
                            times(call, wait, options.repeats, 5) if not options.once else {"ran": call() is not None}
                        )
                    except Exception as e:  # the other rows are measured all the same
                        row["status"], failed = reason_of(e), True
                    content["rows"].append(row)
                    print(", ".join(f"{key} {value}" for key, value in row.items()), flush=True)
                    if options.json:
                        replace_file(options.json, written(content) + "\n")
            wait()
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
