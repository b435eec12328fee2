"""Steps of generation: a few new tokens of each sequence after what a KV cache holds.

Nothing of a step depends on where its tokens lie but numbers in memory, which are written before
each: a GPU captures the forward once as a CUDA graph and replays it wherever the next tokens lie.
Launched one by one, the kernels of a small step take the host longer than the device. On a CPU the
same code runs as it is.
"""

import operator
import warnings
from collections.abc import Callable, Sequence

import torch
from transformers.utils import ModelOutput

from harness.models.cache import KVCache, KVLayer
from kernels import Weights

MOST = 16  # tokens of each sequence: what the kernels decode at a time


def replayable(run: Callable[[], torch.Tensor], device: torch.device) -> tuple[torch.Tensor, Callable[[], None]]:
    """What `run`, which runs on `device`, returns, and what computes it anew in its place; the
    first time has yet to come."""
    graph = torch.cuda.CUDAGraph()
    # on a stream of that device, which need not be the current one: another's would capture
    # nothing; and a capture that fails would leave its own stream the current one
    capturing = torch.cuda.graph(graph, stream=torch.cuda.Stream(device))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*graph is empty", category=UserWarning)
        with torch.cuda.stream(torch.cuda.current_stream(device)), capturing:
            out = run()
    return out, graph.replay


class Step:
    """A forward of `rows` tokens for each of `batch` sequences, under `weights`, one for each layer
    of the cache. forward: (ids (batch, rows), cache) -> the base model's outputs. graphs: whether
    it may be captured; the kernels then take whole buffers, of which they read what is filled. It
    belongs to a cache, which it does not keep alive."""

    def __init__(
        self,
        cache: KVCache,
        weights: Sequence[Weights],
        batch: int,
        rows: int,
        forward: Callable[[torch.Tensor, KVCache], ModelOutput],
        device: torch.device,
        *,
        graphs: bool,
    ):
        self.weights, self.rows, self.forward, self.graphs = tuple(weights), rows, forward, graphs
        self.buffers = [layer.keys for layer in cache.layers]
        self.gapped = cache.chunk is not None
        # layers that evict hold different keys, others the same
        self.layers = cache.layers if self.gapped else cache.layers[:1]
        self._count = (3 if self.gapped else 2) * batch
        self._split = -(-self._count // 4) * 4  # so that the kernels find a layer's places at a multiple of 16 bytes
        with torch.inference_mode(False):
            self._ids = torch.zeros(batch, rows, dtype=torch.long, device=device)
            self._numbers = torch.zeros(len(self.layers), self._split + rows, dtype=torch.long, device=device)
        self._places = None
        self._hidden = self._replay = None
        self._warm = False

    def fits(self, cache: KVCache, weights: Sequence[Weights]) -> bool:
        """Whether this is still a step of the cache, in its buffers and under these weights."""
        held = all(layer.keys is keys for layer, keys in zip(cache.layers, self.buffers, strict=True))
        return held and all(map(operator.is_, weights, self.weights))

    def __call__(self, cache: KVCache, ids: torch.Tensor, pads: list[int]) -> ModelOutput:
        """Outputs for the next tokens; `pads` the slots of padding that each sequence begins
        with."""
        cache.reserve(self.rows, pads, self.weights)
        found = [self._where(layer, pads) for layer in self.layers]
        cuda = self._ids.is_cuda
        self._numbers.copy_(torch.tensor(found, pin_memory=cuda), non_blocking=True)
        self._ids.copy_(ids)
        if self.graphs and self._warm and self._replay is None:
            self._capture(cache)
        if self._replay is not None:
            self._replay()
            hidden = self._hidden.clone()  # the next step writes there
            out = self._kind(last_hidden_state=hidden, **dict.fromkeys(self._names, cache))
        else:
            out = self._run(cache)
            self._kind, self._names = type(out), [name for name, value in out.items() if value is cache]
            self._warm = True  # what is compiled or kept at a first call is there
        cache.advance(self.rows)
        return out

    def keys(
        self, own: KVLayer, layer: int, k: torch.Tensor, v: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The new keys and values (batch, heads, rows, head_dim) of a layer written to its cache
        `own`: all that it holds, and the step's places, as `kernels.attend` takes them."""
        at = layer if self.gapped else 0
        own.write(k, v, self._numbers[at, self._split :])
        stop = own.size if self.graphs else own.filled + self.rows
        places = self._places[at, : self._count].view(-1, len(self._ids))
        return own.keys[:, :, :stop], own.values[:, :, :stop], places

    def _where(self, layer: KVLayer, pads: list[int]) -> list[int]:
        place, stop = layer.place(pads), layer.filled + self.rows
        starts = [layer.filled - pad + gap for pad, gap in zip(place.padding, place.gap, strict=True)]
        gaps, room = place.gap if self.gapped else [], [0] * (self._split - self._count)
        return [*place.padding, *starts, *gaps, *room, *range(layer.filled, stop)]

    def _run(self, cache: KVCache) -> ModelOutput:
        self._places = self._numbers[:, : self._split].int()
        cache.step = self
        try:
            return self.forward(self._ids, cache)
        finally:
            cache.step = self._places = None

    def _capture(self, cache: KVCache) -> None:
        try:
            self._hidden, self._replay = replayable(lambda: self._run(cache).last_hidden_state, self._ids.device)
        except (RuntimeError, UserWarning) as error:
            self.graphs = False
            warnings.warn(
                "No CUDA graph of a step of generation could be captured, so its kernels are launched one by one: "
                f"{(str(error).splitlines() or [''])[0]}",
                stacklevel=2,
            )
