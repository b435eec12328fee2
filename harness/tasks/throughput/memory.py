"""Peak memory of work, as counted by torch's allocator."""

import os
from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile

MEMORY_EVENT = "[memory]"


def peak_bytes(model: torch.nn.Module, device: torch.device, work: Callable[[], object]) -> int:
    """Run `work` and return the peak of allocated bytes, with the model's weights.

    On CUDA it is torch's count for the device. On the CPU it is the size of weights and buffers
    plus the peak of allocations during `work`, which torch's profiler records. Allocations of other
    libraries are not counted.

    Args:
        model: the model.
        device: the device.
        work: the work.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        work()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device)
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # silences the profiler's messages on stderr
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        work()
    events = [e for e in recorded.profiler.kineto_results.events() if e.name() == MEMORY_EVENT]
    allocated = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        allocated += event.nbytes()
        peak = max(peak, allocated)
    model_bytes = sum(x.numel() * x.element_size() for x in (*model.parameters(), *model.buffers()))
    return model_bytes + peak
