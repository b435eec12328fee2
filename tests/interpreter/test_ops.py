"""Kernel `triton` as torch operators: torch's own checks of them, and torch.compile."""

import contextlib
import weakref
from dataclasses import replace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from triton.runtime.interpreter import GridExecutor

from kernels import Alibi, PositionalLSH, attend
from kernels.impl.tables import bias_by_distance
from kernels.impl.triton import ops as triton_ops
from kernels.impl.triton.ops import backward_op, decode_op, forward_op, tables_on_device, tables_op
from kernels.impl.triton.packed import bias_on_device, bias_op, packed_on_device
from tests.kernels.cases import Case

RULES = ["window", "rb/systematic", "count/gamma", "count/systematic"]
CPU = torch.device("cpu")


def case_of(rule: str, **options) -> Case:
    fixed = {"masks": 5, "heads": (2, 1), "shape": (41, 41, None), "sinks": 3, "near": 7}
    return Case(**{"rule": rule, **fixed, **options})


@pytest.mark.parametrize("rule", ["rb/systematic", "count/systematic"])  # between them every table
def test_torch_finds_nothing_wrong_with_the_operators(rule: str):
    case, causal = case_of(rule, padding="left", shape=(20, 20, None)), rule != "count/systematic"
    weights, inputs = case.weights(), [x.nan_to_num(0.0) for x in case.inputs()]
    own = packed_on_device(weights, CPU)
    tables = tables_on_device(weights, 20, tile=16, causal=causal, device=CPU)
    places = torch.stack([case.pads(), -case.pads()])
    rest = (tables.law, tables.masks, tables.sinks, tables.near, 16, 0, 0.25)
    torch.library.opcheck(tables_op, (own.numbers, *own.kind.values(), 16, 20, 16, causal))
    torch.library.opcheck(bias_op, (own.numbers, weights.count, weights.sampler, 32, own.near))
    out, lse = forward_op(*inputs, tables.tensors, places, *rest)
    grad_out, grad_lse = torch.ones_like(out), torch.ones_like(lse)
    torch.library.opcheck(backward_op, (*inputs, out, lse, grad_out, grad_lse, tables.tensors, places, *rest))
    q = inputs[0][:, :, -2:]
    held = [own.numbers, own.order, own.slope, own.byte_weights]
    where = torch.stack([case.pads(), 18 - case.pads()])
    torch.library.opcheck(
        decode_op, (q, *inputs[1:], held, bias_on_device(weights, 20, own), where, *own.kind.values(), 0.25)
    )
    tests = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    inputs = [x.requires_grad_() for x in inputs]
    torch.library.opcheck(forward_op, (*inputs, tables.tensors, places, *rest), test_utils=tests, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rule", RULES)
def test_a_call_copies_nothing_to_the_device_after_the_first(rule: str, monkeypatch):
    """It would stall the stream, and end the capture of a CUDA graph."""
    monkeypatch.setattr("kernels.impl.triton.launch._GEOMETRIES", {})
    case = case_of(rule)
    (q, k, v), weights = case.inputs(), case.weights()
    calls = [(q, k, v), (q[:, :, -3:], k, v)]
    first = [attend(*call, weights, kernel="triton") for call in calls]
    made, make = [], torch.tensor
    with monkeypatch.context() as patch:
        patch.setattr(torch, "tensor", lambda *values, **options: made.append(values) or make(*values, **options))
        patch.setattr(torch, "from_numpy", None)
        patch.setattr("kernels.impl.triton.packed.pack_weights", None)  # the weights' numbers are there
        again = [attend(*call, weights, kernel="triton") for call in calls]
        assert not made
        both, padding = [x.expand(2, -1, -1, -1) for x in calls[1]], make([0, 4])
        for _ in range(2):
            attend(*both, weights, kernel="triton", padding=padding)
        assert made == [(((0, 4), (38, 34)),)]  # where this call lies, once for all layers
    assert all(torch.equal(*pair) for pair in zip(first, again, strict=True))


@pytest.mark.parametrize("rule", RULES)
def test_every_launch_is_on_the_device_of_its_tensors(rule: str, monkeypatch):
    """Triton launches on the current device, which is another one where a model is spread over
    several."""
    current, launched = [], []

    @contextlib.contextmanager
    def on(tensor: torch.Tensor):
        current.append(tensor)
        yield
        current.pop()

    launch = GridExecutor.__call__

    def counted(self, *inputs, **options):
        assert current
        launched.append(self)
        return launch(self, *inputs, **options)

    monkeypatch.setattr(triton_ops, "on_device_of", on)
    monkeypatch.setattr(GridExecutor, "__call__", counted)
    case = case_of(rule)
    (q, k, v), weights = case.inputs(), case.weights()
    attend(q[:, :, -3:], k, v, weights, kernel="triton")
    assert len(launched) == 2  # parts, merging
    with torch.no_grad():
        attend(q, k, v, weights, kernel="triton")
    assert len(launched) == 2 + 2  # tables and forward
    attend(q.requires_grad_(), k, v, weights, kernel="triton").sum().backward()
    assert len(launched) == 2 + 2 + 2 + 4  # tables and forward; delta, dq, dk with dv, and those of the sinks


def test_numbers_on_a_device_live_as_long_as_their_weights():
    weights = case_of("count/gamma").weights()
    kept = weakref.ref(packed_on_device(weights, CPU).numbers)
    assert packed_on_device(weights, CPU).numbers is kept()
    assert "_packed" not in vars(replace(weights))
    with FakeTensorMode(allow_non_fake_inputs=True):
        packed_on_device(weights, torch.device("cuda", 0))
    assert set(vars(weights)["_packed"]) == {CPU}  # what is only traced is not kept
    del weights
    assert kept() is None


def test_weights_by_distance_are_kept_for_all_draws_while_one_lives():
    slopes = torch.tensor([0.01, 0.003], dtype=torch.float64)
    one, other = (PositionalLSH.draw(slopes, 4, seed=s, sampler="systematic", weights="rb") for s in (0, 1))
    numbers = packed_on_device(one, CPU)
    with FakeTensorMode(allow_non_fake_inputs=True):
        bias_on_device(one, 40, numbers)
    kept = bias_on_device(one, 40, numbers)
    assert not isinstance(kept, FakeTensor)  # what is only traced is not kept
    with torch.inference_mode():
        assert bias_on_device(other, 40, packed_on_device(other, CPU)) is kept is bias_on_device(one, 33, numbers)
    assert kept.shape == (2, 64) and torch.equal(kept[:, :40], bias_op(numbers.numbers, 4, "systematic", 40, 0))
    assert torch.equal(kept, bias_by_distance(slopes, 4, "systematic", 64, 0))
    assert bias_on_device(one, 65, numbers).shape == (2, 128)
    assert bias_on_device(one, 40, numbers) is kept
    kept = weakref.ref(kept)
    del one
    assert kept() is not None
    del other
    assert kept() is None


def compiled(counter: list[int]):
    """`attend` compiled whole; `counter` has the number of graphs. What is compiled is run as it
    was traced."""

    def backend(graph, inputs):
        counter[0] += 1
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    torch._dynamo.reset()
    return torch.compile(
        lambda *inputs, **options: attend(*inputs, kernel="triton", **options), fullgraph=True, backend=backend
    )


@pytest.mark.parametrize("rule", RULES)
def test_compiled_it_gives_the_same(rule: str):
    case = case_of(rule, padding="left")
    weights, options, count = case.weights(), case.options(), [0]
    inputs = [x.nan_to_num(0.0).requires_grad_() for x in case.inputs()]
    function = compiled(count)
    results = []
    for run in (function, lambda *a, **o: attend(*a, kernel="triton", **o)):
        out, lse = run(*inputs, weights, return_lse=True, **options)
        real = lse.isfinite()
        results.append([out, lse, *torch.autograd.grad(out.square().sum() + lse[real].sum(), inputs)])
    assert count[0] == 1
    for mine, true in zip(*results, strict=True):
        assert torch.equal(mine, true)
    function(*inputs, weights, return_lse=True, **options)
    assert count[0] == 1  # what the call before kept with the weights asks for no other graph
    with torch.no_grad():
        few = [inputs[0][:, :, -3:], *inputs[1:]]
        assert torch.equal(function(*few, weights, **options), attend(*few, weights, kernel="triton", **options))


def test_one_compilation_serves_all_layers_and_lengths():
    count = [0]
    function = compiled(count)
    for layer in range(4):
        weights = PositionalLSH.draw(
            torch.tensor([0.5, 0.1]), 4, seed=0, layer=layer, sampler="systematic", weights="rb"
        )
        q, k, v = case_of("alibi", shape=(30 + 7 * layer, 30 + 7 * layer, None)).inputs()
        assert torch.equal(function(q, k, v, weights), attend(q, k, v, weights, kernel="triton"))
    assert count[0] <= 3


def test_one_compilation_serves_every_gap():
    """A cache that evicts while it decodes has another gap at every step."""
    count = [0]
    function, case = compiled(count), Case(rule="window", heads=(2, 2), slopes="steep", sinks=3, shape=(40, 2, None))
    for gap in (5, 6, 7, 300):
        out = function(*case.inputs(), case.weights(), gap=gap)
        assert torch.equal(out, attend(*case.inputs(), case.weights(), kernel="triton", gap=gap))
    assert count[0] <= 2


def test_forward_mode_derivatives_are_refused():
    """The operators know none, and torch would take them for zero."""
    q, k, v = case_of("alibi").inputs()
    weights = Alibi(torch.tensor([0.5, 0.1]))
    with pytest.raises(ValueError, match="no forward-mode derivatives: use kernel='exact'"):
        torch.func.jvp(lambda q: attend(q, k, v, weights, kernel="triton"), (q,), (q,))


def test_compiled_it_still_refuses_what_lies_outside():
    q, k, v = case_of("alibi").inputs()
    function, weights = compiled([0]), Alibi(torch.tensor([0.5, 0.1]))
    with pytest.raises(ValueError, match="pass k and v of the whole sequence"):
        function(q, k, v, weights, q_offset=torch.tensor([1]))
