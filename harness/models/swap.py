"""Replace the attention of every layer of a transformers model by `kernels.attend`.

The stock modules keep their weights and names; only their forward is bound anew, per instance. The
model's mask is replaced too: a registered mask builder hands the layers the key padding alone, so
nothing of size n x n is ever made. The model's configuration is shared with whoever made it, and is
never written to.
"""

import copy
import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from transformers import AttentionMaskInterface, PreTrainedConfig, PreTrainedModel
from transformers.masking_utils import causal_mask_function, create_masks_for_generate

from harness.common.errors import UserError
from harness.models.cache import ARGUMENT, KVCache
from harness.models.family import Family
from harness.models.steps import MOST, Step
from kernels import Alibi, Weights, attend

MASK_NAME = "harness_padding_only"
STEPPING = "_harness_stepping"  # set in the configuration of a forward whose padding is known already
# the cache in the calls of the attention modules, by version and family of transformers
CACHE_NAMES = ("cache", "past_key_values", "layer_past")


def _padding_only(
    batch_size: int,
    q_length: int,
    q_offset: int | torch.Tensor,
    mask_function: Callable,
    attention_mask: torch.Tensor | None = None,
    config: PreTrainedConfig | None = None,
    **_,
) -> torch.Tensor:
    """The slots that some sequence begins with as padding, (batch, longest padding) bool on the
    host, false in padding. One look at the mask for a forward: at every layer it would make the
    host wait for the device. Padding after the tokens needs no mask: no token sees what comes
    later."""
    if mask_function is not causal_mask_function:
        raise ValueError(
            "Replaced attention is causal over one sequence in each row, and a further mask was asked for: give each "
            "sequence a row of its own, with an attention_mask for its padding, and no position_ids."
        )
    if attention_mask is None or getattr(config, STEPPING, False):
        return torch.ones(batch_size, 0, dtype=torch.bool)
    pads = padding_of(attention_mask, int(q_offset) + q_length)
    return torch.arange(max(pads)) >= torch.tensor(pads)[:, None]


def padding_of(attention_mask: torch.Tensor, tokens: int) -> list[int]:
    """Slots of padding that each sequence begins with by a mask (batch, at least that many tokens).
    ValueError for a mask with holes."""
    if attention_mask.shape[1] < tokens:
        raise ValueError(
            f"The padding mask covers {attention_mask.shape[1]} tokens, the cache and the new tokens are {tokens}: "
            "pass a mask of all of them."
        )
    mask = attention_mask[:, :tokens].bool()
    begun, held = mask.cumsum(1), mask.sum(1, keepdim=True)
    if bool(((begun > 0) & (begun < held) & ~mask).any()):
        raise ValueError(
            "The attention mask has a hole: a sequence has padding between its tokens, which replaced attention does "
            "not compute. Put all padding of a row before its tokens (padding_side='left', as generation needs it), or "
            "all of it after them."
        )
    return (begun == 0).sum(1).tolist()


AttentionMaskInterface.register(MASK_NAME, _padding_only)


@dataclass(eq=False)
class Held:
    """What a model computes until it is released. weights: one per layer, None for the checkpoint's
    own attention."""

    weights: Sequence[Weights] | None
    kernel: str


