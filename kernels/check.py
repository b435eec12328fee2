"""`python -m kernels.check`: the fused kernels on this GPU against the oracle, in float64.

Two sets of calls. The shared matrix (`kernels.cases`) with the head dimensions of models: every law, sampler, dtype and
number of masks meets every other and every head dimension, kind of call, padding and memory layout. And the
configurations that the bench measures: bfloat16 at head dimension 128, each law in every kind of call, with keys left
out too. Both forward, decoding and backward, what a kernel should write poisoned beforehand. Most of the time goes into
compiling: the parts run in processes of their own, side by side, and a kernel that crashes takes down its own part
alone. Each part is printed and written as it ends. Needs torch and triton only. Exits with 1 and says what failed if
any error is larger than its limit.
Another kernel, and the CPU, can be checked too.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from kernels import Alibi, PositionalLSH, Weights, Window, alibi_slopes, attend
from kernels.cases import EDGES, FACTORS, Case, pairwise
from kernels.compare import case_errors, poisoned, relative, turns
from kernels.environment import environment, replace_file, unwritable, written

# largest error of out and of gradients, relative to their largest value: a few roundings of the dtype's products
LIMITS = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
# largest error of the log-sum-exp, in nats, in every dtype: no rounding of a probability enters it, so that it shows a
# pair too many or too few where the rounding of out would hide it
LSE_LIMIT = 1e-4
HEADS, KV_HEADS = 8, 4
TOKENS = {"cuda": 777, "cpu": 131}
DIMS = (64, 80, 96, 112, 128)  # of the matrix; the last one of what the bench measures
MATRIX = "matrix "  # begins the names of parts of the matrix
MANY = "count gamma S=16, 32 slopes"  # those of MPT
LONGER = 16  # times as many keys where those out of reach are left out
PATIENCE = 280  # seconds that a part may take


def all_weights() -> dict[str, Weights]:
    """The weights that the bench measures, and with sinks: every law, and counts in one word and in two."""
    slopes = alibi_slopes(HEADS)
    found = {"alibi": Alibi(slopes), "window": Window(slopes, 5.0), "window, 4 sinks": Window(slopes, 5.0, 4)}
    for kind, sampler, masks, sinks in [
        ("rb", "gamma", 16, 0), ("rb", "gamma", 16, 70), ("count", "gamma", 16, 0), ("count", "gamma", 16, 4),
        ("count", "gamma", 1, 0), ("count", "gamma", 64, 0), ("rb", "systematic", 16, 0),
        ("count", "systematic", 16, 0),
    ]:  # fmt: skip
        weights = PositionalLSH.draw(slopes, masks, seed=1, sampler=sampler, weights=kind, sinks=sinks)
        found[f"{kind} {sampler} S={masks}" + (f", {sinks} sinks" if sinks else "")] = weights
    # a draw in which pairs that are seen lie 32 blocks of a mask apart: the highest bit of a tile's ranks
    found[MANY] = PositionalLSH.draw(alibi_slopes(32), 16, seed=9)
    return found


def matrix() -> list[Case]:
    """The shared matrix with the head dimensions of models and up to 64 masks."""
    edges = [replace(edge, dim=DIMS[i % len(DIMS)]) for i, edge in enumerate(EDGES) if edge.dtype in LIMITS]
    return pairwise(FACTORS | {"masks": [1, 4, 16, 33, 64], "dim": list(DIMS)}) + edges


def parts() -> list[tuple[str, torch.dtype]]:
    """What `check` takes, the longest first."""
    of_matrix = {(MATRIX + case.rule, case.dtype): None for case in matrix()}
    return [(name, torch.bfloat16) for name in all_weights()] + list(of_matrix)


def calls(tokens: int) -> dict[str, dict]:
    """Shapes of a call by name: how many of its `tokens` are queries, options of `attend`, whether gradients are
    compared, and whether keys out of reach are left out."""
    padding = torch.tensor([0, tokens // 3])
    few = min(16, tokens)
    return {
        "causal": {"queries": tokens, "gradients": True},
        "bidirectional": {"queries": tokens, "causal": False, "gradients": True},
        "padded": {"queries": tokens, "padding": padding, "gradients": True},
        "chunk": {"queries": tokens // 3, "q_offset": tokens // 2, "gradients": True},
        "decoding 1": {"queries": 1},
        "decoding 3, padded": {"queries": 3, "padding": padding},
        f"decoding {few}": {"queries": few},
        "chunk, gap": {"tokens": LONGER * tokens, "queries": 3 * few, "gap": True},
        "decoding 3, gap": {"tokens": LONGER * tokens, "queries": 3, "gap": True},
    }


def errors(
    weights: Weights, kernel: str, device: str, tokens: int, dim: int, dtype: torch.dtype, options: dict
) -> dict[str, float] | None:
    """The relative errors of out and, with `gradients`, of those of q, k and v, and the absolute error of the
    log-sum-exp; None if no key is out of reach."""
    options = dict(options)
    queries, tokens = options.pop("queries"), options.pop("tokens", tokens)
    gradients, gap = options.pop("gradients", False), options.pop("gap", False)
    generator = torch.Generator().manual_seed(0)

    def make(heads: int, length: int) -> torch.Tensor:
        return torch.randn(2, heads, length, dim, generator=generator).to(device, dtype)

    kv_heads = weights.heads * KV_HEADS // HEADS
    inputs = [make(weights.heads, queries), make(kv_heads, tokens), make(kv_heads, tokens)]
    exact = [x.double() for x in inputs]
    with torch.no_grad():
        true, true_lse = attend(*exact, weights, kernel="exact", return_lse=True, **options)
        short, held = without_unreached(inputs, weights) if gap else (inputs, {})
        if short is None:
            return None
        for _ in range(turns(device)):
            with poisoned():
                got, got_lse = attend(*short, weights, kernel=kernel, return_lse=True, **options, **held)
    off = (got_lse.double() - true_lse)[true_lse.isfinite()].abs().max()
    found = {"out": relative(got, true), "lse": float(off.nan_to_num(torch.inf))}
    if gradients:
        toward, both = make(weights.heads, queries), []
        for name, some in ((kernel, inputs), ("exact", exact)):
            some = [x.detach().requires_grad_() for x in some]
            for _ in range(turns(device)):
                with poisoned():
                    out = attend(*some, weights, kernel=name, **options)
                    gradients = torch.autograd.grad(out, some, toward.to(out.dtype))
            both.append(gradients)
        found |= {name: relative(*pair) for name, *pair in zip(("dq", "dk", "dv"), *both, strict=True)}
    return found


def without_unreached(inputs: list[torch.Tensor], weights: Weights) -> tuple[list[torch.Tensor] | None, dict]:
    """q, k and v without the keys after the sinks that no row reaches, and the option that says so."""
    q, k, v = inputs
    heads, begin = torch.arange(weights.heads, device=q.device), k.shape[2] - q.shape[2]
    gap = int(weights.reach(heads, torch.full((len(heads), 1), begin, device=q.device))[0].min()) - weights.sinks
    if gap <= 0:
        return None, {}
    kept = [torch.cat([x[:, :, : weights.sinks], x[:, :, weights.sinks + gap :]], 2) for x in (k, v)]
    return [q, *kept], {"gap": gap}


def check(name: str, dtype: torch.dtype, *, kernel: str, device: str, tokens: int) -> list[dict]:
    """One of the `parts`, all calls of one kind of weights in one dtype: a row for each, `worst` the largest error over
    its limit, or why there is none."""
    if name.startswith(MATRIX):
        some = [case for case in matrix() if (MATRIX + case.rule, case.dtype) == (name, dtype)]
        jobs = [(case.id, case.dim, partial(case_errors, case, kernel, device)) for case in some]
    else:
        given = (all_weights()[name], kernel, device, tokens, DIMS[-1], dtype)
        jobs = [(shape, DIMS[-1], partial(errors, *given, options)) for shape, options in calls(tokens).items()]
    rows = []
    for call, dim, measured in jobs:
        row = blank(name, call, dtype, dim)
        try:
            found = measured()
            if found is None:
                continue
            row["errors"] = {name: float(f"{value:.3g}") for name, value in found.items()}
            off = max(value / limit_of(name, row["limit"]) for name, value in found.items())
            row["worst"] = float(f"{off:.3g}")
        except Exception as e:  # the others are checked all the same
            first = next(iter(str(e).splitlines()), "")
            row["reason"] = f"{type(e).__name__}: {first}"
        rows.append(row)
    return rows


def blank(name: str, call: str, dtype: torch.dtype, dim: int) -> dict:
    """A row without errors."""
    about = {"weights": name, "call": call, "dtype": str(dtype)[6:], "dim": dim}
    return about | {"limit": LIMITS[dtype], "lse_limit": LSE_LIMIT, "errors": {}, "worst": None}


def limit_of(error: str, limit: float) -> float:
    """The largest value that this error may have where those of out and of the gradients have `limit`."""
    return LSE_LIMIT if error == "lse" else limit


def failure(row: dict) -> str | None:
    """What is wrong with a row, in words; None if nothing is."""
    where = f"{row['weights']}, {row['call']}, head dimension {row['dim']}, {row['dtype']}"
    if "reason" in row:
        return f"{where}: {row['reason']}"
    # in a file an error that is not finite is null
    off = {k: torch.inf if v is None else v for k, v in row["errors"].items()}
    limits = {k: limit_of(k, row["limit"]) for k in off}
    said = ", ".join(f"{k} {v:.1e} > {limits[k]:.0e}" for k, v in off.items() if not v <= limits[k])
    return f"{where}: {said}" if said else None


def in_a_process(name: str, dtype: torch.dtype, kernel: str, device: str) -> list[dict]:
    """`check` in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "rows.json")
        command = [sys.executable, "-m", "kernels.check", "--part", name, str(dtype)[6:]]
        command += ["--kernel", kernel, "--device", device]
        try:
            done = subprocess.run([*command, "--json", file], capture_output=True, text=True, timeout=PATIENCE)
            reason = f"ended with {done.returncode}: " + (done.stderr.strip().splitlines() or [""])[-1]
        except subprocess.TimeoutExpired:
            reason = f"took longer than {PATIENCE} s"
        if file.exists():
            return json.loads(file.read_text())["rows"]
    return [blank(name, "all", dtype, 0) | {"reason": reason}]


