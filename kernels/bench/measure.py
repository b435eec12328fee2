"""One row of the record for each method: checked first, then timed."""

import gc
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch

from kernels.bench.clock import SLOWEST, DeviceClock, HostClock, seconds
from kernels.bench.cost import Cost, cost, operations
from kernels.bench.dense import LeftOut, Prepared
from kernels.bench.methods import Method
from kernels.bench.problem import Problem
from kernels.common.gpus import CAPABILITY

# The largest relative rms error of a head against the method's own oracle, on the same rounded
# inputs, at which a speed is shown. A kernel that sums in float32 rounds the probabilities once and
# the output once. In bf16 a rounding is wrong by up to 2^-8 and by 1.6e-3 on the mean square:
# 2.3e-3 together, which torch's own attention has too, and up to 2^-7 where one key holds all the
# weight of a single row. Gradients round one factor more and cancel in part. In float32 the limit
# leaves room for what the augmented q and k lose to a bias of up to slope * tokens / 2.
LIMITS = {torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10, torch.float32: 1e-3}
GRADIENTS = 2.0  # times the limit
SHORT = 50.0  # ms: a longer call is not captured in a graph, since launching is nothing beside its work


@dataclass
class Run:
    """A method that is ready: `outcome` computes what is compared with the truth, `timed` is what a
    clock may call, and `kernel` the same on tables built beforehand, where there are any and they
    are part of the call."""

    method: Method
    prepared: Prepared
    outcome: Callable[[], list[torch.Tensor]]
    timed: Callable[[], object]
    kernel: Callable[[], object] | None = None


def measure(
    problem: Problem, methods: list[Method], clock: HostClock | DeviceClock, stop: Callable[[], bool] = lambda: False,
    begin: Callable[[str], None] = lambda name: None,
) -> Iterator[dict]:  # fmt: skip
    """The rows of `methods`, as soon as they are known. A method that fails its check or raises has
    `ms` None and says in `status` why; `untimed` says why a time beside `ms` is missing. Nothing
    new is begun after `stop()` says so; `begin(name)` hears of a row that is measured by itself
    before anything runs."""
    for batch in [methods] if clock.together else [[m] for m in methods]:
        if stop():
            return
        if not clock.together:
            begin(batch[0].name)
        rows, runs = [], []
        for method in batch:
            row, run = _ready(problem, method, clock)
            rows.append(row)
            if run is not None:
                runs.append((row, run))
        if clock.together:
            for (row, _), ms in zip(runs, clock.quartiles([run.timed for _, run in runs]), strict=True):
                row["ms"] = ms
        for row, run in runs if not clock.together else []:
            try:
                row["ms"] = clock.quartiles([run.timed])[0]
            except Exception as e:  # whatever a kernel does, the other rows are kept
                row["status"] = reason_of(e)
            else:
                row |= _more_times(problem, run, row["ms"], clock)
        del runs
        gc.collect()
        yield from rows
        clock.release()


def _ready(problem: Problem, method: Method, clock: HostClock | DeviceClock) -> tuple[dict, Run | None]:
    """The row without its times, and what is to be timed if the check allows it."""
    row = blank(method)
    try:
        costs = [cost(problem, weights) for weights in method.visited]
        row |= _counted(problem, method, costs)
        run = prepare(problem, method)
        outcome: list[torch.Tensor] = []
        took = seconds(lambda: outcome.extend(run.outcome()))
        row |= errors(problem, method, outcome)
        if not row["check_error"] <= row["check_limit"]:
            row["status"] = f"check failed: {row['check_error']:.1e} > {row['check_limit']:.1e}"
            return row, None
        if clock.together and took > SLOWEST:
            raise LeftOut(f"a call takes {took:.0f} s, above the limit of {SLOWEST:.0f}")
        row["bytes"] = sum(one.floor for one in costs) + run.prepared.extra
        if (issued := _issued(problem, method, run.prepared)) is not None:
            row["issued"] = issued
        return row, run
    except LeftOut as e:
        row["status"] = f"left out: {e}"
    except Exception as e:
        row["status"] = reason_of(e)
    return row, None


def blank(method: Method, status: str = "ok") -> dict:
    """A row without times and errors."""
    about = {name: getattr(method, name) for name in ("name", "family", "masks", "cutoff", "match", "by")}
    return about | {"status": status, "ms": None}


