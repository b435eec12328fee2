"""Replace the attention of every layer of a transformers model by `kernels.attend`.

The stock modules keep their weights and names; only their forward is bound anew, per instance. The model's mask is
replaced too: a registered mask builder hands the layers the key padding alone, so nothing of size n x n is ever made.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from transformers import AttentionMaskInterface, PreTrainedModel

from harness.models.cache import KVCache
from harness.models.family import Family
from kernels import Alibi, Weights, attend

MASK_NAME = "harness_padding_only"


def _padding_only(batch_size: int, kv_length: int, attention_mask: torch.Tensor | None = None, **_) -> torch.Tensor:
    """The slots that some sequence begins with as padding, (batch, longest padding) bool on the host, false in padding.
    One look at the mask for a forward: at every layer it would make the host wait for the device."""
    if attention_mask is None:
        return torch.ones(batch_size, 0, dtype=torch.bool)
    if attention_mask.shape[1] < kv_length:
        raise ValueError(
            f"The padding mask covers {attention_mask.shape[1]} tokens, the cache and the new tokens are {kv_length}: "
            "pass a mask of all of them."
        )
    mask = attention_mask[:, :kv_length].bool()
    pads = (~mask).sum(1)
    if bool((mask != (torch.arange(mask.shape[1], device=mask.device) >= pads[:, None])).any()):
        raise ValueError("Only left padding is supported: put the padding before the tokens (padding_side='left').")
    return mask[:, : int(pads.max())].cpu()


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
        self._compute: Callable = attend
        # accelerate's device_map wraps forward and keeps the original as _old_forward: replace what it calls
        names = ["_old_forward" if hasattr(m, "_old_forward") else "forward" for m in modules]
        self._stock = [(m, name, getattr(m, name)) for m, name in zip(modules, names, strict=True)]
        self._ours = [(m, n, functools.partial(family.forward, m, self._attend)) for m, n, _ in self._stock]
        self._config, self._stock_masks = model.config, model.config._attn_implementation
        self._bind(self._ours, MASK_NAME)

    def _bind(self, forwards: list, masks: str) -> None:
        for module, name, forward in forwards:
            setattr(module, name, forward)
        self._config._attn_implementation = masks

    @contextmanager
    def use(self, weights: Sequence[Weights] | None) -> Iterator[None]:
        """Run forwards under these weights, one per layer; None runs the checkpoint's own attention code."""
        if weights is None:
            self._bind(self._stock, self._stock_masks)
            try:
                yield
            finally:
                self._bind(self._ours, MASK_NAME)
            return
        assert len(weights) == self.layers
        before, self._weights = self._weights, weights
        try:
            yield
        finally:
            self._weights = before

    @contextmanager
    def through(self, compute: Callable) -> Iterator[None]:
        """Run forwards with `compute` in place of `kernels.attend`, whose arguments it gets and whose result it
        returns: to time or to check it."""
        before, self._compute = self._compute, compute
        try:
            yield
        finally:
            self._compute = before

    def _attend(self, q, k, v, *, layer: int, scale: float, mask: torch.Tensor | None, cache) -> torch.Tensor:
        """Attention of new tokens' q (batch, heads, tokens, head_dim) to them and all that is in the cache."""
        weights = self._weights[layer]
        if cache is not None and cache.is_compileable:
            raise ValueError(
                f"{type(cache).__name__} hands out its whole buffer, filled or not, so a key's position cannot be "
                "told: use DynamicCache (generate's default) or harness.models.cache.new_cache."
            )
        if mask is None or mask.ndim != 2:
            raise ValueError(
                "Replaced attention takes a 2-D padding mask (batch, tokens) or none, through the mask builder "
                f"{MASK_NAME!r}; it got {'no mask' if mask is None else f'a mask of shape {tuple(mask.shape)}'}."
            )
        pads, gaps = [0] * len(q), [0] * len(q)
        if mask.shape[1]:  # accelerate takes it to the device of the layer: without padding it is not looked at
            pads = (~mask).sum(1).tolist()
        if isinstance(cache, KVCache):
            k, v = cache.update(k, v, layer, pads, weights)
            place = cache.layers[layer].place(pads)
            pads, gaps = place.padding, place.gap
        elif cache is not None:
            k, v = cache.update(k, v, layer)
        pads, gaps = torch.tensor(pads), torch.tensor(gaps)
        return self._compute(q, k, v, weights, scale=scale, kernel=self.kernel, padding=pads, gap=gaps)
