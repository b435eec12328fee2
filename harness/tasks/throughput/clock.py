"""Time of work on a device, and the share of attention in it."""

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import torch

from harness.models.swap import SwappedAttention
from kernels import attend


@dataclass(frozen=True)
class Lap:
    """A measured time.

    ms: milliseconds from the first instruction until the device is idle.
    attention_ms: milliseconds inside `kernels.attend`, without projections and updates of the KV
        cache; 0 if not measured.
    """

    ms: float
    attention_ms: float


def time_lap(
    attention: SwappedAttention, device: torch.device, work: Callable[[], object], *, split: bool = True
) -> Lap:
    """Run `work` once and return its time.

    Args:
        attention: the attention of the model.
        device: the device.
        work: the work.
        split: whether to time attention too, on CUDA by events without synchronization. Impossible
            for work in a CUDA graph.
    """
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
        output = attend(*arguments, **options)
        marks.append((begin, mark()))
        return output

    if cuda:
        torch.cuda.synchronize(device)
    begin = time.perf_counter()
    with attention.intercept(timed) if split else nullcontext():
        work()
    if cuda:
        torch.cuda.synchronize(device)
    total = 1e3 * (time.perf_counter() - begin)
    return Lap(total, sum(a.elapsed_time(b) if cuda else 1e3 * (b - a) for a, b in marks))