class SwappedAttention:
    """The replaced attention of one model: exact ALiBi until `use` or `hold` says otherwise."""

    def __init__(
        self,
        model: PreTrainedModel,
        family: Family,
        slopes: torch.Tensor,
        *,
        kernel: str,
        removable: bool = False,
    ):
        """removable: nothing but what is held needs it, and whoever releases the last `hold` may
        `detach` it."""
        modules = [m for m in model.modules() if family.is_attention(m)]
        layers = model.config.num_hidden_layers
        assert len(modules) == layers, f"{len(modules)} attention modules found in a model of {layers} layers"
        self.kernel = kernel
        self.slopes = slopes
        self.layers = layers
        self.removable = removable
        self._weights = self.exact
        self._compute: Callable = attend
        self._wants_probabilities = False
        self.graphs = True  # whether a GPU may replay steps of generation as CUDA graphs
        base = model.base_model
        self._stock = [_own_forward(module) for module in (base, *modules)]
        stock = self._stock[0][2]
        self._names = list(inspect.signature(stock).parameters)
        # partial, because a deep copy of the model copies what it holds
        whole = functools.update_wrapper(functools.partial(self._masked, base, stock), stock)
        ours = [whole, *(functools.partial(self._attention, family, m) for m in modules)]
        self._ours = [(m, n, o) for (m, n, _), o in zip(self._stock, ours, strict=True)]
        # generate makes a mask of every pair of tokens for a static cache, unless the model has a
        # way of its own
        name = "create_masks_for_generate"
        self._stock.append((model, name, getattr(model, name, create_masks_for_generate)))
        self._ours.append((model, name, _padding_as_it_is))
        self._instance = [name in vars(module) for module, name, _ in self._stock]  # not of the class
        self._held: list[Held] = []
        self._bind(self._ours)

    @property
    def exact(self) -> Sequence[Weights]:
        """Exact ALiBi in every layer."""
        return [Alibi(self.slopes)] * self.layers

    @property
    def held(self) -> bool:
        """Whether any weights are held."""
        return bool(self._held)

    @staticmethod
    def of(model: PreTrainedModel) -> "SwappedAttention | None":
        """The replaced attention of this model, if it has one."""
        base = model.base_model
        forward = vars(base).get("_old_forward", vars(base).get("forward"))
        owner = getattr(getattr(forward, "func", None), "__self__", None)
        return owner if isinstance(owner, SwappedAttention) else None

    def _bind(self, replacements: list) -> None:
        for module, name, replacement in replacements:
            setattr(module, name, replacement)

    def detach(self) -> None:
        """Leave the model as it was before its attention was replaced."""
        for (module, name, stock), instance in zip(self._stock, self._instance, strict=True):
            if instance:
                setattr(module, name, stock)
            else:
                delattr(module, name)

    def hold(self, weights: Sequence[Weights] | None, kernel: str) -> Held:
        """Run forwards under these weights until they are released or others are held over them.
        Unlike `use`, several may be held and released in any order: the last that is still held
        counts."""
        assert weights is None or len(weights) == self.layers
        if not self._held:
            self._held.append(Held(self._weights, self.kernel))
        self._held.append(Held(weights, kernel))
        self._apply()
        return self._held[-1]

    def release(self, held: Held) -> bool:
        """Undo a `hold`; whether any other is left."""
        self._held.remove(held)
        self._apply()
        if len(self._held) == 1:  # what was there before the first
            self._held.clear()
        return bool(self._held)

    def change(self, held: Held, weights: Sequence[Weights]) -> None:
        """Other weights in place of those that are held."""
        held.weights = weights
        self._apply()

    def _apply(self) -> None:
        top = self._held[-1]
        self.kernel = top.kernel
        if top.weights is None:
            self._bind(self._stock)
        else:
            self._weights = top.weights
            self._bind(self._ours)

    @contextmanager
    def use(self, weights: Sequence[Weights] | None) -> Iterator[None]:
        """Run forwards under these weights, one per layer; None runs the checkpoint's own attention
        code."""
        if weights is None:
            self._bind(self._stock)
            try:
                yield
            finally:
                self._bind(self._ours)
            return
        assert len(weights) == self.layers
        before, self._weights = self._weights, weights
        try:
            yield
        finally:
            self._weights = before

    @contextmanager
    def through(self, compute: Callable) -> Iterator[None]:
        """Run forwards with `compute` in place of `kernels.attend`, whose arguments it gets and
        whose result it returns: to time or to check it."""
        before, self._compute = self._compute, compute
        try:
            yield
        finally:
            self._compute = before

    def _masked(self, base: PreTrainedModel, stock: Callable, *args, **kwargs):
        """The base model's own forward, which finds our mask builder in its configuration for as
        long as it runs."""
        named = dict(zip(self._names, args, strict=False)) | kwargs
        mask = named.get("attention_mask")
        if mask is not None and getattr(mask, "ndim", None) != 2:
            shape = tuple(mask.shape) if isinstance(mask, torch.Tensor) else type(mask).__name__
            raise ValueError(
                f"Replaced attention takes a 2-D padding mask (batch, tokens) or none, not {shape}: what a token sees "
                "is said by its weights."
            )
        own, asked = base.config, named.get("output_attentions")
        self._wants_probabilities = bool(own.output_attentions if asked is None else asked)
        base.config = copy.copy(own)
        base.config._attn_implementation_internal = MASK_NAME  # the setter would write to what both configurations hold
        try:
            if self._is_step(named, own):
                setattr(base.config, STEPPING, True)
                return self._stepped(stock, named["input_ids"], named[ARGUMENT], named.get("attention_mask"))
            return stock(*args, **kwargs)
        finally:
            base.config, self._wants_probabilities = own, False

    def _is_step(self, named: dict, config: PreTrainedConfig) -> bool:
        """Whether a forward is a step of generation from a cache that has begun, and nothing but it
        is asked for."""
        ids, cache = named.get("input_ids"), named.get(ARGUMENT)
        if not isinstance(cache, KVCache) or ids is None or ids.ndim != 2 or not 0 < ids.shape[1] <= MOST:
            return False
        known = ("input_ids", "attention_mask", "position_ids", "use_cache", "return_dict", ARGUMENT)
        if any(value is not None and value is not False for name, value in named.items() if name not in known):
            return False
        first, returned = cache.layers[0], named.get("return_dict")
        return not (
            (config.return_dict if returned is None else returned) is False
            or config.output_hidden_states
            or self._wants_probabilities
            or self._compute is not attend  # which wants to see every call
            or self._stock[0][1] != "forward"  # accelerate moves what the layers get
            or torch.is_grad_enabled()
            or torch.compiler.is_compiling()
            or not first.is_initialized
            or len(first.keys) != len(ids)
            or first.keys.device != ids.device
        )

    def _stepped(self, stock: Callable, ids: torch.Tensor, cache: KVCache, mask: torch.Tensor | None):
        """Such a forward as a `Step`, whose padding is looked up beforehand."""
        pads = [0] * len(ids) if mask is None else padding_of(mask, cache.get_seq_length() + ids.shape[1])
        step = cache.steps.get(ids.shape)
        if step is None or not step.fits(cache, self._weights):
            graphs = self.graphs and ids.is_cuda and self.kernel in ("auto", "triton")

            def forward(given: torch.Tensor, held: KVCache):
                return stock(input_ids=given, use_cache=True, return_dict=True, **held.argument)

            step = cache.steps[ids.shape] = Step(cache, self._weights, *ids.shape, forward, ids.device, graphs=graphs)
        return step(cache, ids, pads)

    def _attention(self, family: Family, module: torch.nn.Module, *args, attention_mask=None, **named):
        """In place of an attention module's forward: its own arguments, its own return value."""
        caches = [named.pop(name) for name in CACHE_NAMES if name in named]
        unknown = sorted(name for name, value in named.items() if value is not None and name not in family.idle)
        if unknown:
            raise UserError(
                f"This version of transformers hands the attention of {type(module).__name__} what is not known here "
                f"({', '.join(unknown)}): install a version that constraints.txt names."
            )
        cache = next((cache for cache in caches if cache is not None), None)
        attend = functools.partial(self._attend, module, mask=attention_mask, cache=cache)
        return family.forward(module, attend, *args)

    def _attend(self, module, q, k, v, *, scale: float, dropout: float, mask: torch.Tensor | None, cache) -> tuple:
        """Attention of new tokens' q (batch, heads, tokens, head_dim) to them and all that is in
        the cache: out like q, and the probabilities (batch, heads, tokens, keys), None where they
        are not asked for."""
        layer = module.layer_idx
        weights = self._weights[layer]
        if mask is None or mask.ndim != 2:
            raise UserError(
                f"This version of transformers hands {type(module).__name__} another mask than the builder "
                f"{MASK_NAME!r} makes: install a version that constraints.txt names."
            )
        pads, gaps = [0] * len(q), [0] * len(q)
        if mask.shape[1]:  # accelerate takes it to the device of the layer: without padding it is not looked at
            pads = (~mask).sum(1).tolist()
        if isinstance(cache, KVCache) and cache.step is not None:
            k, v, places = cache.step.keys(cache.layers[layer], layer, k, v)
            return self._compute(q, k, v, weights, scale=scale, kernel=self.kernel, places=places), None
        if isinstance(cache, KVCache):
            k, v = cache.update(k, v, layer, pads, weights)
            place = cache.layers[layer].place(pads)
            pads, gaps = place.padding, place.gap
        elif cache is not None:
            k, v = cache.update(k, v, layer)
            if cache.is_compileable:  # a static cache hands out its whole buffer, filled or not
                filled = int(cache.get_seq_length(layer))
                k, v = k[:, :, :filled], v[:, :, :filled]
        padding, gap = pads if any(pads) else None, gaps if any(gaps) else 0
        options = {"scale": scale, "kernel": self.kernel, "padding": padding, "gap": gap}
        dropout = dropout if module.training else 0.0
        if not self._wants_probabilities and not dropout:
            return self._compute(q, k, v, weights, **options), None
        if any(gaps):
            raise ValueError("A cache that evicts holds no keys for all attention weights: make it with evict=False.")
        probabilities = _probabilities(lambda values: self._compute(q, k, values, weights, **options), v)
        probabilities = torch.nn.functional.dropout(probabilities, dropout, module.training)
        out = probabilities @ v.repeat_interleave(q.shape[1] // v.shape[1], 1)
        return out, probabilities


def _padding_as_it_is(attention_mask: torch.Tensor | None, **_) -> torch.Tensor | None:
    return attention_mask


def _own_forward(module: torch.nn.Module) -> tuple[torch.nn.Module, str, Callable]:
    """accelerate's device_map wraps forward and keeps the original as _old_forward: replace what it
    calls."""
    name = "_old_forward" if hasattr(module, "_old_forward") else "forward"
    return module, name, getattr(module, name)


def _probabilities(attend: Callable, v: torch.Tensor) -> torch.Tensor:
    """What each query gives to each key: its output where that key's value is 1 and all others are
    0, for as many keys at a time as a head has numbers."""
    keys, dim = v.shape[2:]
    one_hot = torch.eye(keys, dtype=v.dtype, device=v.device)
    parts = [torch.nn.functional.pad(part, (0, dim - part.shape[1])) for part in one_hot.split(dim, 1)]
    return torch.cat([attend(part.expand_as(v)) for part in parts], -1)[..., :keys]
