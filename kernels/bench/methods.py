"""The one list of methods, for every device and kind of call."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from kernels.bench import dense, ours
from kernels.bench.cost import one_mask
from kernels.bench.dense import LeftOut, Prepared
from kernels.bench.problem import Problem
from kernels.cost import equal_cost_cutoff
from kernels.union import PositionalLSH
from kernels.weights import Weights, Window

SDPA = {"cuDNN": "CUDNN_ATTENTION", "FlashAttention": "FLASH_ATTENTION", "memory-efficient": "EFFICIENT_ATTENTION"}
KINDS = ("count", "rb", "exact")


@dataclass(frozen=True)
class Method:
    """`prepare()` gives what is timed, or raises LeftOut; `family` is exact, window or plsh. A window tells its
    `cutoff` and what it was made to `match`: fused or passes, or the name of the PLSH method whose error it has."""

    name: str
    family: str
    weights: Weights
    prepare: Callable[[], Prepared]
    masks: int | None = None
    cutoff: float | None = None
    match: str | None = None
    separate: bool = False  # whether it computes each mask by itself

    @property
    def visited(self) -> list[Weights]:
        """What is visited one after the other."""
        return [one_mask(self.weights, s) for s in range(self.masks)] if self.separate else [self.weights]


def maskless(problem: Problem, kernel: str) -> list[Method]:
    """Exact ALiBi by every means, and the window that is exact to rounding."""
    cuda = problem.device.type == "cuda"
    ways = {}
    if not cuda:
        ways["alibi, augmented q k"] = partial(dense.augmented, problem)
    else:
        for name, backend in SDPA.items():
            ways[f"alibi, augmented q k, {name}"] = partial(dense.augmented, problem, backend)
        ways["alibi, FlexAttention"] = partial(dense.flex, problem)
        ways["alibi, FlexAttention, FLASH"] = partial(dense.flex, problem, "FLASH")
        ways["alibi, flash-attn"] = partial(dense.flash_attn, problem)
    ways["alibi, bias tensor"] = partial(dense.with_bias, problem)
    ways[f"alibi, {kernel}"] = partial(ours.one_pass, problem, problem.exact, kernel)
    found = [Method(name, "exact", problem.exact, prepare) for name, prepare in ways.items()]
    return [*found, window(problem, kernel, 20.0, "window T=20")]


def masked(problem: Problem, kernel: str, masks: int) -> list[Method]:
    """PLSH with this many masks, and the windows beside it: of equal expected pairs, and of equal error to each."""
    slopes = problem.heads.slopes
    found = []
    kinds = {kind: {"weights": kind} for kind in KINDS}
    if masks == 16:
        kinds |= {f"{kind}, systematic": {"weights": kind, "sampler": "systematic"} for kind in ("count", "rb")}
    for kind, options in kinds.items():
        weights = PositionalLSH.draw(slopes, masks, seed=0, **options)
        name = f"plsh {kind}, S={masks}"
        found.append(Method(name, "plsh", weights, partial(ours.one_pass, problem, weights, kernel), masks))
        cutoff = problem.equal_error_cutoff(problem.output_error(weights))
        title = f"window T={cutoff:.2f}, as {kind}, S={masks}"
        found.append(window(problem, kernel, cutoff, title, masks, name))
    for match in ("fused", "passes"):
        cutoff = equal_cost_cutoff(slopes, masks, problem.tokens, match=match)
        title = f"window T={cutoff:.2f}, equal {match}, S={masks}"
        found.append(window(problem, kernel, cutoff, title, masks, match))
    count = found[0].weights
    prepare = partial(separate, problem, count, kernel)
    name = f"plsh count, merged passes, S={masks}"
    return [*found, Method(name, "plsh", count, prepare, masks, separate=True)]


def window(
    problem: Problem, kernel: str, cutoff: float, name: str, masks: int | None = None, match: str | None = None
) -> Method:
    weights = Window(problem.heads.slopes, cutoff)
    return Method(name, "window", weights, partial(ours.one_pass, problem, weights, kernel), masks, cutoff, match)


def separate(problem: Problem, weights: PositionalLSH, kernel: str) -> Prepared:
    """`ours.passes` where its time is that of S passes: on a CPU it is Python's, if each pass has few rows."""
    if problem.device.type == "cpu" and (problem.backward or problem.queries < problem.tokens):
        raise LeftOut("on a CPU the passes are measured forward only")
    return ours.passes(problem, weights, kernel)
