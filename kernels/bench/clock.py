"""How time is taken: rounds by turns on a CPU, `triton.testing.do_bench` on a GPU."""

import contextlib
import statistics
import time
from collections.abc import Callable

import torch

Call = Callable[[], object]
SLOWEST = 20.0  # seconds a call may take
LONG = 100.0  # ms of a call for which neither a warm-up nor a cold cache matters


class DeviceLost(Exception):
    """A kernel has left the GPU's context unusable for this process."""


class HostClock:
    """Rounds over all calls by turns, so that what else the machine does meets all of them
    alike."""

    together = True

    def __init__(self, repeats: int):
        self.repeats = repeats

    def release(self) -> None:
        pass

    def quartiles(self, calls: list[Call]) -> list[dict]:
        """For each call the median, lower and upper quartile in ms, and how often it ran."""
        taken: list[list[float]] = [[] for _ in calls]
        for _ in range(self.repeats):
            for call, own in zip(calls, taken, strict=True):
                own.append(1e3 * seconds(call))
        return [_quartiles(own) for own in taken]

    def graph(self, call: Call) -> dict:
        """Raises NotImplementedError: there are no graphs on a CPU."""
        raise NotImplementedError("A CPU has no CUDA graphs.")

    def memory_rate(self) -> float:
        """GB read and written per second by the fastest of a few copies too large for a cache: what
        bounds every kernel."""
        source = torch.ones(1 << 26)
        target = torch.empty_like(source)
        return 2 * source.nbytes / min(seconds(lambda: target.copy_(source)) for _ in range(5)) / 1e9


class DeviceClock:
    """CUDA events around each call, the L2 cache cleared before it if it is not a long one."""

    together = False

    def __init__(self, repeats: int):
        self.repeats = repeats

    def release(self) -> None:
        """Give back what the last method took, so that it cannot push the next out of memory."""
        try:
            torch.cuda.synchronize()
        except RuntimeError as e:
            raise DeviceLost(str(e).splitlines()[0]) from e
        with contextlib.suppress(RuntimeError):  # it may refuse after a capture that failed: no reason to stop
            torch.cuda.empty_cache()

    def quartiles(self, calls: list[Call]) -> list[dict]:
        return [self._quartiles(call) for call in calls]

    def _quartiles(self, call: Call) -> dict:
        from triton.testing import do_bench

        begin = time.perf_counter()
        call()
        torch.cuda.synchronize()
        once = 1e3 * (time.perf_counter() - begin)
        if once > LONG:
            return _quartiles([self._by_events(call) for _ in range(self.repeats)])
        # a long call runs `repeats` times, a short one for a tenth of a second
        times = do_bench(call, warmup=min(25.0, once), rep=max(100.0, self.repeats * once), return_mode="all")
        return _quartiles(times)

    def _by_events(self, call: Call) -> float:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        call()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end)

    def graph(self, call: Call) -> dict:
        """The quartiles without the time that launching takes. Raises RuntimeError if the call
        cannot be captured."""
        own = torch.cuda.current_stream()
        try:
            stream = torch.cuda.Stream()
            stream.wait_stream(own)
            with torch.cuda.stream(stream):
                call()
            own.wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                kept = call()  # noqa: F841 - its memory belongs to the graph
            return self._quartiles(graph.replay)
        except RuntimeError:
            torch.cuda.set_stream(own)  # torch may leave the process on the stream of a capture that failed
            torch.cuda.synchronize()
            raise

    def memory_rate(self) -> float:
        source = torch.ones(1 << 30, device="cuda")
        target = torch.empty_like(source)
        return 2 * source.nbytes / self._quartiles(lambda: target.copy_(source))["median"] / 1e6


def clock_for(device: str, repeats: int) -> HostClock | DeviceClock:
    return DeviceClock(repeats) if device == "cuda" else HostClock(repeats)


def seconds(call: Call) -> float:
    """On the wall, or, where one thread computes, of this process: what other programs take does
    not count then."""
    now = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    begin = now()
    call()
    return now() - begin


def _quartiles(taken: list[float]) -> dict:
    low, _, high = statistics.quantiles(taken, n=4, method="inclusive") if len(taken) > 1 else taken * 3
    return {"median": statistics.median(taken), "low": low, "high": high, "calls": len(taken)}
