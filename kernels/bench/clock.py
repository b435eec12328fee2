"""How time is taken: rounds by turns on a CPU, `triton.testing.do_bench` on a GPU."""

import contextlib
import statistics
import time
from collections.abc import Callable

import torch

Call = Callable[[], object]
MAX_CALL_SECONDS = 20.0  # a slower call is left out
LONG_CALL_MS = 100.0  # neither a warm-up nor a cold cache matters for a longer call


class DeviceLost(Exception):
    """A kernel has left the GPU's context unusable for this process."""


class HostClock:
    """Rounds over all calls in turn, so that other load on the machine affects all of them
    alike."""

    together = True

    def __init__(self, repeats: int):
        self.repeats = repeats

    def release(self) -> None:
        """Does nothing on a CPU."""

    def quartiles(self, calls: list[Call]) -> list[dict]:
        """For each call the median, lower and upper quartile in ms, and how often it ran."""
        taken: list[list[float]] = [[] for _ in calls]
        for _ in range(self.repeats):
            for call, times in zip(calls, taken, strict=True):
                times.append(1e3 * seconds(call))
        return [_quartiles(times) for times in taken]

    def graph(self, call: Call) -> dict:
        """Raises NotImplementedError: there are no graphs on a CPU."""
        raise NotImplementedError("A CPU has no CUDA graphs.")

    def memory_rate(self) -> float:
        """GB read and written per second by the fastest of a few copies too large for a cache: the
        bound of every kernel."""
        source = torch.ones(1 << 26)
        target = torch.empty_like(source)
        return 2 * source.nbytes / min(seconds(lambda: target.copy_(source)) for _ in range(5)) / 1e9


class DeviceClock:
    """CUDA events around each call, with the L2 cache cleared before each short call."""

    together = False

    def __init__(self, repeats: int):
        self.repeats = repeats

    def release(self) -> None:
        """Frees the memory of the last method, so that the next does not run out of it. Raises
        DeviceLost if the GPU is unusable for this process."""
        try:
            torch.cuda.synchronize()
        except RuntimeError as e:
            raise DeviceLost(str(e).splitlines()[0]) from e
        with contextlib.suppress(RuntimeError):  # it may fail after a failed capture, which is no reason to stop
            torch.cuda.empty_cache()

    def quartiles(self, calls: list[Call]) -> list[dict]:
        """As `HostClock.quartiles`, one call after the other."""
        return [self._quartiles(call) for call in calls]

    def _quartiles(self, call: Call) -> dict:
        from triton.testing import do_bench

        begin = time.perf_counter()
        call()
        torch.cuda.synchronize()
        once = 1e3 * (time.perf_counter() - begin)
        if once > LONG_CALL_MS:
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
        """The quartiles in a CUDA graph, without the time of launching. Raises RuntimeError if the
        call cannot be captured."""
        current = torch.cuda.current_stream()
        try:
            stream = torch.cuda.Stream()
            stream.wait_stream(current)
            with torch.cuda.stream(stream):
                call()
            current.wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                kept = call()  # noqa: F841 - its memory belongs to the graph
            return self._quartiles(graph.replay)
        except RuntimeError:
            torch.cuda.set_stream(current)  # torch may leave the process on the stream of a failed capture
            torch.cuda.synchronize()
            raise

    def memory_rate(self) -> float:
        """As `HostClock.memory_rate`, of the GPU."""
        source = torch.ones(1 << 30, device="cuda")
        target = torch.empty_like(source)
        return 2 * source.nbytes / self._quartiles(lambda: target.copy_(source))["median"] / 1e6


def clock_for(device: str, repeats: int) -> HostClock | DeviceClock:
    """The clock of a device, "cuda" or "cpu"."""
    return DeviceClock(repeats) if device == "cuda" else HostClock(repeats)


def seconds(call: Call) -> float:
    """Seconds that a call takes: by the wall clock, or, if torch uses one thread, the processor
    time of this process, which other programs do not affect."""
    now = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    begin = now()
    call()
    return now() - begin


def _quartiles(taken: list[float]) -> dict:
    low, _, high = statistics.quantiles(taken, n=4, method="inclusive") if len(taken) > 1 else taken * 3
    return {"median": statistics.median(taken), "low": low, "high": high, "calls": len(taken)}
