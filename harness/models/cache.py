"""The KV cache of every generation: buffers allocated once, so that a token is written and nothing
is copied; with `evict`, only the keys that some head can still reach, and the sinks.

Slots count what was fed, padding included. The buffer of a layer that evicts is `[sinks | tail]`:
each sequence's first tokens, right-aligned, then all slots from `begin` on. It is packed anew only
when it is full, so that a token costs the same as without eviction on the average; until something
is dropped it is simply all slots.
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from harness.common.preflight import refuse_foreign_kernels
from harness.models.memory import CHUNK
from kernels import Weights

refuse_foreign_kernels()  # before transformers looks for a package of that name

from transformers import PreTrainedModel  # noqa: E402
from transformers.cache_utils import Cache, CacheLayerMixin  # noqa: E402
from transformers.masking_utils import create_causal_mask  # noqa: E402

# of all models and of generate; transformers 5.24 renamed it
ARGUMENT = "cache" if "cache" in inspect.signature(create_causal_mask).parameters else "past_key_values"


@dataclass(frozen=True)
class Place:
    """Where the returned keys lie, as `kernels.attend` takes it: `padding` slots before the first
    token of each sequence, `gap` tokens left out after its sinks."""

    padding: list[int]
    gap: list[int]


class KVLayer(CacheLayerMixin):
    """All keys and values of one layer, in a buffer of `capacity` slots that is allocated at the
    first update."""

    is_sliding = False
    is_croppable = True

    def __init__(self, capacity: int):
        super().__init__()
        self.capacity = capacity
        self.size = capacity  # slots of the buffer
        self.seen = 0  # slots so far
        self.filled = 0  # slots of the buffer in use
        self.peak = 0  # the most that were

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        batch, heads, _, dim = key_states.shape
        # zeros: what a kernel multiplies by nothing must be a number
        self.keys, self.values = (x.new_zeros(batch, heads, self.size, dim) for x in (key_states, value_states))
        self.is_initialized = True

    def update(self, key_states, value_states, pads: list[int] | None = None, weights: Weights | None = None, **_):
        """Append (batch, heads, tokens, head_dim) and return all that is held, as views. The slots
        of padding of each sequence and the layer's `weights` say what may be dropped; what stock
        attention adds (its own arguments, which other caches take) is not needed. ValueError if
        there is no room."""
        more = key_states.shape[2]
        self.reserve(more, pads, weights)
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        stop = self.filled + more
        self.keys[:, :, self.filled : stop] = key_states
        self.values[:, :, self.filled : stop] = value_states
        self.advance(more)
        return self.keys[:, :, :stop], self.values[:, :, :stop]

    def reserve(self, more: int, pads: list[int] | None = None, weights: Weights | None = None) -> None:
        """Make room for so many tokens. ValueError if there is none."""
        if self.seen + more > self.capacity:
            raise ValueError(
                f"The KV cache has room for {self.capacity} tokens and got {self.seen + more}: make it with a larger "
                "capacity."
            )

    def write(self, key_states: torch.Tensor, value_states: torch.Tensor, slots: torch.Tensor) -> None:
        """Write keys and values (batch, heads, tokens, head_dim) to slots (tokens,) of the buffer,
        on its device."""
        self.keys.index_copy_(2, slots, key_states)
        self.values.index_copy_(2, slots, value_states)

    def advance(self, more: int) -> None:
        """Count so many tokens that were written."""
        self.filled, self.seen = self.filled + more, self.seen + more
        self.peak = max(self.peak, self.filled)

    def place(self, pads: list[int]) -> Place:
        """Where the last update's keys lie."""
        return Place(pads, [0] * len(pads))

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last `-tokens_to_remove` tokens (negative, as transformers has it)."""
        assert -self.filled <= tokens_to_remove <= 0
        self.seen += tokens_to_remove
        self.filled += tokens_to_remove

    def reset(self) -> None:
        self.seen = self.filled = 0

    def get_seq_length(self) -> int:
        return self.seen

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.seen + query_length, 0

    def get_max_length(self) -> int:
        return self.capacity

    def bytes_of(self, slots: int) -> int:
        """Memory of so many slots of keys and values."""
        if not self.is_initialized:
            return 0
        return sum(x.shape[0] * x.shape[1] * x.shape[3] * x.element_size() * slots for x in (self.keys, self.values))


class EvictingLayer(KVLayer):
    """Drops what no row from `rewind` tokens ago on can reach under the layer's weights."""

    def __init__(self, capacity: int, rewind: int, chunk: int):
        super().__init__(capacity)
        self.rewind, self.chunk = rewind, chunk
        self.begin = 0  # slot where the tail begins; with 0 there is no block of sinks
        self.floor = 0  # `crop` must not go below
        self.sinks = 0

    def reserve(self, more: int, pads: list[int] | None = None, weights: Weights | None = None) -> None:
        super().reserve(more)
        if pads is None or weights is None or weights.span is None:
            raise ValueError("A cache that evicts needs weights that forget (window, plsh): make it with evict=False.")
        if more > self.chunk:
            raise ValueError(f"A cache that evicts takes {self.chunk} tokens at a time, not {more}: prefill in chunks.")
        if not self.is_initialized:
            self.sinks = weights.sinks
            self.size = min(self.capacity, weights.sinks + weights.span + self.rewind + self.chunk)
        if self.filled + more > self.size:
            self.pack(pads, weights)

    def pack(self, pads: list[int], weights: Weights) -> None:
        """Drop what cannot be reached: gather the sinks, move the tail up to them. `reserve` does
        it when it must."""
        oldest = max(0, self.seen - self.rewind)
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
            kept = torch.cat([x.gather(2, index), x[:, :, tail]], 2)
            x[:, :, :stop] = kept
        self.begin, self.filled, self.floor = begin, stop, max(self.floor, oldest)

    def _index(self, slot: int) -> int:
        """Where a slot of the tail lies in the buffer."""
        return slot - self.begin + (self.sinks if self.begin else 0)

    def _in_block(self, pad: int, begin: int) -> int:
        """How many of a sequence's first tokens lie before the tail, and in the block of sinks."""
        return min(max(begin - pad, 0), self.sinks)

    def _sink_sources(self, pad: int, begin: int) -> list[int]:
        """Where the sinks of a sequence for a tail from `begin` lie in the buffer as it is; any
        place where it has fewer than the block holds."""
        count, held = self._in_block(pad, begin), self._in_block(pad, self.begin)
        places = [self.sinks - held + t if t < held else self._index(pad + t) for t in range(count)]
        return [0] * (self.sinks - count) + places

    def place(self, pads: list[int]) -> Place:
        if not self.begin:
            return super().place(pads)
        padding = [self.sinks - self._in_block(pad, self.begin) + max(0, pad - self.begin) for pad in pads]
        return Place(padding, [max(0, self.begin - pad - self.sinks) for pad in pads])

    def crop(self, tokens_to_remove: int) -> None:
        if self.begin and self.seen + tokens_to_remove < self.floor:
            raise ValueError(
                f"The KV cache was made to go back {self.rewind} tokens and has dropped what an earlier token needs: "
                "make it with a larger rewind."
            )
        super().crop(tokens_to_remove)

    def reset(self) -> None:
        super().reset()
        self.begin = self.floor = 0


