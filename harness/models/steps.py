"""Steps of generation: forwards of a few new tokens of each sequence with a filled KV cache.

The position of the tokens enters a step only by numbers in memory, which are written before each
step. A GPU therefore captures the forward once as a CUDA graph and replays it at any position.
Without a graph, launching the kernels of a small step takes longer than running them. On a CPU the
same code runs without a graph.
"""

import operator
import warnings
from collections.abc import Callable, Sequence

import torch
from transformers.utils import ModelOutput

from harness.models.cache import KVCache, KVLayer
from kernels import Weights

MAX_STEP_TOKENS = 16  # new tokens of each sequence that the kernels decode at a time


def capture_graph(run: Callable[[], torch.Tensor], device: torch.device) -> tuple[torch.Tensor, Callable[[], None]]:
    """Capture `run`, which runs on `device`, as a CUDA graph.

    Returns:
        The tensor that `run` returns, not yet computed, and a function that computes it in place.
    """
    graph = torch.cuda.CUDAGraph()
    # The stream must belong to the device, which need not be the current one, or the graph would
    # be empty. The outer context restores the current stream if the capture fails.
    capturing = torch.cuda.graph(graph, stream=torch.cuda.Stream(device))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*graph is empty", category=UserWarning)
        with torch.cuda.stream(torch.cuda.current_stream(device)), capturing:
            out = run()
    return out, graph.replay


class Step:
    """A forward of `rows` new tokens for each of `batch` sequences.

    It uses the buffers of a cache, but does not keep the cache alive.

    Args:
        cache: the cache.
        weights: the weights of each layer.
        batch, rows: sequences, and new tokens of each.
        forward: (ids (batch, rows), cache) -> outputs of the base model.
        device: device of the ids.
        graphs: whether the forward may be captured. The kernels are then given whole buffers and
            read only the filled slots.
    """

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
        # layers that evict hold different keys, other layers all hold the same
        self.layers = cache.layers if self.gapped else cache.layers[:1]
        self._count = (3 if self.gapped else 2) * batch
        self._split = -(-self._count // 4) * 4  # kernels need a layer's places aligned to 16 bytes
        with torch.inference_mode(False):
            self._ids = torch.zeros(batch, rows, dtype=torch.long, device=device)
            self._numbers = torch.zeros(len(self.layers), self._split + rows, dtype=torch.long, device=device)
        self._places: torch.Tensor | None = None
        self._hidden: torch.Tensor | None = None
        self._replay: Callable[[], None] | None = None
        self._warm = False
        self._kind: type[ModelOutput] = ModelOutput  # of the forward, and the names under which it returns the cache
        self._names: list[str] = []

    def fits(self, cache: KVCache, weights: Sequence[Weights]) -> bool:
        """Return whether the step is valid for the buffers of a cache and these weights."""
        same_buffers = all(layer.keys is keys for layer, keys in zip(cache.layers, self.buffers, strict=True))
        return same_buffers and all(map(operator.is_, weights, self.weights))

    def __call__(self, cache: KVCache, ids: torch.Tensor, pads: list[int]) -> ModelOutput:
        """Run the step.

        Args:
            cache: the cache, to which the tokens are added.
            ids: the new tokens, (batch, rows).
            pads: padding slots at the start of each sequence.

        Returns:
            The outputs of the base model.
        """
        cache.reserve(self.rows, pads, self.weights)
        numbers = [self._layer_numbers(layer, pads) for layer in self.layers]
        cuda = self._ids.is_cuda
        self._numbers.copy_(torch.tensor(numbers, pin_memory=cuda), non_blocking=True)
        self._ids.copy_(ids)
        if self.graphs and self._warm and self._replay is None:
            self._capture(cache)
        if self._replay is not None and self._hidden is not None:
            self._replay()
            hidden = self._hidden.clone()  # the next step overwrites it
            out = self._kind(last_hidden_state=hidden, **dict.fromkeys(self._names, cache))
        else:
            out = self._run(cache)
            self._kind, self._names = type(out), [name for name, value in out.items() if value is cache]
            self._warm = True  # the first call compiles kernels and fills caches
        cache.advance(self.rows)
        return out

    def write_keys(
        self, cache_layer: KVLayer, layer: int, k: torch.Tensor, v: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Write new keys and values of a layer to its cache.

        Args:
            cache_layer: the layer's cache.
            layer: the layer's number.
            k, v: (batch, heads, rows, head_dim).

        Returns:
            All keys and values of the cache, and the step's `places` for `kernels.attend`.
        """
        index = layer if self.gapped else 0
        cache_layer.write(k, v, self._numbers[index, self._split :])
        stop = cache_layer.size if self.graphs else cache_layer.filled + self.rows
        assert self._places is not None, "a step runs"
        places = self._places[index, : self._count].view(-1, len(self._ids))
        return cache_layer.keys[:, :, :stop], cache_layer.values[:, :, :stop], places

    def _layer_numbers(self, layer: KVLayer, pads: list[int]) -> list[int]:
        placement, stop = layer.placement(pads), layer.filled + self.rows
        starts = [layer.filled - pad + gap for pad, gap in zip(placement.padding, placement.gap, strict=True)]
        gaps, alignment = placement.gap if self.gapped else [], [0] * (self._split - self._count)
        return [*placement.padding, *starts, *gaps, *alignment, *range(layer.filled, stop)]

    def _run(self, cache: KVCache) -> ModelOutput:
        self._places = self._numbers[:, : self._split].int()
        cache.step = self
        try:
            return self.forward(self._ids, cache)
        finally:
            cache.step = self._places = None

    def _capture(self, cache: KVCache) -> None:
        try:
            self._hidden, self._replay = capture_graph(lambda: self._run(cache)["last_hidden_state"], self._ids.device)
        except (RuntimeError, UserWarning) as error:
            self.graphs = False
            warnings.warn(
                "No CUDA graph of a step of generation could be captured, so its kernels are launched one by one: "
                f"{(str(error).splitlines() or [''])[0]}",
                stacklevel=2,
            )
