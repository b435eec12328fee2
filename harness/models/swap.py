"""Replace the attention of every layer of a transformers model by `kernels.attend`.

The stock modules keep their weights and names; only the `forward` of each instance is replaced. The
model's mask is replaced, too: a registered mask builder passes only the key padding to the layers,
so that nothing of size n x n is ever allocated. The model's configuration object may be shared with
the caller, and is never modified.
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
from harness.models.cache import CACHE_ARGUMENT, KVCache
from harness.models.family import Family
from harness.models.steps import MAX_STEP_TOKENS, Step
from kernels import Alibi, Weights, attend

MASK_NAME = "harness_padding_only"
# set in the configuration of a forward whose padding is already known
STEP_FLAG = "_harness_stepping"
# names of the cache argument of attention modules in versions and families of transformers
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
    """Mask of the padding at the start of sequences, (batch, longest padding) bool on the host.

    It is false in padding. The attention mask is read once per forward, because reading it in every
    layer would make the host wait for the device. Padding after the tokens needs no mask, since no
    token attends to later ones.
    """
    if mask_function is not causal_mask_function:
        raise ValueError(
            "Replaced attention is causal over one sequence in each row, and a further mask was asked for: give each "
            "sequence a row of its own, with an attention_mask for its padding, and no position_ids."
        )
    if attention_mask is None or getattr(config, STEP_FLAG, False):
        return torch.ones(batch_size, 0, dtype=torch.bool)
    pads = padding_of(attention_mask, int(q_offset) + q_length)
    return torch.arange(max(pads)) >= torch.tensor(pads)[:, None]


def padding_of(attention_mask: torch.Tensor, tokens: int) -> list[int]:
    """Return the padding slots at the start of each sequence.

    attention_mask: (batch, at least `tokens`), of which the first `tokens` are used.

    Raises:
        ValueError: for a mask that is too short or has holes.
    """
    if attention_mask.shape[1] < tokens:
        raise ValueError(
            f"The padding mask covers {attention_mask.shape[1]} tokens, the cache and the new tokens are {tokens}: "
            "pass a mask of all of them."
        )
    mask = attention_mask[:, :tokens].bool()
    count, total = mask.cumsum(1), mask.sum(1, keepdim=True)
    if bool(((count > 0) & (count < total) & ~mask).any()):
        raise ValueError(
            "The attention mask has a hole: a sequence has padding between its tokens, which replaced attention does "
            "not compute. Put all padding of a row before its tokens (padding_side='left', as generation needs it), or "
            "all of it after them."
        )
    return (count == 0).sum(1).tolist()


AttentionMaskInterface.register(MASK_NAME, _padding_only)


@dataclass(eq=False)
class HeldWeights:
    """Weights under which a model runs until they are released.

    weights: one per layer; None for the checkpoint's own attention.
    """

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
        """Replace the attention of a model.

        Args:
            model: the model.
            family: its family.
            slopes: effective slopes, (heads,).
            kernel: the kernel.
            removable: whether releasing the last `hold` may `detach` the replaced attention.
        """
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
        assert isinstance(base, PreTrainedModel)
        self._stock = [_own_forward(module) for module in (base, *modules)]
        stock = self._stock[0][2]
        self._names = list(inspect.signature(stock).parameters)
        # a partial, because a deep copy of the model then copies the objects inside it
        whole = functools.update_wrapper(functools.partial(self._masked, base, stock), stock)
        ours = [whole, *(functools.partial(self._attention, family, m) for m in modules)]
        self._ours = [(m, n, o) for (m, n, _), o in zip(self._stock, ours, strict=True)]
        # for a static cache generate makes an n x n mask, unless the model has its own function
        name = "create_masks_for_generate"
        self._stock.append((model, name, getattr(model, name, create_masks_for_generate)))
        self._ours.append((model, name, _return_mask))
        # whether the stock attribute belongs to the instance and not to its class
        self._instance = [name in vars(module) for module, name, _ in self._stock]
        self._held: list[HeldWeights] = []
        self._bind(self._ours)

    @property
    def exact(self) -> Sequence[Weights]:
        """Exact ALiBi in every layer."""
        return [Alibi(self.slopes)] * self.layers

    @property
    def holds_weights(self) -> bool:
        """Whether any weights are held."""
        return bool(self._held)

    @staticmethod
    def find(model: PreTrainedModel) -> "SwappedAttention | None":
        """Return the replaced attention of a model, or None if its attention is stock."""
        base = model.base_model
        forward = vars(base).get("_old_forward", vars(base).get("forward"))
        owner = getattr(getattr(forward, "func", None), "__self__", None)
        return owner if isinstance(owner, SwappedAttention) else None

    def _bind(self, replacements: list) -> None:
        for module, name, replacement in replacements:
            setattr(module, name, replacement)

    def detach(self) -> None:
        """Restore the model's stock attention."""
        for (module, name, stock), instance in zip(self._stock, self._instance, strict=True):
            if instance:
                setattr(module, name, stock)
            else:
                delattr(module, name)

    def hold(self, weights: Sequence[Weights] | None, kernel: str) -> HeldWeights:
        """Run forwards under these weights until they are released.

        Unlike `use`, several may be held and released in any order; the most recent of them counts.
        weights: one per layer; None for the checkpoint's own attention.
        """
        assert weights is None or len(weights) == self.layers
        if not self._held:
            self._held.append(HeldWeights(self._weights, self.kernel))
        self._held.append(HeldWeights(weights, kernel))
        self._apply()
        return self._held[-1]

    def release(self, held: HeldWeights) -> bool:
        """Undo a `hold`, and return whether others remain."""
        self._held.remove(held)
        self._apply()
        if len(self._held) == 1:  # only the state before the first hold is left
            self._held.clear()
        return bool(self._held)

    def change(self, held: HeldWeights, weights: Sequence[Weights]) -> None:
        """Replace held weights by others."""
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
        """Run forwards under weights, one per layer; None for the checkpoint's own attention."""
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
    def intercept(self, compute: Callable) -> Iterator[None]:
        """Run forwards with `compute` in place of `kernels.attend`, to time or to check it.

        compute: takes the arguments of `kernels.attend` and returns its result.
        """
        before, self._compute = self._compute, compute
        try:
            yield
        finally:
            self._compute = before

    def _masked(self, base: PreTrainedModel, stock: Callable, *args, **kwargs):
        """The base model's own forward, with our mask builder in its configuration meanwhile."""
        arguments = dict(zip(self._names, args, strict=False)) | kwargs
        mask = arguments.get("attention_mask")
        if mask is not None and getattr(mask, "ndim", None) != 2:
            shape = tuple(mask.shape) if isinstance(mask, torch.Tensor) else type(mask).__name__
            raise ValueError(
                f"Replaced attention takes a 2-D padding mask (batch, tokens) or none, not {shape}: the weights "
                "alone decide what a token attends to."
            )
        config, output_attentions = base.config, arguments.get("output_attentions")
        self._wants_probabilities = bool(config.output_attentions if output_attentions is None else output_attentions)
        base.config = copy.copy(config)
        # not by the property, whose setter would modify objects that both configurations share
        base.config._attn_implementation_internal = MASK_NAME
        try:
            if self._is_step(arguments, config):
                setattr(base.config, STEP_FLAG, True)
                ids, cache = arguments["input_ids"], arguments[CACHE_ARGUMENT]
                return self._run_step(stock, ids, cache, mask)
            return stock(*args, **kwargs)
        finally:
            base.config, self._wants_probabilities = config, False

    def _is_step(self, arguments: dict, config: PreTrainedConfig) -> bool:
        """Whether a forward is a plain step of generation with a filled cache."""
        ids, cache = arguments.get("input_ids"), arguments.get(CACHE_ARGUMENT)
        if not isinstance(cache, KVCache) or ids is None or ids.ndim != 2 or not 0 < ids.shape[1] <= MAX_STEP_TOKENS:
            return False
        supported = ("input_ids", "attention_mask", "position_ids", "use_cache", "return_dict", CACHE_ARGUMENT)
        others = [value for name, value in arguments.items() if name not in supported]
        if any(value is not None and value is not False for value in others):
            return False
        first, return_dict = cache.layers[0], arguments.get("return_dict")
        return not (
            (config.return_dict if return_dict is None else return_dict) is False
            or config.output_hidden_states
            or self._wants_probabilities
            or self._compute is not attend  # `intercept` has to see every call
            or self._stock[0][1] != "forward"  # accelerate moves the inputs of layers
            or torch.is_grad_enabled()
            or torch.compiler.is_compiling()
            or not first.is_initialized
            or len(first.keys) != len(ids)
            or first.keys.device != ids.device
        )

    def _run_step(self, stock: Callable, ids: torch.Tensor, cache: KVCache, mask: torch.Tensor | None):
        """Run a forward as a `Step`, after the padding was read from the mask."""
        pads = [0] * len(ids) if mask is None else padding_of(mask, cache.get_seq_length() + ids.shape[1])
        step = cache.steps.get(ids.shape)
        if step is None or not step.fits(cache, self._weights):
            graphs = self.graphs and ids.is_cuda and self.kernel in ("auto", "triton")

            def forward(input_ids: torch.Tensor, step_cache: KVCache):
                return stock(input_ids=input_ids, use_cache=True, return_dict=True, **step_cache.argument)

            batch, rows = ids.shape
            step = cache.steps[ids.shape] = Step(cache, self._weights, batch, rows, forward, ids.device, graphs=graphs)
        return step(cache, ids, pads)

    def _attention(self, family: Family, module: torch.nn.Module, *args, attention_mask=None, **kwargs):
        """Replacement of an attention module's forward, with its arguments and return value."""
        caches = [kwargs.pop(name) for name in CACHE_NAMES if name in kwargs]
        passed = {name for name, value in kwargs.items() if value is not None}
        if unknown := sorted(passed - set(family.ignored_arguments)):
            raise UserError(
                f"This version of transformers passes unknown arguments to {type(module).__name__} "
                f"({', '.join(unknown)}): install a version that constraints.txt names."
            )
        cache = next((cache for cache in caches if cache is not None), None)
        attend = functools.partial(self._attend, module, mask=attention_mask, cache=cache)
        return family.forward(module, attend, *args)

    def _attend(self, module, q, k, v, *, scale: float, dropout: float, mask: torch.Tensor | None, cache) -> tuple:
        """Attention of new tokens to themselves and to the tokens in the cache.

        q, k, v: (batch, heads, tokens, head_dim) of the new tokens.

        Returns:
            The output, shaped like q, and the probabilities (batch, heads, tokens, keys) if they
            were requested, else None.
        """
        layer = module.layer_idx
        weights = self._weights[layer]
        if mask is None or mask.ndim != 2:
            raise UserError(
                f"This version of transformers passes {type(module).__name__} a mask that the builder "
                f"{MASK_NAME!r} did not make: install a version that constraints.txt names."
            )
        pads, gaps = [0] * len(q), [0] * len(q)
        # not read without padding, because accelerate may have moved it to the layer's device
        if mask.shape[1]:
            pads = (~mask).sum(1).tolist()
        if isinstance(cache, KVCache) and cache.step is not None:
            k, v, places = cache.step.write_keys(cache.layers[layer], layer, k, v)
            return self._compute(q, k, v, weights, scale=scale, kernel=self.kernel, places=places), None
        if isinstance(cache, KVCache):
            k, v = cache.update(k, v, layer, pads, weights)
            placement = cache.layers[layer].placement(pads)
            pads, gaps = placement.padding, placement.gap
        elif cache is not None:
            k, v = cache.update(k, v, layer)
            # a static cache returns its whole buffer, unfilled slots included
            if cache.is_compileable:
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


def _return_mask(attention_mask: torch.Tensor | None, **_) -> torch.Tensor | None:
    return attention_mask


def _own_forward(module: torch.nn.Module) -> tuple[torch.nn.Module, str, Callable]:
    """The module, and the name and value of the forward to replace.

    accelerate keeps the original as _old_forward, which is then the one to replace.
    """
    name = "_old_forward" if hasattr(module, "_old_forward") else "forward"
    return module, name, getattr(module, name)


def _probabilities(attend: Callable, v: torch.Tensor) -> torch.Tensor:
    """The attention probabilities (batch, heads, tokens, keys).

    The probability of a key is the output for values that are 1 at this key and 0 elsewhere. One
    call to `attend` computes as many keys as a head has dimensions.
    """
    keys, dim = v.shape[2:]
    one_hot = torch.eye(keys, dtype=v.dtype, device=v.device)
    parts = [torch.nn.functional.pad(part, (0, dim - part.shape[1])) for part in one_hot.split(dim, 1)]
    return torch.cat([attend(part.expand_as(v)) for part in parts], -1)[..., :keys]