def main(arguments: list[str] | None = None) -> int:
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
    chosen = parts()
    if options.part:
        chosen = [(name, dtype) for name, dtype in chosen if [name, str(dtype)[6:]] == options.part]
        if not chosen:
            known = "; ".join(f"{name!r} {str(dtype)[6:]}" for name, dtype in parts())
            parser.error(f"--part: there are {known}.")
    workers = options.workers or (1 if options.device == "cpu" else min(16, os.cpu_count() or 1))
    here = options.part or (options.device == "cpu" and workers == 1)
    begin, ended = time.perf_counter(), {}
    about = environment(options.device, "kernels.check", options.commit)

    def one(part: tuple[str, torch.dtype]) -> list[dict]:
        if here:
            return check(*part, kernel=kernel, device=options.device, tokens=TOKENS[options.device])
        return in_a_process(*part, kernel, options.device)

    def kept() -> dict:
        """What is known so far, written to the file."""
        rows = [row for part in chosen for row in ended.get(part, [])]
        failed = [said for row in rows if (said := failure(row))]
        left = [f"{name}, {str(dtype)[6:]}" for name, dtype in chosen if (name, dtype) not in ended]
        took = round(time.perf_counter() - begin)
        known = {"environment": about, "kernel": kernel, "seconds": took, "failed": failed, "left": left, "rows": rows}
        if options.json:
            replace_file(options.json, written(known) + "\n")
        return known

    content = kept()
    with ThreadPoolExecutor(workers) as pool:
        running = {pool.submit(one, part): part for part in chosen}
        for done in as_completed(running):
            (name, dtype), found = running[done], done.result()
            ended[name, dtype] = found
            worst = max((r["worst"] for r in found if r["worst"] is not None), default=torch.inf)
            told = f"{name:30} {str(dtype)[6:]:9} {len(found)} calls, largest error {worst:.2g} of its limit"
            print(told + "".join(f"\n  FAILED {said}" for r in found if (said := failure(r))), flush=True)
            content = kept()
    failed, calls = content["failed"], len(content["rows"])
    print(f"{calls} calls in {content['seconds']} s: " + (f"{len(failed)} failed" if failed else "all right"))
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
