"""The clock of a GPU, against fakes of torch.cuda: what it does where a call cannot be captured or
breaks the GPU."""

import contextlib

import pytest
import torch

from kernels.bench import clock
from kernels.bench.clock import DeviceClock, DeviceLost


def _refuse(*_):
    raise RuntimeError("CUDA error: operation not permitted\nmore")


def test_a_capture_that_fails_leaves_the_stream_as_it_was(monkeypatch):
    class Stream:
        def wait_stream(self, other):
            pass

    streams = [Stream()]
    fakes = {
        "current_stream": lambda: streams[-1],
        "set_stream": streams.append,
        "Stream": Stream,
        "stream": lambda stream: contextlib.nullcontext(),
        "CUDAGraph": object,
        "graph": lambda graph: streams.append(Stream()) or _refuse(),
        "synchronize": lambda: None,
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    with pytest.raises(RuntimeError, match="not permitted"):
        DeviceClock(1).graph(lambda: None)
    assert len(streams) == 3 and streams[-1] is streams[0]


def test_a_long_call_runs_as_often_as_asked_and_once_before(monkeypatch):
    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            self.at = len(ran)

        def synchronize(self):
            pass

        def elapsed_time(self, end):
            return 10.0 * self.at + (end.at - self.at)

    ran = []
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(clock, "LONG_CALL_MS", 0.0)
    (found,) = DeviceClock(3).quartiles([lambda: ran.append(1)])
    assert len(ran) == 4 and found == {"median": 21.0, "low": 16.0, "high": 26.0, "calls": 3}


def test_the_gpu_is_lost_only_if_it_does_not_answer(monkeypatch):
    monkeypatch.setattr(torch.cuda, "empty_cache", _refuse)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    DeviceClock(1).release()
    monkeypatch.setattr(torch.cuda, "synchronize", _refuse)
    with pytest.raises(DeviceLost, match="not permitted$"):
        DeviceClock(1).release()
