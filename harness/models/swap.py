"""Replace the attention of every layer of a transformers model by `kernels.attend`.

The stock modules keep their weights and names; only their forward is bound anew, per instance. The model's mask is
replaced too: a registered mask builder hands the layers the key padding alone, so nothing of size n x n is ever made.
"""

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from transformers import AttentionMaskInterface, PreTrainedModel

from harness.models.family import Family
from kernels import Alibi, Weights, attend

MASK_NAME = "harness_padding_only"


def _padding_only(batch_size: int, attention_mask: torch.Tensor | None = None, **_) -> torch.Tensor:
    """(batch, 0) where nothing is padded, else (batch, keys) bool. One look at the mask per forward, not per layer."""
    if attention_mask is None or bool(attention_mask.all()):
        device = None if attention_mask is None else attention_mask.device
        return torch.ones(batch_size, 0, dtype=torch.bool, device=device)
    return attention_mask.bool()


AttentionMaskInterface.register(MASK_NAME, _padding_only)


class SwappedAttention:
    """The replaced attention of one model: exact ALiBi until `use` says otherwise."""

    def __init__(self, model: PreTrainedModel, family: Family, slopes: torch.Tensor, *, kernel: str):
        modules = [m for m in model.modules() if family.is_attention(m)]
        layers = model.config.num_hidden_layers
        assert len(modules) == layers, f"{len(modules)} attention modules found in a model of {layers} layers"
        self.kernel = kernel
        self.slopes = slopes
        self.layers = layers
        self._weights: Sequence[Weights] = [Alibi(slopes)] * layers
        for module in modules:
            # accelerate's device_map wraps forward and keeps the original as _old_forward: replace what it calls
            name = "_old_forward" if hasattr(module, "_old_forward") else "forward"
            setattr(module, name, functools.partial(family.forward, module, self._attend))
        model.config._attn_implementation = MASK_NAME  # last: until here a forward still runs the stock code

    @contextmanager
    def use(self, weights: Sequence[Weights]) -> Iterator[None]:
        """Run forwards under these weights, one per layer."""
        assert len(weights) == self.layers
        before, self._weights = self._weights, weights
        try:
            yield
        finally:
            self._weights = before

    def _attend(self, q, k, v, *, layer: int, scale: float, mask: torch.Tensor | None) -> torch.Tensor:
        return attend(
            q, k, v, self._weights[layer], scale=scale, kernel=self.kernel, padding=_leading(mask, k.shape[2])
        )


def _leading(mask: torch.Tensor | None, keys: int) -> torch.Tensor | None:
    """Padding counts (batch,) of a left-padded mask."""
    if mask is None or mask.ndim != 2:
        raise ValueError(
            "Replaced attention takes a 2-D padding mask (batch, tokens) or none, and the model's mask builder must be "
            f"{MASK_NAME!r}; it got {'no mask' if mask is None else f'a mask of shape {tuple(mask.shape)}'}."
        )
    if mask.shape[1] == 0:
        return None
    mask = mask[:, :keys]
    pads = (~mask).sum(1)
    if bool((mask != (torch.arange(keys, device=mask.device) >= pads[:, None])).any()):
        raise ValueError("Only left padding is supported: put the padding before the tokens (padding_side='left').")
    return pads
