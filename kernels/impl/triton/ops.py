"""Kernel `triton` as torch operators: torch.compile takes them whole, and autograd differentiates
the forward pass.

An operator takes tensors and plain numbers only, so weights come as `PackedWeights`, and every look
at numbers on the host happens inside the operator. A call that is neither traced nor differentiated
bypasses the operators, whose Python takes time beside a launch. Building the tables is an operator
of its own: autograd holds its results from forward to backward, and nothing else does. Triton
launches on the current device: each operator makes the device of its tensors current, for models
that are spread over several devices.
"""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from kernels.impl.geometry import CallGeometry, check_geometry, tracing
from kernels.impl.tables import Tables, empty_tables, whole_tiles
from kernels.impl.triton.backward import backward
from kernels.impl.triton.decode import decode
from kernels.impl.triton.forward import forward
from kernels.impl.triton.launch import geometry_on_device
from kernels.impl.triton.packed import PackedWeights, bias_on_device, packed_on_device
from kernels.impl.triton.tables import build
from kernels.methods.laws import Law
from kernels.methods.weights import Weights

# a graph that torch captures would be replayed where it was captured: geometry on the host are not
# read again
GRAPH_UNSAFE = (torch.Tag.cudagraph_unsafe,)
_NO_SWITCH = nullcontext()


def tables_on_device(
    weights: Weights, tokens: int, *, tile: int, causal: bool, device: torch.device, origin: int = 0
) -> Tables:
    """As `kernels.impl.tables.build_tables`, on a CUDA device or in Triton's interpreter.

    This is all that kernel="triton" computes from the masks before its forward pass: `order`,
    `slope`, `byte_weights` and `bias` at the first call, the rest at every call. Time this function
    to time the tables apart from the forward pass.

    Args:
        weights, tokens, tile, causal, origin: as there.
        device: of the tables.

    Raises:
        ValueError: for weights without a law.
    """
    packed = packed_on_device(weights, device)
    shape = (*packed.kind.values(), origin, tokens, tile, causal)
    if tracing():
        first, last, bitplanes, pivot_blocks = tables_op(packed.numbers, *shape)
    else:
        with on_device_of(packed.numbers):
            first, last, bitplanes, pivot_blocks = build(packed.numbers, packed.law, *shape[1:]).values()
    bias = bias_on_device(weights, whole_tiles(tokens, tile), packed)
    fixed = (packed.law, tile, packed.masks, packed.sinks, packed.near, origin)
    return Tables(*fixed, first, last, packed.order, packed.slope, bias, bitplanes, pivot_blocks, packed.byte_weights)


@torch.library.custom_op("positional_lsh::tables", mutates_args=())
def tables_op(
    numbers: Tensor, law: str, masks: int, sinks: int, near: int, origin: int, tokens: int, tile: int, causal: bool
) -> list[Tensor]:
    """`first`, `last`, `bitplanes` and `pivot_blocks` of `Tables`, on the device of `numbers`.

    Args:
        numbers: `Weights.pack`.
        law: value of a `Law`.
        masks, sinks, near: of the weights, as in `Tables`.
        origin, tokens, tile, causal: as in `kernels.impl.tables.build_tables`.
    """
    with on_device_of(numbers):
        return list(build(numbers, Law(law), masks, sinks, near, origin, tokens, tile, causal).values())


@tables_op.register_fake
def _(numbers, law, masks, sinks, near, origin, tokens, tile, causal):
    return list(empty_tables(Law(law), masks, origin, tokens, tile, causal, len(numbers), numbers.device).values())


def attend_on_tables(
    q: Tensor, k: Tensor, v: Tensor, tables: Tables, geometry: CallGeometry, scale: float
) -> tuple[Tensor, Tensor]:
    """`kernels.impl.triton.forward.forward`, with gradients for q, k and v through out and through
    lse.

    Args:
        q, k, v, scale: as there, with any strides.
        tables: for all queries; for gradients, for all tokens (origin 0).
        geometry: checked if it is on the host, not if it is on a device; for gradients without
            gaps.

    Raises:
        ValueError: for a geometry that does not fit.
    """
    if needs_no_operator(q, k, v):
        return _forward(q, k, v, tables, geometry, scale)
    kind = (tables.law.value, tables.masks, tables.sinks, tables.near, tables.tile, tables.origin)
    return forward_op(q, k, v, tables.tensors, torch.as_tensor(geometry), *kind, scale)


def _forward(
    q: Tensor, k: Tensor, v: Tensor, tables: Tables, geometry: CallGeometry, scale: float
) -> tuple[Tensor, Tensor]:
    with on_device_of(q):
        checked = geometry_tensor(geometry, q, k, tables.sinks)
        return forward(dense(q), dense(k), dense(v), tables, checked, scale=scale)


