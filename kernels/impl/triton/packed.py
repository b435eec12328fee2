"""The weights as the Triton kernels read them, on a device, for as long as the weights live
there."""

from dataclasses import dataclass

import torch
from torch._guards import detect_fake_mode
from torch._subclasses.fake_tensor import FakeTensor

from kernels.impl.tables import bias_by_distance, bias_of, distances_of, fixed_tables, law_of, near_of
from kernels.methods.laws import Law
from kernels.methods.weights import Weights


@dataclass(frozen=True)
class PackedWeights:
    """`numbers`: `Weights.pack`. All others but `law` and `masks`: as in
    `kernels.impl.tables.Tables`."""

    law: Law
    masks: int
    sinks: int
    near: int
    numbers: torch.Tensor
    order: torch.Tensor
    slope: torch.Tensor
    byte_weights: torch.Tensor

    @property
    def kind(self) -> dict:
        """The constants that the kernels are compiled for."""
        return {"law": self.law.value, "masks": self.masks, "sinks": self.sinks, "near": self.near}


def pack_weights(weights: Weights, device: torch.device) -> PackedWeights:
    """Returns new copies of the numbers on a device. Raises ValueError for weights without a
    law."""
    law, masks, numbers = law_of(weights), weights.count, weights.pack()
    tensors = (numbers, *fixed_tables(law, weights.slopes, numbers[:, 1 + 2 * masks : 1 + 3 * masks]))
    return PackedWeights(law, masks, weights.sinks, near_of(weights), *(x.to(device) for x in tensors))


def packed_on_device(weights: Weights, device: torch.device) -> PackedWeights:
    """As `pack_weights`, but kept for as long as the weights live: a copy at every call would stall
    the stream, and no CUDA graph could capture the call."""
    if torch.compiler.is_compiling():
        return pack_weights(weights, device)
    cache = vars(weights).setdefault("_packed", {})
    packed = cache.get(device)
    if packed is None:
        with torch.inference_mode(False), torch.no_grad():
            packed = pack_weights(weights, device)
        if not isinstance(packed.numbers, FakeTensor):
            cache[device] = packed
    return packed


def bias_on_device(weights: Weights, tokens: int, packed: PackedWeights) -> torch.Tensor:
    """`kernels.impl.tables.bias_of` on the device of the packed weights. Nothing is kept while a
    graph is traced.

    Args:
        weights: with a law.
        tokens: length of the context. Evicted tokens count; if the host does not know their number,
            `weights.span` takes its place.
        packed: the same weights on the device.
    """
    if packed.law is not Law.DISTANCE:
        return packed.slope.new_empty(0)
    if torch.compiler.is_compiling() or detect_fake_mode(packed.numbers) is not None:
        return bias_op(packed.numbers, weights.count, weights.kind.sampler, distances_of(weights, tokens), packed.near)
    return bias_of(weights, tokens, packed.numbers[:, 0])


@torch.library.custom_op("positional_lsh::bias", mutates_args=())
def bias_op(numbers: torch.Tensor, masks: int, sampler: str, width: int, near: int) -> torch.Tensor:
    """`bias_by_distance` on the device of `numbers`, as an operator: torch.compile gains nothing
    from tracing into it.

    Args:
        numbers: `Weights.pack`, whose first column holds the slopes.
        masks, sampler, width, near: as there.

    Raises:
        ValueError: for a sampler without `log_coverage`.
    """
    return bias_by_distance(numbers[:, 0], masks, sampler, width, near)


@bias_op.register_fake
def _(numbers, masks, sampler, width, near):
    return numbers.new_empty(len(numbers), width, dtype=torch.float32)