class Steps(dict):
    """The `harness.models.steps.Step` of a cache by (batch, rows). They belong to its buffers: a
    copy makes its own."""

    def __deepcopy__(self, memo) -> "Steps":
        return Steps()


class KVCache(Cache):
    """A layer's cache for each layer of a model. `chunk`: how many tokens a forward may take, None
    for any number."""

    def __init__(self, layers: list[KVLayer], chunk: int | None):
        super().__init__(layers=layers)
        self.chunk = chunk
        self.steps = Steps()
        self.step = None  # the one that runs, which says where keys are written

    def reserve(self, more: int, pads: list[int], weights: Sequence[Weights]) -> None:
        """Make room for so many tokens in every layer, under the `weights` of each."""
        for layer, own in zip(self.layers, weights, strict=True):
            layer.reserve(more, pads, own)

    def advance(self, more: int) -> None:
        """Count so many tokens that every layer has been written."""
        for layer in self.layers:
            layer.advance(more)

    def pack(self, pads: list[int], weights: Sequence[Weights]) -> None:
        """Pack every layer now, under the `weights` of each. For caches that evict."""
        for layer, own in zip(self.layers, weights, strict=True):
            layer.pack(pads, own)

    @property
    def argument(self) -> dict[str, "KVCache"]:
        """Itself as a keyword argument of a model or of generate, whose name depends on the version
        of transformers."""
        return {ARGUMENT: self}

    @property
    def allocated_bytes(self) -> int:
        """Memory of all buffers."""
        return sum(layer.bytes_of(layer.size) for layer in self.layers)

    @property
    def used_bytes(self) -> int:
        """The most of it that has held keys and values at one time."""
        return sum(layer.bytes_of(layer.peak) for layer in self.layers)


def new_cache(
    model: PreTrainedModel, capacity: int, *, evict: bool = False, rewind: int = 0, chunk: int = CHUNK
) -> KVCache:
    """An empty cache for `capacity` tokens (slots) of each sequence: the prompt and what is
    generated.

    evict: keep only what can still be reached. A forward then takes at most `chunk` tokens
    (generate's `prefill_chunk_size`), and `crop` may take back the last `rewind` tokens. A layer's
    buffer holds the sinks, the farthest reach of its weights, `rewind` and `chunk` tokens, whatever
    the context.
    """
    layers = range(model.config.num_hidden_layers)
    if evict:
        return KVCache([EvictingLayer(capacity, rewind, chunk) for _ in layers], chunk)
    return KVCache([KVLayer(capacity) for _ in layers], None)