@torch.library.custom_op("positional_lsh::forward", mutates_args=(), tags=GRAPH_UNSAFE)
def forward_op(
    q: Tensor, k: Tensor, v: Tensor, tables: list[Tensor], geometry: Tensor, law: str, masks: int, sinks: int,
    near: int, tile: int, origin: int, scale: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """out like q and lse (B, H, Tq) float32.

    Args:
        q, k, v, scale: as in `attend_on_tables`.
        tables: `Tables.tensors`.
        geometry: (2 or 3, batch), whole numbers; checked if it is on the host, not if it is on a
            device.
        law: value of a `Law`.
        masks, sinks, near, tile, origin: of the tables.

    Raises:
        ValueError: for a geometry that does not fit.
    """
    return _forward(q, k, v, Tables(Law(law), tile, masks, sinks, near, origin, *tables), geometry, scale)


@forward_op.register_fake
def _(q, k, v, tables, geometry, law, masks, sinks, near, tile, origin, scale):
    return torch.empty_like(q, memory_format=torch.contiguous_format), q.new_empty(q.shape[:3], dtype=torch.float32)


@torch.library.custom_op("positional_lsh::backward", mutates_args=(), tags=GRAPH_UNSAFE)
def backward_op(
    q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, dout: Tensor, dlse: Tensor, tables: list[Tensor],
    geometry: Tensor, law: str, masks: int, sinks: int, near: int, tile: int, origin: int, scale: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients like q, k and v.

    Args:
        q, k, v, tables, law, masks, sinks, near, tile, scale: as in `forward_op`.
        out, lse: results of `forward_op`.
        dout, dlse: gradients of out and lse.
        geometry: of `forward_op`, without gaps.
        origin: of the tables, 0.
    """
    inputs = (dense(q), dense(k), dense(v), dense(out), lse, dense(dout), dlse)
    all_tables = Tables(Law(law), tile, masks, sinks, near, origin, *tables)
    pads, starts = geometry[:2].tolist()
    with on_device_of(q):
        return backward(*inputs, all_tables, pads, starts, scale)


@backward_op.register_fake
def _(q, k, v, out, lse, dout, dlse, tables, geometry, law, masks, sinks, near, tile, origin, scale):
    return tuple(torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v))


def _keep(ctx, inputs, output):
    q, k, v, tables, geometry, *ctx.kind = inputs
    ctx.save_for_backward(q, k, v, *output, geometry, *tables)


def _differentiate(ctx, dout, dlse):
    q, k, v, out, lse, geometry, *tables = ctx.saved_tensors
    gradients = backward_op(q, k, v, out, lse, dout, dlse, tables, geometry, *ctx.kind)
    return *gradients, [None] * len(tables), *[None] * (1 + len(ctx.kind))


forward_op.register_autograd(_differentiate, setup_context=_keep)


def attend_decoding(
    q: Tensor, k: Tensor, v: Tensor, packed: PackedWeights, bias: Tensor, geometry: CallGeometry, scale: float
) -> tuple[Tensor, Tensor]:
    """`kernels.impl.triton.decode.decode`.

    Args:
        q, k, v, scale: as there, with any strides.
        packed, bias: of the weights, on q's device.
        geometry: checked if it is on the host, not if it is on a device.

    Raises:
        ValueError: for a geometry that does not fit.
    """
    if needs_no_operator(q, k, v):
        return _decode(q, k, v, packed, bias, geometry, scale)
    tensors = [packed.numbers, packed.order, packed.slope, packed.byte_weights]
    return decode_op(q, k, v, tensors, bias, torch.as_tensor(geometry), **packed.kind, scale=scale)


def _decode(
    q: Tensor, k: Tensor, v: Tensor, packed: PackedWeights, bias: Tensor, geometry: CallGeometry, scale: float
) -> tuple[Tensor, Tensor]:
    with on_device_of(q):
        checked = geometry_tensor(geometry, q, k, packed.sinks)
        return decode(dense(q), dense(k), dense(v), packed, bias, checked, scale=scale)


@torch.library.custom_op("positional_lsh::decode", mutates_args=(), tags=GRAPH_UNSAFE)
def decode_op(
    q: Tensor, k: Tensor, v: Tensor, numbers: list[Tensor], bias: Tensor, geometry: Tensor, law: str, masks: int,
    sinks: int, near: int, scale: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """As `forward_op` for a few causal rows, without gradients.

    Args:
        q, k, v, geometry, law, masks, sinks, near, scale: as in `forward_op`.
        numbers: the tensors of `PackedWeights`, in the order of its fields.
        bias: as in `attend_decoding`.

    Raises:
        ValueError: for a geometry that does not fit.
    """
    return _decode(q, k, v, PackedWeights(Law(law), masks, sinks, near, *numbers), bias, geometry, scale)


@decode_op.register_fake
def _(q, k, v, numbers, bias, geometry, law, masks, sinks, near, scale):
    return torch.empty_like(q, memory_format=torch.contiguous_format), q.new_empty(q.shape[:3], dtype=torch.float32)


def needs_no_operator(*inputs: Tensor) -> bool:
    """Whether a call may bypass the operators: it is neither traced nor differentiated."""
    if tracing() or not all(type(x) is Tensor for x in inputs):
        return False
    return not (torch.is_grad_enabled() and any(x.requires_grad for x in inputs))


def geometry_tensor(geometry: CallGeometry, q: Tensor, k: Tensor, sinks: int) -> Tensor:
    """The geometry as a kernel takes it, (2 or 3, batch) int32 on q's device.

    Args:
        geometry: of the call; checked if it is on the host, not if it is on a device.
        q, k: of the call, padding included.
        sinks: number of keys before a gap.

    Raises:
        ValueError: for a geometry that does not fit.
    """
    if isinstance(geometry, Tensor) and geometry.device.type != "cpu":
        return geometry.to(q.device, torch.int32).contiguous()
    pads, starts, gaps = check_geometry(geometry, q.shape[2], k.shape[2], sinks)
    return geometry_on_device((pads, starts, gaps) if any(gaps) else (pads, starts), q.device)


def on_device_of(tensor: Tensor) -> AbstractContextManager:
    """A context in which the tensor's device is the current one, on which Triton launches."""
    if not tensor.is_cuda or torch.cuda.current_device() == tensor.device.index:
        return _NO_SWITCH
    return torch.cuda.device(tensor.device)


def dense(x: Tensor) -> Tensor:
    """x with a dense last dimension, as the kernels need it."""
    return x if x.stride(-1) == 1 else x.contiguous()
