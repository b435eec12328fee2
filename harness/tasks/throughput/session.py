"""The forwards that are timed: a prompt in one piece and in chunks, and tokens after it from the KV
cache."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from harness.models.cache import KVCache, new_cache
from harness.models.family import Architecture
from harness.models.load import LoadedModel
from harness.tasks.throughput.clock import Lap, lap
from harness.tasks.throughput.costs import decode_bytes, prefill_flops, visited_pairs
from harness.tasks.throughput.devices import peaks_of
from harness.tasks.throughput.memory import peak_bytes
from harness.tasks.throughput.oracle import Oracle, cached_error
from kernels import Weights


@dataclass
class Session:
    """A model under `weights`, one for each layer. ids: (batch, context + tokens to decode): the
    prompt, and what is fed after it whatever the model would have said; no padding.

    With `evict` the cache takes `chunk` tokens at a time, and the prompt cannot be fed in one
    piece.
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
        return self.loaded.model.device

    @property
    def decode(self) -> int:
        return self.ids.shape[1] - self.context

    @torch.inference_mode()
    def check(self, rows: Sequence[int]) -> dict:
        """Hold the kernel against the oracle, and the cache against one forward over all tokens;
        warm up all that will be timed, decoding with each number of `rows`. Returns errors and
        bytes; FloatingPointError if a check fails."""
        model, oracle = self.loaded.model, Oracle()
        with self.loaded.attention.use(self.weights):
            with self.loaded.attention.intercept(oracle):
                whole = self._forward(self.ids, None, self.decode + 1)
            oracle.require()
            peak = peak_bytes(model, self.device, self._chunked_prefill if self.evict else self._prefill)
            got = [self._chunked_prefill()]
            for at in range(self.context, self.ids.shape[1]):
                got.append(self._forward(self.ids[:, at : at + 1], self.cache, 1))
            cache = self._filled()
            held = {"kv_allocated_bytes": cache.allocated_bytes, "kv_used_bytes": cache.used_bytes}
            cache.crop(-self.decode)
            for count in rows:
                self._steps(count)
        errors = {"error": oracle.error, "error_cached": cached_error(torch.cat(got, 1), whole, model.dtype)}
        return {**errors, "alibi_difference": oracle.alibi_difference, "peak_bytes": peak, **held}

    @torch.inference_mode()
    def timed(self, kind: str, rows: int) -> dict:
        """One repeat of a measurement (see harness.tasks.throughput.task.Measurement) as figures.
        Of decoding the median step, with the share of attention in all of them, and the slowest;
        where steps are replayed as CUDA graphs, the share is that of the same steps launched one by
        one. A cache that evicts packs what it keeps once in `chunk` tokens: each step bears its
        part of one packing, which is timed by itself."""
        batch = len(self.ids)
        with self.loaded.attention.use(self.weights):
            if kind == "decode":
                laps = self._steps(rows)
                share = sum(x.attention_ms for x in laps) / sum(x.ms for x in laps)
                if self.device.type == "cuda":
                    laps = self._steps(rows, within=False)
                step, packing = statistics.median(x.ms for x in laps), self._packing()
                times = {"attention_ms": share * step, "slowest_ms": max(x.ms for x in laps), "packing_ms": packing}
                step += (packing or 0.0) * rows / self.chunk
                return {"ms": step, **times, "tokens": batch * rows, "laps": len(laps)}
            work = self._prefill if kind == "prefill" else self._chunked_prefill
            return {**vars(lap(self.loaded.attention, self.device, work)), "tokens": batch * self.context, "laps": 1}

    def forget(self) -> None:
        """Release the cache."""
        self.cache = None

    def _forward(self, ids: torch.Tensor, cache: KVCache | None, keep: int) -> torch.Tensor:
        """Logits of the last `keep` tokens. The choice of the next token is part of the work, as in
        generation."""
        options = {
            "use_cache": cache is not None,
            "logits_to_keep": keep,
            **(cache.argument if cache is not None else {}),
        }
        logits = self.loaded.model(input_ids=ids, **options).logits
        logits.argmax(-1)
        return logits

    def _prefill(self) -> torch.Tensor:
        """The whole prompt in one forward, into a cache of its own: until the first token can be
        chosen."""
        return self._forward(self.ids[:, : self.context], new_cache(self.loaded.model, self.context), 1)

    def _chunked_prefill(self) -> torch.Tensor:
        """The prompt by `chunk` tokens, into the cache that decoding goes on from."""
        self.cache = None  # never two at a time
        self.cache = new_cache(
            self.loaded.model, self.ids.shape[1], evict=self.evict, rewind=self.decode, chunk=self.chunk
        )
        for piece in self.ids[:, : self.context].split(self.chunk, dim=1):
            logits = self._forward(piece, self.cache, 1)
        return logits

    def _filled(self) -> KVCache:
        """The cache with the prompt in it."""
        if self.cache is None:
            self._chunked_prefill()
        assert self.cache is not None
        return self.cache

    def _steps(self, rows: int, *, within: bool = True) -> list[Lap]:
        """As many forwards of `rows` tokens each as there are tokens to decode; the cache as before
        afterwards."""
        cache = self._filled()
        if not within:  # the second step is captured, and all after it are replayed
            for _ in range(2):
                self._forward(self.ids[:, self.context : self.context + rows], cache, rows)
                cache.crop(-rows)
        laps = []
        for at in range(self.context, self.ids.shape[1] - rows + 1, rows):
            piece = self.ids[:, at : at + rows]
            work = lambda p=piece: self._forward(p, cache, rows)  # noqa: E731
            laps.append(lap(self.loaded.attention, self.device, work, within=within))
        cache.crop(-rows * len(laps))
        return laps

    def _packing(self) -> float | None:
        """Milliseconds of one packing of all layers; None for a cache that never packs."""
        cache = self._filled()
        if not self.evict or all(layer.size == layer.capacity for layer in cache.layers):
            return None
        pads = [0] * len(self.ids)
        return lap(self.loaded.attention, self.device, lambda: cache.pack(pads, self.weights)).ms


def prompt(arch: Architecture, batch: int, tokens: int, seed: int, device: torch.device) -> torch.Tensor:
    """Random token ids (batch, tokens): speed depends on none of them."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(arch.vocabulary, (batch, tokens), generator=generator).to(device)


def counts(session: Session, arch: Architecture) -> dict:
    """Operations of the prefill and bytes of a decoded token by count, and the device's peaks where
    they are known."""
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
