"""Time of a piece of work on a device, and the time that attention takes of it."""

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import torch

from harness.models.swap import SwappedAttention
from kernels import attend


@dataclass(frozen=True)
class Lap:
    """Milliseconds from the first instruction until the device has done all of it; `attention_ms`
    of them within `kernels.attend`, which leaves out projections and the writing of the KV cache; 0
    where that was not timed."""

    ms: float
    attention_ms: float


def lap(attention: SwappedAttention, device: torch.device, work: Callable[[], object], *, within: bool = True) -> Lap:
    """Run `work` once. On CUDA attention is timed by events on the stream, so that nothing waits in
    between. within: whether it is timed apart, which a CUDA graph cannot be."""
    cuda = device.type == "cuda"
    marks = []

    def mark():
        if not cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(device))
        return event

    def timed(*arguments, **options):
        begin = mark()
        out = attend(*arguments, **options)
        marks.append((begin, mark()))
        return out

    if cuda:
        torch.cuda.synchronize(device)
    begin = time.perf_counter()
    with attention.intercept(timed) if within else nullcontext():
        work()
    if cuda:
        torch.cuda.synchronize(device)
    total = 1e3 * (time.perf_counter() - begin)
    return Lap(total, sum(a.elapsed_time(b) if cuda else 1e3 * (b - a) for a, b in marks))
