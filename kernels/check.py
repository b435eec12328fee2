"""`python -m kernels.check`: the fused kernels on this GPU against the oracle, in float64.

Every kind of weights in three dtypes, each with another head dimension: forward, decoding and gradients, causal and
bidirectional, with grouped heads, padding and an offset. Most of the time goes into compiling. Needs torch and triton
only. Prints one line per weights and exits with 1 if any error is larger than its limit.
"""

import sys
import time

import torch

from kernels import Alibi, PositionalLSH, Weights, Window, alibi_slopes, attend

# largest error of out and of gradients, relative to their largest value, and of the log-sum-exp: a few roundings of
# the dtype's products
LIMITS = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
HEADS, KV_HEADS = 8, 4


def all_weights() -> dict[str, Weights]:
    """Every law of weights, counts in one word and in two, and sinks in one tile and in two."""
    slopes = alibi_slopes(HEADS)
    found = {"alibi": Alibi(slopes), "window": Window(slopes, 5.0), "window, 4 sinks": Window(slopes, 5.0, 4)}
    for kind in ("rb", "count"):
        found[f"{kind} S=16, 70 sinks"] = PositionalLSH.draw(slopes, 16, seed=1, weights=kind, sinks=70)
    for kind, sampler, masks in [
        ("exact", "gamma", 16), ("rb", "gamma", 4), ("rb", "gamma", 16), ("rb", "systematic", 16),
        ("count", "gamma", 4), ("count", "gamma", 16), ("count", "gamma", 64), ("count", "systematic", 16),
    ]:  # fmt: skip
        found[f"{kind} {sampler} S={masks}"] = PositionalLSH.draw(slopes, masks, seed=1, sampler=sampler, weights=kind)
    return found


def calls(tokens: int) -> dict[str, dict]:
    """Shapes of a call by name: how many of the `tokens` are queries, and the options of `attend`."""
    padding = torch.tensor([0, tokens // 3])
    return {
        "causal": {"queries": tokens},
        "bidirectional": {"queries": tokens, "causal": False},
        "padded": {"queries": tokens, "padding": padding},
        "chunk": {"queries": tokens // 3, "q_offset": tokens // 2},
        "decoding": {"queries": 3, "padding": padding},
    }


def error(
    weights: Weights, device: str, tokens: int, dim: int, dtype: torch.dtype, options: dict, *, gradients: bool
) -> float:
    """The largest of the relative errors of out and, with `gradients`, of those of q, k and v, and of the absolute
    error of the log-sum-exp."""
    options = dict(options)
    generator = torch.Generator().manual_seed(0)

    def make(heads: int, length: int) -> torch.Tensor:
        return torch.randn(2, heads, length, dim, generator=generator).to(device, dtype)

    queries = options.pop("queries")
    inputs = [make(HEADS, queries), make(KV_HEADS, tokens), make(KV_HEADS, tokens)]
    toward = make(HEADS, queries)
    with torch.no_grad():
        got, got_lse = attend(*inputs, weights, kernel="triton", return_lse=True, **options)
        true, true_lse = attend(*(x.double() for x in inputs), weights, kernel="exact", return_lse=True, **options)
    real = true_lse.isfinite()
    worst = [relative(got, true), float((got_lse.double() - true_lse)[real].abs().max())]
    if gradients:
        both = []
        for kernel, some in (("triton", inputs), ("exact", [x.double() for x in inputs])):
            some = [x.detach().requires_grad_() for x in some]
            out = attend(*some, weights, kernel=kernel, **options)
            both.append(torch.autograd.grad(out, some, toward.to(out.dtype)))
        worst += [relative(mine, exact) for mine, exact in zip(*both, strict=True)]
    return max(worst)


def relative(got: torch.Tensor, true: torch.Tensor) -> float:
    """Largest absolute error over the largest absolute value; NaN counts as infinite."""
    off = (got.double() - true).abs().max() / true.abs().max()
    return float(off.nan_to_num(torch.inf))


def check(device: str, tokens: int, dims: tuple[int, ...]) -> list[str]:
    """Run all of it, printing as it goes; the cases that failed, by name."""
    failed = []
    for turn, (name, weights) in enumerate(all_weights().items()):
        begin, largest = time.perf_counter(), dict.fromkeys(LIMITS, 0.0)
        for step, dtype in enumerate(LIMITS):
            dim = dims[(turn + step) % len(dims)]
            for shape, options in calls(tokens).items():
                # one dtype each, in turn; the oracle has no gradient in rows of padding
                gradients = step == turn % 3 and shape in ("causal", "bidirectional", "chunk")
                off = error(weights, device, tokens, dim, dtype, options, gradients=gradients)
                largest[dtype] = max(largest[dtype], off)
                if not off <= LIMITS[dtype]:
                    failed.append(f"{name}, {shape}, head dimension {dim}, {dtype}: {off:.1e} > {LIMITS[dtype]:.0e}")
        errors = ", ".join(f"{str(dtype)[6:]} {off:.1e}" for dtype, off in largest.items())
        print(f"{name:24} {errors}  ({time.perf_counter() - begin:.0f} s)", flush=True)
    return failed


def main() -> int:
    if not torch.cuda.is_available():
        print("kernels.check needs a CUDA GPU and found none; `pytest tests/kernels` is the check for the CPU.")
        return 2
    failed = check("cuda", 777, (64, 80, 96, 112, 128))
    print("\n".join(failed) or "all right")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
