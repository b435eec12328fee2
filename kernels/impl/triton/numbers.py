"""What the Triton kernels read of the weights alone, on a device, for as long as the weights live
there."""

from dataclasses import dataclass

import torch
from torch._guards import detect_fake_mode
from torch._subclasses.fake_tensor import FakeTensor

from kernels.impl.tables import bias_by_distance, bias_of, fixed_tables, law_of, reach_of
from kernels.methods.laws import Law
from kernels.methods.weights import Weights


@dataclass(frozen=True)
class Numbers:
    """`numbers`: `Weights.pack`. `order`, `slope` and `share` as in
    `kernels.impl.tables.Tables`."""

    law: Law
    masks: int
    sinks: int
    numbers: torch.Tensor
    order: torch.Tensor
    slope: torch.Tensor
    share: torch.Tensor

    @property
    def kind(self) -> dict:
        """What the kernels are compiled for."""
        return {"law": self.law.value, "masks": self.masks, "sinks": self.sinks}


def numbers_of(weights: Weights, device: torch.device) -> Numbers:
    """The numbers of the weights on a device, made anew."""
    law, masks, numbers = law_of(weights), weights.count, weights.pack()
    tensors = (numbers, *fixed_tables(law, weights.slopes, numbers[:, 1 + 2 * masks : 1 + 3 * masks]))
    return Numbers(law, masks, weights.sinks, *(x.to(device) for x in tensors))


def numbers_on(weights: Weights, device: torch.device) -> Numbers:
    """`numbers_of` that stay as long as the weights live: copied at every call they would stall the
    stream, and no CUDA graph could capture the call."""
    if torch.compiler.is_compiling():
        return numbers_of(weights, device)
    kept = vars(weights).setdefault("_numbers", {})
    found = kept.get(device)
    if found is None:
        with torch.inference_mode(False), torch.no_grad():
            found = numbers_of(weights, device)
        if not isinstance(found.numbers, FakeTensor):
            kept[device] = found
    return found


def bias_on(weights: Weights, tokens: int, numbers: Numbers) -> torch.Tensor:
    """`kernels.impl.tables.bias_of` where the `numbers` of the weights are; nothing is kept of what
    is only traced."""
    if numbers.law is not Law.DISTANCE:
        return numbers.slope.new_empty(0)
    if torch.compiler.is_compiling() or detect_fake_mode(numbers.numbers) is not None:
        return bias_op(numbers.numbers, weights.count, weights.kind.sampler, reach_of(weights, tokens))
    return bias_of(weights, tokens, numbers.numbers[:, 0])


@torch.library.custom_op("positional_lsh::bias", mutates_args=())
def bias_op(numbers: torch.Tensor, masks: int, sampler: str, reach: int) -> torch.Tensor:
    """`bias_by_distance` where `numbers` are: nothing that torch.compile would do well to look
    into."""
    return bias_by_distance(numbers[:, 0], masks, sampler, reach)


@bias_op.register_fake
def _(numbers, masks, sampler, reach):
    return numbers.new_empty(len(numbers), reach, dtype=torch.float32)
