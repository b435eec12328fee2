"""The row of each method for the record: checked first, then timed."""

import gc
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch

from kernels.bench.clock import MAX_CALL_SECONDS, DeviceClock, HostClock, seconds
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
GRADIENT_FACTOR = 2.0  # of the limit, for gradients
MAX_GRAPH_CALL_MS = 50.0  # a longer call is not captured in a graph: its launch takes no time beside its work


@dataclass
class Run:
    """A method that is ready to run. `outcome` computes the tensors that are compared with the
    truth, `timed` is the call for the clock, and `kernel` the same call on tables built beforehand,
    if the call builds tables."""

    method: Method
    prepared: Prepared
    outcome: Callable[[], list[torch.Tensor]]
    timed: Callable[[], object]
    kernel: Callable[[], object] | None = None


def measure(
    problem: Problem, methods: list[Method], clock: HostClock | DeviceClock, stop: Callable[[], bool] = lambda: False,
    begin: Callable[[str], None] = lambda name: None,
) -> Iterator[dict]:  # fmt: skip
    """Yields the rows of `methods` as soon as they are known. A method that fails its check or
    raises has `ms` None and the reason in `status`; `untimed` holds the reasons for other missing
    times.

    Args:
        problem: the inputs.
        methods: to measure, in this order.
        clock: on a CPU it times all methods in turn.
        stop: no further method starts once it returns True.
        begin: called with the name of each method that is measured by itself, before it runs.
    """
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
    """The row without its times, and the run to time; None instead of the run if the check
    failed."""
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
        if clock.together and took > MAX_CALL_SECONDS:
            raise LeftOut(f"a call takes {took:.0f} s, above the limit of {MAX_CALL_SECONDS:.0f}")
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
    """Makes a method ready, which is not timed. Backward, one forward pass serves all calls. Raises
    LeftOut for a method that does not apply."""
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

    def gradients(grad_out: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return torch.autograd.grad(out, inputs, grad_out, retain_graph=True)

    def sampled() -> list[torch.Tensor]:
        dq, dk, dv = gradients(problem.sampled_grad_out)
        return [dq[:, :, problem.rows, :dim], dk[..., :dim], dv[..., :dim]]

    return Run(method, prepared, sampled, lambda: gradients(problem.grad_out))


def errors(problem: Problem, method: Method, outcome: list[torch.Tensor]) -> dict:
    """Errors of a method at the sampled rows, by the names of the record.

    Args:
        problem: the inputs and the oracle.
        method: the method that computed `outcome`.
        outcome: [out at the rows], or the gradients [of q at the rows, of k, of v], as
            `Problem.truth` returns them.

    Returns:
        `max_abs_error` and `rms_relative_error` against exact ALiBi; `check_error`, the largest
        relative rms error of a head against the oracle under the method's own weights, infinite for
        NaN, and `check_limit`, above which the check fails. Of several tensors the largest error
        counts.
    """
    exact = problem.truth(problem.exact)
    oracle = problem.truth(method.weights)
    limit = LIMITS[problem.dtype] * (GRADIENT_FACTOR if problem.backward else 1.0)
    check = max(float(_relative(got, true).max()) for got, true in zip(outcome, oracle, strict=True))
    pairs = list(zip(outcome, exact, strict=True))
    return {
        "max_abs_error": max(float((got.double() - true).abs().max()) for got, true in pairs),
        "rms_relative_error": max(float((got.double() - true).norm() / true.norm()) for got, true in pairs),
        "check_error": check,
        "check_limit": limit,
    }


def _relative(got: torch.Tensor, true: torch.Tensor) -> torch.Tensor:
    """rms of the error over rms of the truth for each head; NaN counts as infinite."""
    squared = (got.double() - true).square().sum((0, 2, 3)) / true.square().sum((0, 2, 3))
    return squared.sqrt().nan_to_num(torch.inf)


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
    """Lower bound of the warp instructions that the kernels of a forward call of kernel `triton`
    issue; None if their machine code is not recorded."""
    if problem.device.type != "cuda" or prepared.tables is None or method.separate:
        return None
    if problem.backward or problem.queries < problem.tokens:
        return None
    from kernels.aot.issue import issued  # triton exists on Linux only

    if torch.cuda.get_device_capability(problem.device)[0] != CAPABILITY:
        return None
    return issued(method.weights, problem.tokens, problem.heads.dim, problem.dtype)


def _more_times(problem: Problem, run: Run, ms: dict, clock: HostClock | DeviceClock) -> dict:
    """Times of the kernel alone and of building the tables, and of all of them in a CUDA graph
    except for long calls and the backward pass: many launches for little work take longer than the
    work. The reason of a failure is in `untimed`, and the call keeps its time."""
    apart = {"kernel_": run.kernel, "tables_": run.prepared.tables}
    apart = {name: call for name, call in apart.items() if call is not None}
    measurements = {f"{name}ms": lambda call=call: clock.quartiles([call])[0] for name, call in apart.items()}
    if not problem.backward and (ms["median"] < MAX_GRAPH_CALL_MS or problem.queries < problem.tokens):
        whole = {"": run.timed} | apart
        measurements |= {f"{name}graph_ms": lambda call=call: clock.graph(call) for name, call in whole.items()}
    times: dict = {}
    for name, take in measurements.items():
        try:
            times[name] = take()
        except Exception as e:
            times.setdefault("untimed", {})[name] = reason_of(e)
    return times


def reason_of(e: Exception) -> str:
    """An exception as the record states it."""
    if isinstance(e, torch.OutOfMemoryError):
        return "out of memory"
    first = next((line.strip() for line in str(e).splitlines() if line.strip()), "")
    return f"error: {type(e).__name__}: {first}"[:300]
