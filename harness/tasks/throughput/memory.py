"""Peak memory of a piece of work, by what torch's allocator has handed out."""

import os
from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile

MEMORY_EVENT = "[memory]"


def peak_bytes(model: torch.nn.Module, device: torch.device, work: Callable[[], object]) -> int:
    """The most that was allocated at one time, the model's weights included. CUDA: torch's own
    count, of everything on the device. CPU: weights and buffers, and the highest sum of the
    allocations and releases during `work`, which torch's profiler records one by one; what the
    libraries allocate for themselves is in neither."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        work()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device)
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler tells stderr when it begins and ends
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        work()
    events = [e for e in recorded.profiler.kineto_results.events() if e.name() == MEMORY_EVENT]
    held = most = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    own = sum(x.numel() * x.element_size() for x in (*model.parameters(), *model.buffers()))
    return own + most