def prepare(problem: Problem, method: Method) -> Run:
    """Everything that is not timed. Backward, one forward pass serves all calls."""
    prepared, dim = method.prepare(), problem.heads.dim
    if not problem.backward:

        def outcome() -> list[torch.Tensor]:
            out = prepared.call(*prepared.inputs)
            return [out[:, :, problem.rows, :dim]]

        kernel = partial(prepared.kernel, *prepared.inputs) if prepared.kernel else None
        return Run(method, prepared, outcome, lambda: prepared.call(*prepared.inputs), kernel)
    with torch.enable_grad():
        inputs = [x.detach().requires_grad_() for x in prepared.inputs]
        out = prepared.call(*inputs)[..., :dim]

    def gradients(toward: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return torch.autograd.grad(out, inputs, toward, retain_graph=True)

    def sampled() -> list[torch.Tensor]:
        dq, dk, dv = gradients(problem.few_toward)
        return [dq[:, :, problem.rows, :dim], dk[..., :dim], dv[..., :dim]]

    return Run(method, prepared, sampled, lambda: gradients(problem.toward))


def errors(problem: Problem, method: Method, found: list[torch.Tensor]) -> dict:
    """Errors at the sampled rows: against exact ALiBi, and (`check_error`) against the method's own
    oracle."""
    exact = problem.truth(problem.exact)
    own = problem.truth(method.weights)
    limit = LIMITS[problem.dtype] * (GRADIENTS if problem.backward else 1.0)
    check = max(float(_relative(mine, true).max()) for mine, true in zip(found, own, strict=True))
    pairs = list(zip(found, exact, strict=True))
    return {
        "max_abs_error": max(float((mine.double() - true).abs().max()) for mine, true in pairs),
        "rms_relative_error": max(float((mine.double() - true).norm() / true.norm()) for mine, true in pairs),
        "check_error": check,
        "check_limit": limit,
    }


def _relative(found: torch.Tensor, true: torch.Tensor) -> torch.Tensor:
    """rms of the error over rms of the truth for each head; NaN counts as infinite."""
    off = (found.double() - true).square().sum((0, 2, 3)) / true.square().sum((0, 2, 3))
    return off.sqrt().nan_to_num(torch.inf)


def _counted(problem: Problem, method: Method, costs: list[Cost]) -> dict:
    rows = problem.heads.heads * problem.queries
    pairs = sum(one.pairs for one in costs)
    return {
        "pairs_per_row": pairs / rows - len(costs),  # beside each row's own key
        "operations": operations(problem, pairs),
        "dense_operations": operations(problem, costs[0].dense),
        "floor_bytes": cost(problem, method.weights).floor if len(costs) > 1 else costs[0].floor,
    }


def _issued(problem: Problem, method: Method, prepared: Prepared) -> dict[str, int] | None:
    """Instructions of warps that the kernels of a forward call of kernel `triton` issue at least,
    where their machine code is recorded."""
    if problem.device.type != "cuda" or prepared.tables is None or method.separate:
        return None
    if problem.backward or problem.queries < problem.tokens:
        return None
    from kernels.aot.issue import issued  # triton exists on Linux only

    if torch.cuda.get_device_capability(problem.device)[0] != CAPABILITY:
        return None
    return issued(method.weights, problem.tokens, problem.heads.dim, problem.dtype)


def _more_times(problem: Problem, run: Run, ms: dict, clock: HostClock | DeviceClock) -> dict:
    """Of the kernel alone and of building the tables and, but for long calls and the backward pass,
    of all of them in a CUDA graph: many launches for little work take longer than the work. Where
    one fails it is told in `untimed`, and the call keeps its time."""
    apart = {"kernel_": run.kernel, "tables_": run.prepared.tables}
    apart = {name: call for name, call in apart.items() if call is not None}
    wanted = {f"{name}ms": lambda call=call: clock.quartiles([call])[0] for name, call in apart.items()}
    if not problem.backward and (ms["median"] < SHORT or problem.queries < problem.tokens):
        whole = {"": run.timed} | apart
        wanted |= {f"{name}graph_ms": lambda call=call: clock.graph(call) for name, call in whole.items()}
    found = {}
    for name, take in wanted.items():
        try:
            found[name] = take()
        except Exception as e:
            found.setdefault("untimed", {})[name] = reason_of(e)
    return found


def reason_of(e: Exception) -> str:
    """What stands in the record for an exception."""
    if isinstance(e, torch.OutOfMemoryError):
        return "out of memory"
    first = next((line.strip() for line in str(e).splitlines() if line.strip()), "")
    return f"error: {type(e).__name__}: {first}"[:300]
