"""Kernel `triton` as a CUDA graph holds it: launched once, then again and again at places that lie
on the device."""

import math

import pytest
import torch
from triton.runtime.interpreter import GridExecutor

from kernels import attend
from kernels.impl import tables
from kernels.impl.tables import bias_of
from kernels.impl.triton.decode import MAX_QUERIES, decode
from kernels.impl.triton.forward import forward
from kernels.impl.triton.launch import geometry_on_device
from kernels.impl.triton.ops import geometry_tensor, tables_on_device
from kernels.impl.triton.packed import bias_on_device, packed_on_device
from tests.kernels.cases import Case

CAPACITY = 96
RULES = ["window", "rb/gamma", "rb/systematic", "count/gamma", "count/systematic"]


def captured(monkeypatch, call):
    """What `call` returns, and a function that repeats its launches with the very same
    arguments."""
    launches, launch = [], GridExecutor.__call__

    def record(self, *inputs, **options):
        launches.append((self, inputs, options))
        return launch(self, *inputs, **options)

    with monkeypatch.context() as patch:
        patch.setattr(GridExecutor, "__call__", record)
        result = call()

    def replay() -> None:
        for one, inputs, options in launches:
            launch(one, *inputs, **options)

    return result, replay


@pytest.mark.parametrize("queries, gap", [(1, 0), (3, 0), (1, 7), (20, 0)])
@pytest.mark.parametrize("rule", RULES)
def test_replayed_elsewhere_it_is_the_call_there(rule: str, queries: int, gap: int, monkeypatch):
    """At its new places against the oracle. Decoding reads nothing that the buffers hold after the
    tokens so far."""
    case = Case(rule=rule, masks=5, heads=(2, 1), slopes="steep", shape=(CAPACITY, queries, None), sinks=3)
    weights, (q, k, v) = case.weights(), (x.expand(2, -1, -1, -1).clone() for x in case.inputs())
    numbers, rows = packed_on_device(weights, q.device), 3 if gap else 2
    bias, places = bias_on_device(weights, CAPACITY + gap, numbers), torch.zeros(rows, 2, dtype=torch.int32)
    filled, scale = [x.clone() for x in (k, v)], q.shape[3] ** -0.5
    begin = 60 if gap else 0
    if gap:
        places[1], places[2] = begin, gap
    if queries > MAX_QUERIES:
        held = tables_on_device(weights, CAPACITY, tile=32, causal=True, device=q.device)
        call = lambda: forward(q, k, v, held, places, scale=scale)  # noqa: E731
    else:
        call = lambda: decode(q, k, v, numbers, bias, places, scale=scale)  # noqa: E731
    (out, lse), replay = captured(monkeypatch, call)
    for start, pad in ((begin + 9, 2), (begin + 10, 2), (CAPACITY - queries - 4, 4)):
        where = torch.tensor([[pad, 0], [start - pad, start], [gap, gap]][:rows])
        places.copy_(where)
        for x, own in zip((k, v), filled, strict=True):
            x.copy_(own)
            x[:, :, start + queries - gap :] = math.nan if queries <= MAX_QUERIES else 0.0
            x[0, :, :pad] = math.nan
        q.normal_(generator=torch.Generator().manual_seed(start))
        for x in (out, lse):
            x.fill_(math.nan)
        replay()
        true = attend(q, *filled, weights, kernel="exact", places=where, return_lse=True)
        for mine, other in zip((out, lse), true, strict=True):
            assert (mine - other).abs().max() < 2e-5


def test_places_on_a_device_are_taken_as_they_are():
    """Nothing looks at them: the numbers of a tensor without any could not be read."""
    where = torch.empty(2, 1, dtype=torch.int32, device="meta")
    q = torch.empty(1, 2, 1, 16, device="meta")
    assert geometry_tensor(where, q, q, 0) is where
    assert geometry_tensor(where.long(), q, q, 0).dtype == torch.int32


def test_what_is_made_while_a_graph_is_captured_is_not_kept(monkeypatch):
    """It is in the memory of the graph, which fills it at every replay."""
    weights = Case(rule="rb/systematic", masks=5, heads=(2, 1)).weights()
    slopes, device = weights.slopes, torch.device("cpu")
    monkeypatch.setattr("kernels.impl.triton.launch._GEOMETRIES", {})
    with monkeypatch.context() as patch:
        for module in ("tables", "triton.launch"):
            patch.setattr(f"kernels.impl.{module}.capturing", lambda device: True)
        made = bias_of(weights, 40, slopes)
        assert bias_of(weights, 40, slopes) is not made
        for rows in (((0, 0), (9, 9)), ((0, 4), (9, 5), (3, 3))):
            held = geometry_on_device(rows, device)
            assert held.dtype == torch.int32 and held.tolist() == list(map(list, rows))
            assert geometry_on_device(rows, device) is not held
    kept = bias_of(weights, 40, slopes)
    assert bias_of(weights, 40, slopes) is kept and torch.equal(kept, made)
    assert geometry_on_device(rows, device) is geometry_on_device(rows, device)
    assert not tables.capturing(device)


@pytest.mark.parametrize("name", ["forward", "backward", "decode"])
def test_a_graph_that_torch_captures_leaves_the_operators_out(name: str):
    """Replayed it would not look at places on the host again."""
    assert torch.Tag.cudagraph_unsafe in getattr(torch.ops.positional_lsh, name).default.tags
