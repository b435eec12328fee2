"""Speed of every kernel beside its error: `python -m kernels.bench --device cpu --tokens 4096,16384`.

All methods run in one process, interleaved round by round, on the same standard normal q, k, v (a mean-free v is the
hard case for an approximation: errors on a real model are smaller). Beside its time each method shows its error against
exact ALiBi, and it shows a time only if it computes what it claims to: its own weights, checked against the oracle.
"""

import argparse
import json
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn import functional as F

from kernels import Alibi, PositionalLSH, Weights, Window, alibi_slopes, attend, equal_cost_cutoff
from kernels.host import keep_freed_memory
from kernels.masks import Masks

MASKS = 16
CHECK = 1e-3  # largest absolute error against the method's own oracle at which a speed is shown
BIAS_BYTES = 2 << 30  # the largest bias tensor that is built
SLOWEST = 20.0  # seconds a call may take
SAMPLED = 8  # consecutive rows checked at each quarter of the context


@dataclass(frozen=True)
class Method:
    """`run` computes attention under `weights`; `pairs` of them (key before query) a row and head, on the mean."""

    name: str
    weights: Weights
    run: Callable[[], torch.Tensor]
    pairs: float


def methods(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[list[Method], dict[str, str]]:
    """All methods for q, k, v (1, heads, tokens, head_dim), and the reasons for those that are left out, by name."""
    heads, tokens = q.shape[1:3]
    slopes = alibi_slopes(heads)
    exact, left_out = Alibi(slopes), {}
    rows = heads * tokens

    def ours(name: str, weights: Weights) -> Method:
        visited = int(weights.pairs(tokens).sum())
        return Method(name, weights, lambda: attend(q, k, v, weights, kernel="sdpa"), visited / rows)

    def lsh(**options) -> PositionalLSH:
        return PositionalLSH.draw(slopes, MASKS, seed=0, **options)

    every = (tokens - 1) / 2
    found = [Method("alibi, augmented q k", exact, augmented(q, k, v, slopes), every), ours("alibi, chunks", exact)]
    size = rows * tokens * q.element_size()
    if size <= BIAS_BYTES:
        found.append(Method("alibi, bias tensor", exact, with_bias(q, k, v, exact), every))
    else:
        left_out["alibi, bias tensor"] = f"its {size / 2**30:.0f} GiB are above the limit of 2"
    found.append(ours("window T=20", Window(slopes, 20.0)))
    for match in ("fused", "passes"):
        cutoff = equal_cost_cutoff(slopes, MASKS, tokens, match=match)
        found.append(ours(f"window T={cutoff:.2f}, equal {match}", Window(slopes, cutoff)))
    for kind in ("count", "rb", "exact"):
        found.append(ours(f"plsh {kind}", lsh(weights=kind)))
    found.append(ours("plsh count, systematic", lsh(sampler="systematic")))
    count = lsh()
    name, seconds = "plsh count, merged passes", MASKS * _seconds(passes(q, k, v, lsh_of(count, 0)))
    if seconds <= SLOWEST:
        found.append(Method(name, count, passes(q, k, v, count), pass_pairs(count, tokens) / rows))
    else:
        left_out[name] = f"a call would take about {seconds:.0f} s, above the limit of {SLOWEST:.0f}"
    return found, left_out


def augmented(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, slopes: torch.Tensor) -> Callable[[], torch.Tensor]:
    """Exact ALiBi without a bias tensor: one more dimension, 1 in q and slope * (j - tokens) / scale in k, adds the
    bias up to a constant of the row, and torch's causal path skips half of the pairs. Padded to a multiple of 8."""
    _, heads, tokens, dim = q.shape
    scale, more = dim**-0.5, 8 - dim % 8
    position = torch.arange(tokens) - tokens
    of_q, of_k, of_v = (q.new_zeros(1, heads, tokens, more) for _ in range(3))
    of_q[..., 0] = 1.0
    of_k[..., 0] = (slopes[:, None] * position / scale).to(q.dtype)

    def run() -> torch.Tensor:
        longer = (torch.cat(pair, -1) for pair in ((q, of_q), (k, of_k), (v, of_v)))
        return F.scaled_dot_product_attention(*longer, is_causal=True, scale=scale)[..., :dim]

    return run


def with_bias(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, weights: Weights) -> Callable[[], torch.Tensor]:
    """Dense attention with the (heads, tokens, tokens) bias built beforehand."""
    position = torch.arange(q.shape[2])
    bias = q.new_empty(1, weights.heads, len(position), len(position))
    for row in position.split(256):  # a few rows at a time: float64 log-weights are twice the bias
        log_w = weights.log_dense(row, position).masked_fill_(position > row[:, None], float("-inf"))
        bias[0, :, row[0] : row[-1] + 1] = log_w
    return lambda: F.scaled_dot_product_attention(q, k, v, attn_mask=bias)


def passes(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, weights: PositionalLSH) -> Callable[[], torch.Tensor]:
    """Every mask as attention of its own, merged by log-sum-exp."""
    each = [lsh_of(weights, s) for s in range(weights.count)]

    def run() -> torch.Tensor:
        out, total = attend(q, k, v, each[0], kernel="sdpa", return_lse=True)
        for one in each[1:]:
            part, lse = attend(q, k, v, one, kernel="sdpa", return_lse=True)
            longer = torch.logaddexp(total, lse)
            out = out * torch.exp(total - longer)[..., None] + part * torch.exp(lse - longer)[..., None]
            total = longer
        return out

    return run


def lsh_of(weights: PositionalLSH, s: int) -> PositionalLSH:
    """Mask s of `weights` alone."""
    m = weights.masks
    one = Masks(m.width[:, s : s + 1], m.shift[:, s : s + 1], m.log_weight[:, s : s + 1])
    return PositionalLSH(weights.slopes, one, weights.sampler, weights.weights)


def pass_pairs(weights: PositionalLSH, tokens: int) -> int:
    """Pairs of all heads when each mask's blocks are visited on their own."""
    return sum(int(lsh_of(weights, s).pairs(tokens).sum()) for s in range(weights.count))


def oracle(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, weights: Weights) -> torch.Tensor:
    """The sampled rows by kernel `exact` in float64: (1, heads, rows, head_dim)."""
    q, k, v = q.double(), k.double(), v.double()
    return torch.cat(
        [
            attend(q[:, :, at:stop], k[:, :, :stop], v[:, :, :stop], weights, kernel="exact", q_offset=at)
            for at, stop in _sampled(q.shape[2])
        ],
        dim=2,
    )


def measure(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, found: list[Method], repeats: int) -> list[dict]:
    """One row of the table for each method; `ms` and `speedup` are None where the check fails. The speedup is over the
    fastest method that computes exact ALiBi."""
    exact = oracle(q, k, v, Alibi(alibi_slopes(q.shape[1])))
    results = []
    for method in found:  # also the warm-up
        out = method.run()
        sampled = torch.cat([out[:, :, at:stop] for at, stop in _sampled(q.shape[2])], dim=2).double()
        check = (sampled - oracle(q, k, v, method.weights)).abs().max().item()
        error = sampled - exact
        results.append(
            {
                "name": method.name,
                "exact": isinstance(method.weights, Alibi),
                "pairs_per_row": method.pairs,
                "max_abs_error": error.abs().max().item(),
                "rms_relative_error": (error.norm() / exact.norm()).item(),
                "check_error": check,
                "ms": None,
                "speedup": None,
            }
        )
    sound = [(m, r) for m, r in zip(found, results, strict=True) if r["check_error"] <= CHECK]
    times = {m.name: [] for m, _ in sound}
    for _ in range(repeats):
        for method, _ in sound:
            times[method.name].append(1e3 * _seconds(method.run))
    for method, result in sound:
        taken = times[method.name]
        low, _, high = statistics.quantiles(taken, n=4, method="inclusive") if repeats > 1 else taken * 3
        result["ms"] = {"median": statistics.median(taken), "low": low, "high": high}
    base = min((r["ms"]["median"] for _, r in sound if r["exact"]), default=None)
    for _, result in sound:
        result["speedup"] = None if base is None else base / result["ms"]["median"]
    return results


def table(results: list[dict]) -> str:
    """The measurements as lines of text, one method each."""
    lines = [
        f"{'method':32s}{'ms':>9s}{'quartiles':>20s}{'speedup':>9s}{'pairs/row':>11s}{'max error':>11s}"
        f"{'rms rel.':>10s}{'check':>10s}"
    ]
    for r in results:
        if r["ms"] is None:
            speed = f"{'check failed: no speed shown':>38s}"
        else:
            quartiles = f"{r['ms']['low']:.1f} .. {r['ms']['high']:.1f}"
            speedup = "" if r["speedup"] is None else f"{r['speedup']:.2f}x"
            speed = f"{r['ms']['median']:9.1f}{quartiles:>20s}{speedup:>9s}"
        lines.append(
            f"{r['name']:32s}{speed}{r['pairs_per_row']:11.1f}{r['max_abs_error']:11.1e}{r['rms_relative_error']:10.1e}"
            f"{r['check_error']:10.1e}"
        )
    exact = [r for r in results if r["exact"] and r["ms"]]
    if exact:
        lines.append(f"speedup is over the fastest exact path: {min(exact, key=lambda r: r['ms']['median'])['name']}")
    return "\n".join(lines)


def environment() -> dict:
    """What the times depend on: versions, CPU, threads, commit (None outside a git checkout)."""
    info = Path("/proc/cpuinfo")
    models = [line for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    try:
        git = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent)
        commit = git.stdout.strip() if git.returncode == 0 else None
    except OSError:
        commit = None
    return {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "cpu": models[0].split(":")[1].strip() if models else platform.processor(),
        "threads": torch.get_num_threads(),
        "memory_gb_s": memory_rate(),
        "commit": commit,
    }


def main(arguments: list[str] | None = None) -> dict:
    """Run from the command line; prints one table for each length and returns what --json writes."""
    parser = argparse.ArgumentParser(prog="python -m kernels.bench", description=__doc__.split("\n")[0])
    parser.add_argument("--device", choices=["cpu"], default="cpu")
    parser.add_argument("--tokens", default="4096,16384", help="lengths, with commas between them")
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--head-dim", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, help="also write everything to this file")
    options = parser.parse_args(arguments)
    lengths = [int(x) if x.strip().isdigit() else 0 for x in options.tokens.split(",")]
    if min(lengths) < 4 * SAMPLED or min(options.heads, options.head_dim, options.repeats) < 1:
        parser.error(f"--tokens takes whole numbers from {4 * SAMPLED} on, the other counts whole numbers from 1 on.")
    keep_freed_memory()
    report = {"environment": environment(), "runs": []}
    print(", ".join(f"{name} {value}" for name, value in report["environment"].items()))
    for tokens in lengths:
        generator = torch.Generator().manual_seed(0)
        shape = (1, options.heads, tokens, options.head_dim)
        q, k, v = (torch.randn(shape, generator=generator) for _ in range(3))
        with torch.no_grad():
            found, left_out = methods(q, k, v)
            results = measure(q, k, v, found, options.repeats)
        print(f"\n{tokens} tokens, {options.heads} heads of {options.head_dim}, fp32, causal, {MASKS} masks")
        print(table(results))
        for name, reason in left_out.items():
            print(f"left out: {name}: {reason}")
        report["runs"].append({"shape": list(shape), "masks": MASKS, "methods": results, "left_out": left_out})
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    return report


def memory_rate(megabytes: int = 256, repeats: int = 5) -> float:
    """GB read and written per second by the fastest of a few copies too large for a cache: what bounds every kernel."""
    source = torch.ones(megabytes * 2**18)
    target = torch.empty_like(source)
    seconds = min(_seconds(lambda: target.copy_(source)) for _ in range(repeats))
    return float(f"{2 * source.nbytes / seconds / 1e9:.3g}")


def _sampled(tokens: int) -> list[tuple[int, int]]:
    return [(tokens * quarter // 4 - SAMPLED, tokens * quarter // 4) for quarter in (1, 2, 3, 4)]


def _seconds(run: Callable[[], torch.Tensor]) -> float:
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


if __name__ == "__main__":
    main()
