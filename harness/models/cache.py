"""The KV cache of every generation, in preallocated buffers into which new tokens are written.

With `evict` a buffer keeps only the sinks and the keys that some head can still reach.

Slots are positions of the fed tokens, padding included. The buffer of a layer that evicts is
`[sinks | tail]`: each sequence's first tokens, right-aligned, then all slots from `begin` on. It is
packed only when it is full, so that the average cost of a token is as without eviction. Until
anything is dropped the buffer simply holds all slots.
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from harness.common.preflight import refuse_foreign_kernels
from harness.models.memory import CHUNK_TOKENS
from kernels import Weights

refuse_foreign_kernels()  # before transformers looks for a package of that name

from transformers import PreTrainedModel  # noqa: E402
from transformers.cache_utils import Cache, CacheLayerMixin  # noqa: E402
from transformers.masking_utils import create_causal_mask  # noqa: E402

# the cache's name among the arguments of models and of generate; transformers 5.24 renamed it
CACHE_ARGUMENT = "cache" if "cache" in inspect.signature(create_causal_mask).parameters else "past_key_values"


@dataclass(frozen=True)
class Placement:
    """Positions of returned keys as arguments of `kernels.attend`, one number per sequence.

    padding: slots before the first token. gap: tokens that are missing after the sinks.
    """

    padding: list[int]
    gap: list[int]


class KVLayer(CacheLayerMixin):
    """All keys and values of a layer, in a buffer of `capacity` slots made by the first update."""

    is_sliding = False
    is_croppable = True
    keys: torch.Tensor  # after the first update
    values: torch.Tensor

    def __init__(self, capacity: int):
        super().__init__()
        self.capacity = capacity
        self.size = capacity  # slots of the buffer
        self.fed = 0  # slots so far
        self.filled = 0  # slots of the buffer in use
        self.peak = 0  # maximum of `filled`

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        batch, heads, _, dim = key_states.shape
        # zeros, because kernels multiply unused values by zero, which must not give NaN
        self.keys, self.values = (x.new_zeros(batch, heads, self.size, dim) for x in (key_states, value_states))
        self.is_initialized = True

    def update(self, key_states, value_states, pads: list[int] | None = None, weights: Weights | None = None, **_):
        """Append keys and values, and return views of all that the buffer holds.

        Further arguments, which stock attention passes for other caches, are ignored.

        Args:
            key_states, value_states: (batch, heads, tokens, head_dim).
            pads: padding slots of each sequence; needed for eviction.
            weights: the layer's weights, which limit the reach; needed for eviction.

        Raises:
            ValueError: as in `reserve`.
        """
        tokens = key_states.shape[2]
        self.reserve(tokens, pads, weights)
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        stop = self.filled + tokens
        self.keys[:, :, self.filled : stop] = key_states
        self.values[:, :, self.filled : stop] = value_states
        self.advance(tokens)
        return self.keys[:, :, :stop], self.values[:, :, :stop]

    def reserve(self, tokens: int, pads: list[int] | None = None, weights: Weights | None = None) -> None:
        """Make room for new tokens.

        Args:
            tokens: number of new tokens.
            pads, weights: as in `update`.

        Raises:
            ValueError: if there is no room.
        """
        if self.fed + tokens > self.capacity:
            raise ValueError(
                f"The KV cache has room for {self.capacity} tokens and got {self.fed + tokens}: make it with a larger "
                "capacity."
            )

    def write(self, key_states: torch.Tensor, value_states: torch.Tensor, slots: torch.Tensor) -> None:
        """Write keys and values.

        Args:
            key_states, value_states: (batch, heads, tokens, head_dim).
            slots: (tokens,), slots of the cache.
        """
        self.keys.index_copy_(2, slots, key_states)
        self.values.index_copy_(2, slots, value_states)

    def advance(self, tokens: int) -> None:
        """Count tokens that were written."""
        self.filled, self.fed = self.filled + tokens, self.fed + tokens
        self.peak = max(self.peak, self.filled)

    def placement(self, pads: list[int]) -> Placement:
        """Return the positions of the keys that the last update returned."""
        return Placement(pads, [0] * len(pads))

    def crop(self, tokens_to_remove: int) -> None:
        """Drop the last `-tokens_to_remove` tokens (a negative number, as in transformers)."""
        assert -self.filled <= tokens_to_remove <= 0
        self.fed += tokens_to_remove
        self.filled += tokens_to_remove

    def reset(self) -> None:
        self.fed = self.filled = 0

    def get_seq_length(self) -> int:
        return self.fed

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.fed + query_length, 0

    def get_max_length(self) -> int:
        return self.capacity

    def bytes_of(self, slots: int) -> int:
        """Return the bytes of this many slots of keys and values."""
        if not self.is_initialized:
            return 0
        return sum(x.shape[0] * x.shape[1] * x.shape[3] * x.element_size() * slots for x in (self.keys, self.values))


class EvictingLayer(KVLayer):
    """A layer that drops keys out of reach of every row from `rewind` tokens ago on."""

    def __init__(self, capacity: int, rewind: int, chunk: int):
        super().__init__(capacity)
        self.rewind, self.chunk = rewind, chunk
        self.begin = 0  # first slot of the tail; 0 while there is no block of sinks
        self.floor = 0  # lowest number of slots that `crop` may leave
        self.sinks = 0

    def reserve(self, tokens: int, pads: list[int] | None = None, weights: Weights | None = None) -> None:
        """Make room for new tokens, and pack the buffer if it is full.

        Args:
            tokens: number of new tokens, at most `chunk`.
            pads, weights: as in `update`.

        Raises:
            ValueError: if there is no room, for more tokens than `chunk`, and without weights that
                forget.
        """
        super().reserve(tokens)
        if pads is None or weights is None or weights.span is None:
            raise ValueError("A cache that evicts needs weights that forget (window, plsh): make it with evict=False.")
        if tokens > self.chunk:
            raise ValueError(
                f"A cache that evicts takes {self.chunk} tokens at a time, not {tokens}: prefill in chunks."
            )
        if not self.is_initialized:
            self.sinks = weights.sinks
            self.size = min(self.capacity, weights.sinks + weights.span + self.rewind + self.chunk)
        if self.filled + tokens > self.size:
            self.pack(pads, weights)

    def pack(self, pads: list[int], weights: Weights) -> None:
        """Drop keys out of reach: gather the sinks, and move the tail to the slots after them.

        `reserve` calls this when the buffer is full.
        """
        oldest = max(0, self.fed - self.rewind)
        heads = torch.arange(weights.heads)
        rows = torch.tensor([max(0, oldest - pad) for pad in pads]).expand(len(heads), -1)
        first = weights.reach(heads, rows)[0].amin(0).tolist()
        begin = min(slot + pad for slot, pad in zip(first, pads, strict=True))
        begin = max(self.begin, min(begin, oldest))
        if not begin:
            return
        source = torch.tensor([self._sink_sources(pad, begin) for pad in pads], device=self.keys.device)
        tail = slice(self._index(begin), self.filled)
        stop = self.sinks + tail.stop - tail.start
        for x in (self.keys, self.values):
            index = source[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3])
            packed = torch.cat([x.gather(2, index), x[:, :, tail]], 2)
            x[:, :, :stop] = packed
        self.begin, self.filled, self.floor = begin, stop, max(self.floor, oldest)

    def _index(self, slot: int) -> int:
        """Index in the buffer of a slot of the tail."""
        return slot - self.begin + (self.sinks if self.begin else 0)

    def _sinks_in_block(self, pad: int, begin: int) -> int:
        """Number of a sequence's sinks that lie before a tail from `begin`."""
        return min(max(begin - pad, 0), self.sinks)

    def _sink_sources(self, pad: int, begin: int) -> list[int]:
        """Current indices of a sequence's sinks that move to the block before a tail from `begin`.

        The block is right-aligned; entries before the first sink may be any index.
        """
        count, current = self._sinks_in_block(pad, begin), self._sinks_in_block(pad, self.begin)
        indices = [self.sinks - current + t if t < current else self._index(pad + t) for t in range(count)]
        return [0] * (self.sinks - count) + indices

    def placement(self, pads: list[int]) -> Placement:
        if not self.begin:
            return super().placement(pads)
        padding = [self.sinks - self._sinks_in_block(pad, self.begin) + max(0, pad - self.begin) for pad in pads]
        return Placement(padding, [max(0, self.begin - pad - self.sinks) for pad in pads])

    def crop(self, tokens_to_remove: int) -> None:
        """Drop the last tokens (`KVLayer.crop`).

        Raises:
            ValueError: if a token that is left needs keys that were dropped.
        """
        if self.begin and self.fed + tokens_to_remove < self.floor:
            raise ValueError(
                f"The KV cache was made to go back {self.rewind} tokens and has dropped what an earlier token needs: "
                "make it with a larger rewind."
            )
        super().crop(tokens_to_remove)

    def reset(self) -> None:
        super().reset()
        self.begin = self.floor = 0


