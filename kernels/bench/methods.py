"""The list of methods, for every device and kind of call."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from kernels.bench import dense, ours
from kernels.bench.cost import one_by_one
from kernels.bench.dense import LeftOut, Prepared
from kernels.bench.problem import Problem
from kernels.methods.cost import equal_cost_cutoff
from kernels.methods.plsh import UNION_WEIGHTS, PositionalLSH
from kernels.methods.weights import Weights, Window

# order of the rows, in case the time ends early: PLSH and windows of equal error, our exact kernel,
# other fast methods, slow methods
FIRST, OURS, REST, LAST = range(4)
SDPA = {"cuDNN": "CUDNN_ATTENTION", "FlashAttention": "FLASH_ATTENTION", "memory-efficient": "EFFICIENT_ATTENTION"}
NEAR_TOKENS = 64  # nearest keys that have the exact weight, in the rows with a near field
GRID_TOKENS = 64  # per cell of the grid on which the blocks of flat heads begin and end


@dataclass(frozen=True)
class Method:
    """A method of the bench.

    prepare: returns the calls to time, or raises LeftOut. family: "exact", "window" or "plsh".
    cutoff: of a window. match: the quantity in which a window equals PLSH, "fused" or "passes", or
    the name of the PLSH method with the same error. by: the implementation, if not ours. Methods of
    a lower rank are measured first.
    """

    name: str
    family: str
    weights: Weights
    prepare: Callable[[], Prepared]
    masks: int | None = None
    cutoff: float | None = None
    match: str | None = None
    by: str | None = None
    rank: int = REST
    separate: bool = False  # whether it computes each mask by itself

    @property
    def visited(self) -> list[Weights]:
        """The weights of the passes that are made one after the other."""
        return one_by_one(self.weights) if self.separate else [self.weights]


def maskless(problem: Problem, kernel: str) -> list[Method]:
    """Exact ALiBi by every implementation, and the window that is exact up to rounding."""
    exact = problem.exact
    ways = {f"alibi, {kernel}": (OURS, partial(ours.one_pass, problem, exact, kernel))}
    if problem.device.type != "cuda":
        ways["alibi, augmented q k"] = (REST, partial(dense.augmented, problem))
    else:
        for name, backend in SDPA.items():
            rank = LAST if name == "memory-efficient" else REST
            ways[f"alibi, augmented q k, {name}"] = (rank, partial(dense.augmented, problem, backend))
        ways["alibi, flash-attn"] = (REST, partial(dense.flash_attn, problem))
        ways["alibi, FlexAttention"] = (LAST, partial(dense.flex, problem))
        ways["alibi, FlexAttention, FLASH"] = (LAST, partial(dense.flex, problem, "FLASH"))
    ways["alibi, bias tensor"] = (LAST, partial(dense.with_bias, problem))
    methods = [Method(name, "exact", exact, prepare, rank=rank) for name, (rank, prepare) in ways.items()]
    return methods + windows(problem, kernel, 20.0, "window T=20")


def masked(problem: Problem, kernel: str, masks: int) -> list[Method]:
    """PLSH, and the windows to compare it with: of equal expected pairs, and of equal error, with
    the near field of the masks.

    Args:
        problem: the inputs.
        kernel: of ours, a name of `kernels.attend`.
        masks: masks of each head.
    """
    slopes = problem.heads.slopes
    methods: list[Method] = []
    kinds: dict[str, dict[str, Any]] = {kind: {"weights": kind} for kind in UNION_WEIGHTS}
    if masks == 16:
        kinds |= {f"{kind}, near {NEAR_TOKENS}": {"weights": kind, "near": NEAR_TOKENS} for kind in ("count", "rb")}
        kinds |= {f"{kind}, systematic": {"weights": kind, "sampler": "systematic"} for kind in ("count", "rb")}
        kinds[f"count, grid of {GRID_TOKENS}"] = {"align": GRID_TOKENS}
    for kind, options in kinds.items():
        weights = PositionalLSH.draw(slopes, masks, seed=0, **options)
        name = f"plsh {kind}, S={masks}"
        prepare = partial(ours.one_pass, problem, weights, kernel)
        methods.append(Method(name, "plsh", weights, prepare, masks, rank=FIRST))
        cutoff = problem.equal_error_cutoff(problem.output_error(weights), weights.near)
        title, others = f"window T={cutoff:.2f}, as {kind}, S={masks}", kind in ("count", "rb")
        methods += windows(problem, kernel, cutoff, title, masks, name, weights.near, rank=FIRST, others=others)
    equal_cost = [("fused", 0), *[("fused", NEAR_TOKENS)] * (masks == 16), ("passes", 0)]
    for match, near in equal_cost:
        cutoff = equal_cost_cutoff(slopes, masks, problem.tokens, match=match, near=near)
        title = f"window T={cutoff:.2f}, equal {match}" + f", near {near}" * (near > 0) + f", S={masks}"
        methods += windows(problem, kernel, cutoff, title, masks, match, near, others=False)
    count = PositionalLSH.draw(slopes, masks, seed=0)
    prepare = partial(separate, problem, count, kernel)
    name = f"plsh count, merged passes, S={masks}"
    return [*methods, Method(name, "plsh", count, prepare, masks, rank=LAST, separate=True)]


def windows(
    problem: Problem, kernel: str, cutoff: float, name: str, masks: int | None = None, match: str | None = None,
    near: int = 0, rank: int = REST, others: bool = True,
) -> list[Method]:  # fmt: skip
    """One window by our kernel and by other implementations, so that a slow kernel of ours cannot
    flatter the masks.

    Args:
        problem: the inputs.
        kernel: of ours, a name of `kernels.attend`.
        cutoff: length of the window in units of 1/slope.
        name: of the method; other implementations add theirs.
        masks: of the PLSH that the window is compared with, None without one.
        match: as in `Method`.
        near: nearest keys that every row sees.
        rank: of our kernel; other implementations have the rank REST.
        others: whether to list other implementations, on a GPU only.
    """
    weights = Window(problem.heads.slopes, cutoff, 0, near)
    ways: dict[str | None, tuple[int, Callable[[], Prepared]]] = {
        None: (rank, partial(ours.one_pass, problem, weights, kernel))
    }
    if others and problem.device.type == "cuda":
        ways["FlexAttention"] = (REST, partial(dense.flex_window, problem, weights))
        ways["flash-attn"] = (REST, partial(dense.flash_attn, problem, weights))
    return [
        Method(f"{name}, {by}" if by else name, "window", weights, prepare, masks, cutoff, match, by, its_rank)
        for by, (its_rank, prepare) in ways.items()
    ]


def separate(problem: Problem, weights: PositionalLSH, kernel: str) -> Prepared:
    """`ours.passes`, where its time would not be Python's.

    Args:
        problem, weights, kernel: as there.

    Raises:
        LeftOut: on a CPU, for gradients and for few rows per pass.
    """
    if problem.device.type == "cpu" and (problem.backward or problem.queries < problem.tokens):
        raise LeftOut("on a CPU the passes are measured forward only")
    return ours.passes(problem, weights, kernel)
