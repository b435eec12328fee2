"""The timed forwards: a prompt in one piece or in chunks, and decoding from the KV cache."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from harness.models.cache import KVCache, new_cache
from harness.models.family import Architecture
from harness.models.load import LoadedModel
from harness.tasks.throughput.clock import Lap, time_lap
from harness.tasks.throughput.costs import decode_bytes, prefill_flops, visited_pairs
from harness.tasks.throughput.devices import peaks_of
from harness.tasks.throughput.memory import peak_bytes
from harness.tasks.throughput.oracle import Oracle, cached_error
from kernels import Weights


@dataclass
class Session:
    """A model under certain weights, with a prompt and its continuation.

    loaded: the model.
    weights: weights of each layer.
    ids: (batch, context + decoded tokens), without padding; the continuation is fixed.
    context: tokens of the prompt.
    chunk: tokens of a piece of the chunked prefill.
    evict: whether the cache drops keys out of reach; the prompt then goes in chunks only.
    """

    loaded: LoadedModel
    weights: Sequence[Weights]
    ids: torch.Tensor
    context: int
    chunk: int
    evict: bool
    cache: KVCache | None = field(init=False, default=None)  # holds the prompt, between measurements

    @property
    def device(self) -> torch.device:
        """The device of the model."""
        return self.loaded.model.device

    @property
    def decode(self) -> int:
        """The number of decoded tokens."""
        return self.ids.shape[1] - self.context

    @torch.inference_mode()
    def check(self, rows: Sequence[int]) -> dict:
        """Check kernel and cache, warm up all measurements, and return errors and bytes.

        The kernel is compared with the oracle, and the cache with one forward over all tokens.
        rows: numbers of tokens per decoding step.

        Raises:
            FloatingPointError: if a check fails.
        """
        model, oracle = self.loaded.model, Oracle()
        with self.loaded.attention.use(self.weights):
            with self.loaded.attention.intercept(oracle):
                expected = self._forward(self.ids, None, self.decode + 1)
            oracle.check_limit()
            peak = peak_bytes(model, self.device, self._chunked_prefill if self.evict else self._prefill)
            cached_logits = [self._chunked_prefill()]
            for position in range(self.context, self.ids.shape[1]):
                cached_logits.append(self._forward(self.ids[:, position : position + 1], self.cache, 1))
            cache = self._filled()
            cache_bytes = {"kv_allocated_bytes": cache.allocated_bytes, "kv_used_bytes": cache.used_bytes}
            cache.crop(-self.decode)
            for count in rows:
                self._steps(count)
        difference = cached_error(torch.cat(cached_logits, 1), expected, model.dtype)
        errors = {"error": oracle.error, "error_cached": difference}
        return {**errors, "alibi_difference": oracle.alibi_difference, "peak_bytes": peak, **cache_bytes}

    @torch.inference_mode()
    def measure(self, kind: str, rows: int) -> dict:
        """Return the figures of one repeat of a `harness.tasks.throughput.task.Measurement`.

        For decoding these are the median step, the slowest step, and the share of attention in all
        steps. With CUDA graphs, the share comes from the same steps without graphs. An evicting
        cache packs its keys every `chunk` tokens: packing is timed separately, and each step
        carries its share.

        kind: the measurement. rows: tokens per decoding step.
        """
        batch = len(self.ids)
        with self.loaded.attention.use(self.weights):
            if kind == "decode":
                laps = self._steps(rows)
                share = sum(x.attention_ms for x in laps) / sum(x.ms for x in laps)
                if self.device.type == "cuda":
                    laps = self._steps(rows, split=False)
                step, packing = statistics.median(x.ms for x in laps), self._packing()
                times = {"attention_ms": share * step, "slowest_ms": max(x.ms for x in laps), "packing_ms": packing}
                step += (packing or 0.0) * rows / self.chunk
                return {"ms": step, **times, "tokens": batch * rows, "laps": len(laps)}
            work = self._prefill if kind == "prefill" else self._chunked_prefill
            times = vars(time_lap(self.loaded.attention, self.device, work))
            return {**times, "tokens": batch * self.context, "laps": 1}

    def release_cache(self) -> None:
        """Release the cache."""
        self.cache = None

    def _forward(self, ids: torch.Tensor, cache: KVCache | None, keep: int) -> torch.Tensor:
        """Return the logits of the last `keep` tokens; includes the greedy choice of a token."""
        options = {
            "use_cache": cache is not None,
            "logits_to_keep": keep,
            **(cache.argument if cache is not None else {}),
        }
        logits = self.loaded.model(input_ids=ids, **options).logits
        logits.argmax(-1)
        return logits

    def _prefill(self) -> torch.Tensor:
        """Run the prompt in one forward, with a new cache, up to the choice of the first token."""
        return self._forward(self.ids[:, : self.context], new_cache(self.loaded.model, self.context), 1)

    def _chunked_prefill(self) -> torch.Tensor:
        """Run the prompt in chunks, into the cache for decoding."""
        self.cache = None  # never two caches in memory
        self.cache = new_cache(
            self.loaded.model, self.ids.shape[1], evict=self.evict, rewind=self.decode, chunk=self.chunk
        )
        for chunk in self.ids[:, : self.context].split(self.chunk, dim=1):
            logits = self._forward(chunk, self.cache, 1)
        return logits

    def _filled(self) -> KVCache:
        """Return the cache with the prompt in it."""
        if self.cache is None:
            self._chunked_prefill()
        assert self.cache is not None
        return self.cache

    def _steps(self, rows: int, *, split: bool = True) -> list[Lap]:
        """Time the decoding of all tokens in steps of `rows` tokens, then rewind the cache."""
        cache = self._filled()
        if not split:  # the second step is captured, later steps replay it
            for _ in range(2):
                self._forward(self.ids[:, self.context : self.context + rows], cache, rows)
                cache.crop(-rows)
        laps = []
        for position in range(self.context, self.ids.shape[1] - rows + 1, rows):
            chunk = self.ids[:, position : position + rows]
            work = lambda p=chunk: self._forward(p, cache, rows)  # noqa: E731
            laps.append(time_lap(self.loaded.attention, self.device, work, split=split))
        cache.crop(-rows * len(laps))
        return laps

    def _packing(self) -> float | None:
        """Return the milliseconds to pack all layers; None for a cache that never packs."""
        cache = self._filled()
        if not self.evict or all(layer.size == layer.capacity for layer in cache.layers):
            return None
        pads = [0] * len(self.ids)
        return time_lap(self.loaded.attention, self.device, lambda: cache.pack(pads, self.weights)).ms


def random_prompt(arch: Architecture, batch: int, tokens: int, seed: int, device: torch.device) -> torch.Tensor:
    """Return random token ids (batch, tokens), which suffice for timing.

    Args:
        arch: sizes of the model.
        batch: sequences.
        tokens: tokens of a sequence.
        seed: seed of the generator.
        device: device of the result.
    """
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(arch.vocabulary, (batch, tokens), generator=generator).to(device)


def count_costs(session: Session, arch: Architecture) -> dict:
    """Return the prefill's operations, a decoded token's bytes, and the device's known peaks."""
    batch, dtype = len(session.ids), session.loaded.model.dtype
    pairs = visited_pairs(session.weights, session.context)
    peaks = peaks_of(torch.cuda.get_device_name(session.device)) if session.device.type == "cuda" else None
    return {
        "visited_pairs": pairs,
        "flops": prefill_flops(arch, pairs, session.context, batch),
        "decode_bytes": decode_bytes(session.loaded.model, arch, session.weights, session.context, batch),
        "peak_flops": peaks and peaks.flops[dtype],
        "peak_bandwidth": peaks and peaks.bandwidth,
        "peak_source": peaks and peaks.source,
    }