class Steps(dict):
    """The `harness.models.steps.Step` objects of a cache by (batch, rows).

    They refer to its buffers, therefore a deep copy of the cache starts without any.
    """

    def __deepcopy__(self, memo) -> "Steps":
        return Steps()


class KVCache(Cache):
    """Caches of all layers of a model. chunk: most tokens of a forward, None for any number."""

    layers: list[KVLayer]  # type: ignore[assignment]  # of one kind, where transformers allows any

    def __init__(self, layers: list[KVLayer], chunk: int | None):
        super().__init__(layers=list(layers))
        self.chunk = chunk
        self.steps = Steps()
        self.step: Any = None  # the running `harness.models.steps.Step`, which determines where keys are written

    def reserve(self, tokens: int, pads: list[int], weights: Sequence[Weights]) -> None:
        """Make room for new tokens in every layer.

        Args:
            tokens: number of new tokens.
            pads: padding slots of each sequence.
            weights: the weights of each layer.

        Raises:
            ValueError: as in the layers' `reserve`.
        """
        for layer, layer_weights in zip(self.layers, weights, strict=True):
            layer.reserve(tokens, pads, layer_weights)

    def advance(self, tokens: int) -> None:
        """Count tokens that were written to every layer."""
        for layer in self.layers:
            layer.advance(tokens)

    def pack(self, pads: list[int], weights: Sequence[Weights]) -> None:
        """Pack every layer of a cache that evicts, each under its own weights."""
        for layer, layer_weights in zip(self.layers, weights, strict=True):
            assert isinstance(layer, EvictingLayer)
            layer.pack(pads, layer_weights)

    @property
    def argument(self) -> dict[str, "KVCache"]:
        """The cache as a keyword argument of a model or of generate.

        Its name depends on the version of transformers.
        """
        return {CACHE_ARGUMENT: self}

    @property
    def allocated_bytes(self) -> int:
        """Bytes of all buffers."""
        return sum(layer.bytes_of(layer.size) for layer in self.layers)

    @property
    def used_bytes(self) -> int:
        """Maximum bytes of the buffers that held keys and values at one time."""
        return sum(layer.bytes_of(layer.peak) for layer in self.layers)


def new_cache(
    model: PreTrainedModel, capacity: int, *, evict: bool = False, rewind: int = 0, chunk: int = CHUNK_TOKENS
) -> KVCache:
    """Return an empty cache for a model.

    With `evict` the size of a layer's buffer does not depend on the context: it holds the sinks,
    the farthest reach of the layer's weights, and `rewind` and `chunk` tokens.

    Args:
        model: the model.
        capacity: tokens (slots) of each sequence, prompt and generated tokens together.
        evict: whether to keep only keys that can still be reached.
        rewind: with `evict`, number of last tokens that `crop` may remove.
        chunk: with `evict`, maximum tokens of a forward (generate's `prefill_chunk_size`).
    """
    layers = range(model.config.num_hidden_layers)
    if evict:
        return KVCache([EvictingLayer(capacity, rewind, chunk) for _ in layers], chunk)
    return KVCache([KVLayer(capacity) for _ in layers], None)
